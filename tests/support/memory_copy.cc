#include "support/memory_copy.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <utility>

namespace luo::test {
namespace {

/// Calls `visit` for each page of the file that has data. Reserved pages that were never written count as
/// holes, so megabytes of them cost nothing.
Result<> for_each_page(FdRef fd, std::size_t bytes, const std::function<Result<>(std::size_t)>& visit) {
  for (std::size_t at = 0; at < bytes;) {
    const off_t data = ::lseek(fd.raw, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return {};
    if (data < 0) return sys_fail("lseek(fd {}, SEEK_DATA {})", fd.raw, at);
    const off_t hole = ::lseek(fd.raw, data, SEEK_HOLE);
    if (hole < 0) return sys_fail("lseek(fd {}, SEEK_HOLE {})", fd.raw, data);
    for (at = static_cast<std::size_t>(data); at < static_cast<std::size_t>(hole); at += 4096) LUO_TRY(visit(at));
  }
  return {};
}

}  // namespace

Result<MemoryCopy> MemoryCopy::of(FdRef memfd) {
  MemoryCopy made;
  struct stat st {};
  if (::fstat(memfd.raw, &st) != 0) return sys_fail("fstat(fd {})", memfd.raw);
  made.bytes_ = static_cast<std::size_t>(st.st_size);
  made.watched_ = Fd::adopt(::fcntl(memfd.raw, F_DUPFD_CLOEXEC, 0));
  if (!made.watched_.valid()) return sys_fail("fcntl(fd {}, F_DUPFD_CLOEXEC)", memfd.raw);
  made.copy_ = Fd::adopt(::memfd_create("copy", MFD_CLOEXEC));
  if (!made.copy_.valid()) return sys_fail("memfd_create(copy)");
  if (::ftruncate(made.copy_.raw(), st.st_size) != 0) return sys_fail("ftruncate(copy, {})", st.st_size);
  void* at = ::mmap(nullptr, made.bytes_, PROT_READ, MAP_SHARED | MAP_NORESERVE, memfd.raw, 0);
  if (at == MAP_FAILED) return sys_fail("mmap(fd {}, {})", memfd.raw, made.bytes_);
  made.watched_at_ = static_cast<std::byte*>(at);
  LUO_TRY(made.update());
  return made;
}

MemoryCopy::MemoryCopy(MemoryCopy&& from) noexcept
    : watched_{std::move(from.watched_)},
      copy_{std::move(from.copy_)},
      bytes_{from.bytes_},
      watched_at_{std::exchange(from.watched_at_, nullptr)},
      pages_{std::move(from.pages_)} {}

MemoryCopy::~MemoryCopy() {
  if (watched_at_ != nullptr) ::munmap(watched_at_, bytes_);
}

Result<bool> MemoryCopy::update() {
  bool changed = false;
  std::size_t seen = 0;
  LUO_TRY(for_each_page(watched_, bytes_, [&](std::size_t at) -> Result<> {
    ++seen;
    const auto [page, is_new] = pages_.try_emplace(at);
    if (!is_new && std::memcmp(page->second.data(), watched_at_ + at, sizeof(Page)) == 0) return {};
    std::memcpy(page->second.data(), watched_at_ + at, sizeof(Page));
    changed = true;
    return {};
  }));
  if (seen == pages_.size()) return changed;
  // Some page went away: a hole was punched.
  std::map<std::size_t, Page> left;
  LUO_TRY(for_each_page(watched_, bytes_, [&](std::size_t at) -> Result<> {
    left.insert(pages_.extract(at));
    return {};
  }));
  pages_ = std::move(left);
  return true;
}

bool MemoryCopy::update_known() noexcept {
  bool changed = false;
  for (auto& [at, page] : pages_) {
    if (std::memcmp(page.data(), watched_at_ + at, sizeof(Page)) == 0) continue;
    std::memcpy(page.data(), watched_at_ + at, sizeof(Page));
    changed = true;
  }
  return changed;
}

Result<Fd> MemoryCopy::copy() {
  struct stat st {};
  if (::fstat(watched_.raw(), &st) != 0) return sys_fail("fstat(fd {})", watched_.raw());
  // What the last user wrote elsewhere goes; then memory as much as the watched file has.
  LUO_TRY(for_each_page(copy_, bytes_, [&](std::size_t at) -> Result<> {
    if (pages_.contains(at)) return {};
    if (::fallocate(copy_.raw(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at), 4096) != 0)
      return sys_fail("fallocate(copy, PUNCH_HOLE {})", at);
    return {};
  }));
  const off_t memory = std::min<off_t>(st.st_blocks * 512, st.st_size);
  if (memory > 0 && ::fallocate(copy_.raw(), 0, 0, memory) != 0) return sys_fail("fallocate(copy, {})", memory);
  for (const auto& [at, page] : pages_)
    if (::pwrite(copy_.raw(), page.data(), page.size(), static_cast<off_t>(at)) != static_cast<ssize_t>(page.size()))
      return sys_fail("pwrite(copy, {})", at);
  Fd out = Fd::adopt(::fcntl(copy_.raw(), F_DUPFD_CLOEXEC, 0));
  if (!out.valid()) return sys_fail("fcntl(copy, F_DUPFD_CLOEXEC)");
  return out;
}

}  // namespace luo::test
