// Files that are nothing but an object of the kernel, and share one inode with all of their like: timerfd, signalfd,
// inotify. Told apart by kcmp(2), recognised by what /proc calls them.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: a digest of what /proc says of the object and what never changes, 0, 0, 0
class AnonymousHandler final : public Handler {
 public:
  /// `link`: what /proc/self/fd says after "anon_inode:". `constant`: the field of fdinfo that stays the same for the
  /// object's life ("clockid"), empty if there is none. Both constant.
  AnonymousHandler(std::string_view name, std::string_view link, std::string_view constant) noexcept
      : name_{name}, link_{link}, constant_{constant} {}
  std::string_view name() const noexcept override { return name_; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  Identity identity(const FileInfo& file) const noexcept override {
    return {static_cast<std::uint64_t>(file.st.st_dev), static_cast<std::uint64_t>(file.st.st_ino), true};
  }
  /// Errors: EOPNOTSUPP /proc does not tell of it what it should.
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Errors: ESTALE another file.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}

 private:
  Result<std::uint64_t> digest(int fd) const;
  std::string_view name_, link_, constant_;
};

}  // namespace luo::handlers
