// Character devices whose open file is the state: VFIO, iommufd, tun, vhost. Recognised by the name under which they
// were opened and their device number. Only a descriptor table carries them: whoever has them goes on with them.
// And what is refused, with the reason: terminals, KVM's virtual machines and CPUs, all other devices.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: device number, digest of the name, 0, 0
class DeviceHandler final : public Handler {
 public:
  std::string_view name() const noexcept override { return "device-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  Identity identity(const FileInfo& file) const noexcept override {
    return {static_cast<std::uint64_t>(file.st.st_dev), static_cast<std::uint64_t>(file.st.st_ino), true};
  }
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Errors: ESTALE another device.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}
};

/// Kinds that look as if they could be kept, and cannot: so that the owner learns why.
class RefusedHandler final : public Handler {
 public:
  std::string_view name() const noexcept override { return "refused-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  /// EOPNOTSUPP, with the reason.
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  Result<> retrieve(const KeptFile&) override { return fail(EOPNOTSUPP, "it was never preserved"); }
  void finish(const KeptFile&, bool) noexcept override {}
};

}  // namespace luo::handlers
