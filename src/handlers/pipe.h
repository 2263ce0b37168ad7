// Pipes. Both ends are one inode and may both be preserved, so ends are told apart by kcmp(2). A FIFO
// with a name belongs to its file system and is refused.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: inode, device, access mode, 0
class PipeHandler final : public Handler {
 public:
  std::string_view name() const noexcept override { return "pipe-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  Identity identity(const FileInfo& file) const noexcept override {
    return {static_cast<std::uint64_t>(file.st.st_dev), static_cast<std::uint64_t>(file.st.st_ino), true};
  }
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Errors: ESTALE another pipe, or its other end.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}
};

}  // namespace luo::handlers
