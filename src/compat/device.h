// What a target gets for /dev/liveupdate.
#pragma once
#include <sys/stat.h>

#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace luo::compat {

/// The device of one luod: an empty file beside its socket, opened anew each time and locked with flock(2). That lock
/// belongs to the open file description: dup, fork and SCM_RIGHTS share it, the last close ends it, at once and
/// wherever that happens. It is the exclusivity of the kernel's device, also between several `luoctl run`.
class Device {
 public:
  /// Of the luod that serves at `socket`. EACCES and others: the file cannot be made or opened.
  static Result<Device> of(const std::string& socket);

  /// EBUSY: it is open.
  Result<Fd> open() const;
  /// Whether `info` is of a descriptor of this device.
  bool is(const struct stat& info) const noexcept { return info.st_ino == inode_ && info.st_dev == device_; }

 private:
  Device(std::string path, const struct stat& info)
      : path_{std::move(path)}, inode_{info.st_ino}, device_{info.st_dev} {}
  std::string path_;
  ino_t inode_;
  dev_t device_;
};

}  // namespace luo::compat
