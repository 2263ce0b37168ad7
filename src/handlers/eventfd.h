// Event counters. All share one inode, so they are told apart by kcmp(2), and recognised by their id.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: eventfd-id (unique while it lives), 0, 0, 0
class EventfdHandler final : public Handler {
 public:
  EventfdHandler();
  std::string_view name() const noexcept override { return "eventfd-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  Identity identity(const FileInfo& file) const noexcept override {
    return {static_cast<std::uint64_t>(file.st.st_dev), static_cast<std::uint64_t>(file.st.st_ino), true};
  }
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Errors: ESTALE another file.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}

 private:
  dev_t device_ = 0;  ///< of anonymous inodes: spares other kinds the readlink
};

}  // namespace luo::handlers
