#include "handlers/memfd.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

namespace luo::handlers {
namespace {

constexpr std::uint64_t kMaxPages = 0xffffffff;

}  // namespace

MemfdHandler::MemfdHandler() {
  const Fd probe = Fd::adopt(memfd_create("luo-probe", MFD_CLOEXEC));
  struct stat st {};
  if (probe.valid() && fstat(probe.raw(), &st) == 0) memfd_device_ = st.st_dev;
}

bool MemfdHandler::can_preserve(const FileInfo& file) const noexcept {
  if (!S_ISREG(file.st.st_mode) || file.st.st_nlink != 0) return false;
  if (memfd_device_ != 0 && file.st.st_dev == memfd_device_) return true;
  // Device numbers of other mounts come and go, so they are not remembered.
  struct statfs fs {};
  return fstatfs(file.fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

bool MemfdHandler::can_be_polled(const FileInfo& file) const noexcept {
  return S_ISREG(file.st.st_mode) && memfd_device_ != 0 && file.st.st_dev == memfd_device_;
}

Result<HandlerData> MemfdHandler::preserve(const FileInfo& file, SessionId, Token) {
  static const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const auto size = static_cast<std::uint64_t>(file.st.st_size);
  if (size / page + (size % page != 0 ? 1 : 0) > kMaxPages)
    return fail(EFBIG, "the memfd has {} bytes, more than {} pages", size, kMaxPages);
  const auto number = static_cast<std::size_t>(file.fd);
  if (seen_.size() <= number) seen_.resize(number + 1);
  seen_[number] = {file.st.st_ino, file.st.st_dev};
  return HandlerData{file.st.st_ino, file.st.st_dev, 0, 0};
}

HandlerData MemfdHandler::arrive(const FileInfo& file, const HandlerData& before) noexcept {
  return {file.st.st_ino, file.st.st_dev, before[2], before[3]};
}

Result<> MemfdHandler::retrieve(const KeptFile& file) {
  // A number that this process has taken in itself is still what it was then; one that came from the process
  // before is looked at.
  const auto number = static_cast<std::size_t>(file.fd);
  if (number < seen_.size() && seen_[number].inode == file.data[0] && seen_[number].device == file.data[1] &&
      file.data[0] != 0)
    return {};
  struct stat st {};
  if (fstat(file.fd, &st) != 0) return sys_fail("fstat(fd {})", file.fd);
  if (st.st_ino != file.data[0] || st.st_dev != file.data[1])
    return fail(ESTALE, "fd {} is inode {} on device {:#x}, preserved was inode {} on {:#x}", file.fd, st.st_ino,
                st.st_dev, file.data[0], file.data[1]);
  return {};
}

}  // namespace luo::handlers
