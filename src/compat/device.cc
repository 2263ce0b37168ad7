#include "compat/device.h"

#include <fcntl.h>
#include <sys/file.h>

namespace luo::compat {

Result<Device> Device::of(const std::string& socket) {
  std::string path = socket + ".device";
  const Fd file = Fd::adopt(::open(path.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0444));
  struct stat info;
  if (!file.valid() || ::fstat(file.raw(), &info) != 0) return sys_fail("open('{}')", path);
  return Device{std::move(path), info};
}

Result<Fd> Device::open() const {
  Fd file = Fd::adopt(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) return sys_fail("open('{}')", path_);
  if (::flock(file.raw(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return fail(EBUSY, "the device is open");
    return sys_fail("flock('{}')", path_);
  }
  return file;
}

}  // namespace luo::compat
