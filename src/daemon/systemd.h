// systemd as the first process of a machine whose kernel is left: asked for the kexec, and asked whether it is at it.
// Each call starts systemctl(1) and waits for its end. Only the worker's thread.
#pragma once
#include <string>

#include "base/error.h"

namespace luo::daemon {

/// `systemctl kexec`: on success systemd has begun, or will soon. EIO if it said no; what posix_spawn() says.
Result<> begin_kexec();

/// Whether systemd is ending everything. True, and logged, if that cannot be learned: what luod holds is lost if it is
/// given up in a shutdown that goes on, and only waits longer if it is held in one that does not.
bool shutdown_goes_on();

/// The unit that this process belongs to, if a shutdown stops it, and so kills it in the end; empty if none does.
std::string unit_that_shutdown_stops();

}  // namespace luo::daemon
