// Processes that share a descriptor table, and running an image from a descriptor.
#pragma once
#include <sys/types.h>

#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace luo {

/// Polls readable when that process has ended. ESRCH.
Result<Fd> open_pidfd(pid_t pid);

/// As fork(2), but parent and child have one descriptor table in common from then on. Returns 0 in the
/// child. Single-threaded callers only; pthread_atfork handlers do not run.
Result<pid_t> clone_sharing_files();

/// Becomes the program in `image` (its own table then, if it was shared). Returns only if that failed.
/// `argv` and `envp` end with a null pointer. A script behind a CLOEXEC descriptor gives ENOENT.
Error exec_fd(FdRef image, const char* const* argv, const char* const* envp) noexcept;

/// What /proc says that a descriptor of ours is: "/tmp/x", "pipe:[123]", "/memfd:x (deleted)".
Result<std::string> read_link(FdRef fd);

}  // namespace luo
