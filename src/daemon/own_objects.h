// luod's own objects are refused before any handler is asked: a session inside a session would keep
// itself alive for ever, a connection or the arena would hand luod to its clients.
#pragma once
#include <functional>

#include "daemon/control.h"
#include "luo/handler.h"

namespace luo::daemon {

/// Whether `fd` is a Unix socket with that path at its own end (or at its peer's).
bool socket_has_path(int fd, bool peer, std::string_view path) noexcept;

class OwnObjects final : public Handler {
 public:
  OwnObjects(const Control& control, std::function<bool(std::uint64_t inode)> is_session);

  std::string_view name() const noexcept override { return "luod-own"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  /// ENOENT, as the kernel answers for its session and device descriptors.
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  Result<> retrieve(const KeptFile&) override { return fail(ENOENT, "an object of luod's own"); }
  void finish(const KeptFile&, bool) noexcept override {}

 private:
  const Control& control_;
  std::function<bool(std::uint64_t)> is_session_;
  std::uint64_t arena_device_ = 0, arena_inode_ = 0;
};

}  // namespace luo::daemon
