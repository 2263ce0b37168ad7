#include "handlers/regular.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

namespace luo::handlers {
namespace {

Result<std::uint64_t> access_mode(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return sys_fail("fcntl(fd {}, F_GETFL)", fd);
  return static_cast<std::uint64_t>(flags & O_ACCMODE);
}

}  // namespace

Result<HandlerData> RegularHandler::preserve(const FileInfo& file, SessionId, Token) {
  return HandlerData{file.st.st_ino, file.st.st_dev, LUO_TRY(access_mode(file.fd)), 0};
}

Result<> RegularHandler::retrieve(const KeptFile& file) {
  // What the kernel has in memory decides: the server of a file system is not waited for.
  struct statx found;
  if (statx(file.fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_TYPE, &found) != 0)
    return sys_fail("statx(fd {})", file.fd);
  const std::uint64_t mode = LUO_TRY(access_mode(file.fd));
  if (!S_ISREG(found.stx_mode) || found.stx_ino != file.data[0] ||
      makedev(found.stx_dev_major, found.stx_dev_minor) != file.data[1] || mode != file.data[2])
    return fail(ESTALE, "fd {} is inode {} (access mode {}), preserved was file {} (access mode {})", file.fd,
                found.stx_ino, mode, file.data[0], file.data[2]);
  return {};
}

}  // namespace luo::handlers
