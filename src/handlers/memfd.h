// Shared memory files without a name, by the kernel's rule (Linux 7.3, memfd_luo.c): shmem memfds,
// O_TMPFILE and unlinked files of a tmpfs. Not: hugetlb memfds, files that have a link.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: inode, device, 0, 0
class MemfdHandler final : public Handler {
 public:
  MemfdHandler();
  std::string_view name() const noexcept override { return "memfd-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  bool can_be_polled(const FileInfo& file) const noexcept override;
  /// Errors: EFBIG above 2^32-1 pages. The file itself is carried, and its seals with it, known or not.
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  HandlerData arrive(const FileInfo& file, const HandlerData& before) noexcept override;
  /// Errors: ESTALE another file.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}

 private:
  struct Seen {
    std::uint64_t inode, device;
  };
  std::vector<Seen> seen_;  ///< by descriptor number: the file that preserve() saw there last
  dev_t memfd_device_ = 0;  ///< of all shmem memfds: spares them an fstatfs
};

}  // namespace luo::handlers
