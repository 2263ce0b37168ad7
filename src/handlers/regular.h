// Regular files of any file system: the open file goes on, with its offset, its locks of the open file (OFD, flock) and
// its access mode. Two opens of one file are two files. Only a descriptor table carries them.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: inode, device, access mode, 0
class RegularHandler final : public Handler {
 public:
  std::string_view name() const noexcept override { return "file-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override { return S_ISREG(file.st.st_mode); }
  Identity identity(const FileInfo& file) const noexcept override {
    return {static_cast<std::uint64_t>(file.st.st_dev), static_cast<std::uint64_t>(file.st.st_ino), true};
  }
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Errors: ESTALE another file, or opened in another way.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}
};

}  // namespace luo::handlers
