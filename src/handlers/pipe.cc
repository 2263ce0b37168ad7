#include "handlers/pipe.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/statfs.h>

namespace luo::handlers {
namespace {

Result<std::uint64_t> access_mode(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return sys_fail("fcntl(fd {}, F_GETFL)", fd);
  return static_cast<std::uint64_t>(flags & O_ACCMODE);
}

}  // namespace

bool PipeHandler::can_preserve(const FileInfo& file) const noexcept {
  struct statfs fs {};
  return S_ISFIFO(file.st.st_mode) && fstatfs(file.fd, &fs) == 0 && fs.f_type == PIPEFS_MAGIC;
}

Result<HandlerData> PipeHandler::preserve(const FileInfo& file, SessionId, Token) {
  return HandlerData{file.st.st_ino, file.st.st_dev, LUO_TRY(access_mode(file.fd)), 0};
}

Result<> PipeHandler::retrieve(const KeptFile& file) {
  struct stat st {};
  if (fstat(file.fd, &st) != 0) return sys_fail("fstat(fd {})", file.fd);
  const std::uint64_t mode = LUO_TRY(access_mode(file.fd));
  if (!S_ISFIFO(st.st_mode) || st.st_ino != file.data[0] || st.st_dev != file.data[1] || mode != file.data[2])
    return fail(ESTALE, "fd {} is inode {} (access mode {}), preserved was pipe {} (access mode {})", file.fd,
                st.st_ino, mode, file.data[0], file.data[2]);
  return {};
}

}  // namespace luo::handlers
