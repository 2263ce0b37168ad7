#include "support/tracee.h"

#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace luo::test {
namespace {

constexpr int kSyscallStop = SIGTRAP | 0x80;  // PTRACE_O_TRACESYSGOOD

}  // namespace

std::string to_string(const Stop& stop) {
  switch (stop.kind) {
    case Stop::Kind::SyscallEntry: return fmt::format("entry of system call {}", stop.number);
    case Stop::Kind::SyscallExit: return "exit of a system call";
    case Stop::Kind::Step: return "one instruction";
    case Stop::Kind::Signal:
      return fmt::format("signal {} ({})", stop.number, ::strsignal(static_cast<int>(stop.number)));
    case Stop::Kind::Exited: return fmt::format("exit with status {}", stop.number);
    case Stop::Kind::Killed:
      return fmt::format("death by signal {} ({})", stop.number, ::strsignal(static_cast<int>(stop.number)));
  }
  return "?";
}

Result<Tracee> Tracee::fork(const std::function<void()>& body) {
  const pid_t pid = ::fork();
  if (pid < 0) return sys_fail("fork()");
  if (pid == 0) {
    // SIGSTOP, not PTRACE_SEIZE: so that nothing runs before the options are set.
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(125);
    ::raise(SIGSTOP);
    body();
    ::_exit(0);
  }
  Tracee tracee{pid};
  const Stop first = LUO_TRY(tracee.wait());
  if (first.kind != Stop::Kind::Signal || first.number != SIGSTOP)
    return fail(ECHILD, "traced child {}: {} before it began", pid, to_string(first));
  tracee.deliver_ = 0;
  if (::ptrace(PTRACE_SETOPTIONS, pid, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) != 0)
    return sys_fail("ptrace(SETOPTIONS, {})", pid);
  const std::string path = fmt::format("/proc/{}/task/{}/stat", pid, pid);
  tracee.stat_ = Fd::adopt(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!tracee.stat_.valid()) return sys_fail("open({})", path);
  return tracee;
}

Result<std::uint64_t> Tracee::page_faults() const {
  char text[512];
  const ssize_t got = ::pread(stat_.raw(), text, sizeof text - 1, 0);
  if (got <= 0) return sys_fail("pread(stat of process {})", pid_);
  text[got] = '\0';
  const char* at = std::strrchr(text, ')');  // the name before it may contain anything
  for (int field = 2; at != nullptr && field < 10; ++field) at = std::strchr(at + 1, ' ');
  if (at == nullptr) return fail(EPROTO, "stat of process {}: {}", pid_, text);
  return std::strtoull(at, nullptr, 10);
}

Result<Stop> Tracee::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, __WALL) < 0)
    if (errno != EINTR) return sys_fail("waitpid({})", pid_);
  if (WIFEXITED(status)) {
    pid_ = -1;
    return Stop{Stop::Kind::Exited, WEXITSTATUS(status)};
  }
  if (WIFSIGNALED(status)) {
    pid_ = -1;
    return Stop{Stop::Kind::Killed, WTERMSIG(status)};
  }
  const int signal = WSTOPSIG(status);
  if (signal == kSyscallStop) {
    __ptrace_syscall_info info{};
    if (::ptrace(PTRACE_GET_SYSCALL_INFO, pid_, sizeof info, &info) < 0)
      return sys_fail("ptrace(GET_SYSCALL_INFO, {})", pid_);
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
      return Stop{Stop::Kind::SyscallEntry, static_cast<long>(info.entry.nr), info.entry.args[0]};
    return Stop{Stop::Kind::SyscallExit};
  }
  if (signal == SIGTRAP) return Stop{Stop::Kind::Step};
  deliver_ = signal;
  return Stop{Stop::Kind::Signal, signal};
}

Result<Stop> Tracee::resume(int request) {
  if (pid_ < 0) return fail(ESRCH, "traced child has ended");
  const auto signal = static_cast<std::uintptr_t>(std::exchange(deliver_, 0));
  if (::ptrace(static_cast<__ptrace_request>(request), pid_, nullptr, signal) != 0)
    return sys_fail("ptrace(resume, {})", pid_);
  return wait();
}

Result<Stop> Tracee::to_syscall() { return resume(PTRACE_SYSCALL); }
Result<Stop> Tracee::step() { return resume(PTRACE_SINGLESTEP); }

Result<std::uint64_t> Tracee::pc() const {
#if defined(__x86_64__)
  errno = 0;
  const long pc = ::ptrace(PTRACE_PEEKUSER, pid_, offsetof(user, regs.rip), nullptr);
  if (pc == -1 && errno != 0) return sys_fail("ptrace(PEEKUSER, {})", pid_);
  return static_cast<std::uint64_t>(pc);
#else
  user_regs_struct regs{};
  iovec out{&regs, sizeof regs};
  if (::ptrace(PTRACE_GETREGSET, pid_, NT_PRSTATUS, &out) != 0) return sys_fail("ptrace(GETREGSET, {})", pid_);
  return regs.pc;
#endif
}

void Tracee::kill() noexcept {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, __WALL) < 0 ? errno == EINTR : !WIFEXITED(status) && !WIFSIGNALED(status)) {}
  pid_ = -1;
}

}  // namespace luo::test
