#include "sys/process.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace luo {

Result<Fd> open_pidfd(pid_t pid) {
  Fd fd = Fd::adopt(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));  // always CLOEXEC
  if (!fd.valid()) return sys_fail("pidfd_open({})", pid);
  return fd;
}

Result<pid_t> clone_sharing_files() {
  // Not clone(3): that one wants a stack and a function; this child goes on here, on its own copy.
  const long pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, nullptr);
  if (pid < 0) return sys_fail("clone(CLONE_FILES)");
  return static_cast<pid_t>(pid);
}

Error exec_fd(FdRef image, const char* const* argv, const char* const* envp) noexcept {
  // The system call does not write through these; its prototype is older than const.
  execveat(image.raw, "", const_cast<char* const*>(argv), const_cast<char* const*>(envp), AT_EMPTY_PATH);
  return sys_fail("execveat(fd {})", image.raw).error();
}

Result<std::string> read_link(FdRef fd) {
  char target[4096];
  const std::string link = fmt::format("/proc/self/fd/{}", fd.raw);
  const ssize_t n = readlink(link.c_str(), target, sizeof target);
  if (n < 0) return sys_fail("readlink({})", link);
  return std::string(target, static_cast<std::size_t>(n));
}

}  // namespace luo
