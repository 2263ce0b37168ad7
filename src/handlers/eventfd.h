// Event counters. All share one inode, so they are told apart and recognised by the id that the kernel gives
// each for its life, and then, to be sure, by kcmp(2): one comparison, where the inode would need log n.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: eventfd-id, 0, 0, 0
class EventfdHandler final : public Handler {
 public:
  EventfdHandler();
  std::string_view name() const noexcept override { return "eventfd-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  Identity identity(const FileInfo& file) const noexcept override;
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Errors: ESTALE another file.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}

 private:
  dev_t device_ = 0;  ///< of anonymous inodes: spares other kinds the readlink
  /// What identity() has just read, for the preserve() that follows it: fdinfo is slow.
  struct Known {
    int fd = -1;
    std::uint64_t id = 0;
  };
  mutable Known known_;
};

}  // namespace luo::handlers
