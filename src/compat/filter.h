// The seccomp filter of a program under `luoctl run`: which of its system calls wait for the supervisor.
#pragma once
#include "base/error.h"
#include "base/fd.h"

namespace luo::compat {

/// Puts the calling thread, and all that it starts from now on, under the filter; for good. Returns the listener,
/// close-on-exec. Single-threaded callers. Trapped are ioctls of type 0xBA and all opens but those that cannot be of a
/// device (O_DIRECTORY, O_TMPFILE, O_CREAT|O_EXCL); other architectures' system calls are not: there the descriptors
/// say ENOTTY, as the kernel's do, which know no compat ioctl.
/// Without CAP_SYS_ADMIN it sets no_new_privs. EBUSY: there is a listener already, EINVAL: the kernel is older
/// than 5.19.
Result<Fd> install_filter();

}  // namespace luo::compat
