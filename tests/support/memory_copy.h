// A copy of a memfd as another process sees it now, kept up to date page by page.
#pragma once
#include <array>
#include <cstddef>
#include <map>

#include "base/error.h"
#include "base/fd.h"

namespace luo::test {

class MemoryCopy {
 public:
  /// `memfd` is watched from here on; its size does not change.
  static Result<MemoryCopy> of(FdRef memfd);
  MemoryCopy(MemoryCopy&&) noexcept;
  MemoryCopy& operator=(MemoryCopy&&) = delete;
  ~MemoryCopy();

  /// Looks at every page that has data. Whether something changed since the last look.
  Result<bool> update();
  /// The same if no page can have got data, or lost it, since: looks only at those known. Much faster.
  bool update_known() noexcept;
  /// A memfd with that content, and with at least as much memory. The same file each time, made anew:
  /// what the caller does to it does no harm, but two calls' results cannot be used at once.
  Result<Fd> copy();

 private:
  using Page = std::array<std::byte, 4096>;
  MemoryCopy() = default;
  Fd watched_, copy_;
  std::size_t bytes_ = 0;
  std::byte* watched_at_ = nullptr;
  std::map<std::size_t, Page> pages_;  ///< by offset
};

}  // namespace luo::test
