#include "support/syscall_fault.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <utility>

namespace luo::test {
#ifdef __x86_64__
namespace {

struct CanFail {
  int code;
  long number;
  const char* name;
  int argument = -1;        ///< only if this one ...
  std::uint64_t value = 0;  ///< ... has this value
};
constexpr CanFail kCanFail[] = {
    {EMFILE, SYS_pipe2, "pipe2"},
    {EMFILE, SYS_memfd_create, "memfd_create"},
    {EMFILE, SYS_fcntl, "fcntl(F_DUPFD_CLOEXEC)", 1, F_DUPFD_CLOEXEC},
    {EMFILE, SYS_accept4, "accept4"},
    {EMFILE, SYS_openat, "openat"},
    {EMFILE, SYS_pidfd_open, "pidfd_open"},
    {ENFILE, SYS_pipe2, "pipe2"},
    {ENFILE, SYS_memfd_create, "memfd_create"},
    {ENFILE, SYS_accept4, "accept4"},
    {ENFILE, SYS_openat, "openat"},
    {ENOMEM, SYS_pipe2, "pipe2"},
    {ENOMEM, SYS_memfd_create, "memfd_create"},
    {ENOMEM, SYS_mmap, "mmap"},
    {ENOMEM, SYS_fallocate, "fallocate"},
    {ENOMEM, SYS_epoll_ctl, "epoll_ctl(ADD)", 1, EPOLL_CTL_ADD},
    {ENOMEM, SYS_sendmsg, "sendmsg"},
    {ENOMEM, SYS_recvmsg, "recvmsg"},
    {ENOMEM, SYS_accept4, "accept4"},
    {ENOMEM, SYS_openat, "openat"},
    {ENOSPC, SYS_fallocate, "fallocate"},
    {ENOSPC, SYS_epoll_ctl, "epoll_ctl(ADD)", 1, EPOLL_CTL_ADD},
    {ENOBUFS, SYS_sendmsg, "sendmsg"},
    {ETOOMANYREFS, SYS_sendmsg, "sendmsg"},
    {EAGAIN, SYS_sendmsg, "sendmsg"},  // a full socket
};

struct Report {
  int armed;
  int error;
  int hit;  ///< index in kCanFail, -1: none
};

void say(int to, const Report& report) noexcept { say_bytes(to, &report, sizeof report); }

int index_of(int code, const __ptrace_syscall_info& info) noexcept {
  for (int i = 0; i < static_cast<int>(std::size(kCanFail)); ++i) {
    const CanFail& can = kCanFail[i];
    if (can.code != code || can.number != static_cast<long>(info.entry.nr)) continue;
    if (can.argument < 0 || info.entry.args[can.argument] == can.value) return i;
  }
  return -1;
}

/// The tracer's whole life. Only what is allowed after fork in a program with threads.
[[noreturn]] void trace(pid_t pid, int code, unsigned n, int to) noexcept {
  if (::ptrace(PTRACE_SEIZE, pid, nullptr, PTRACE_O_TRACESYSGOOD) != 0 ||
      ::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0) {
    say(to, {0, errno, -1});
    ::_exit(1);
  }
  bool armed = false;
  bool failing = false;
  while (true) {
    int status = 0;
    while (::waitpid(pid, &status, __WALL) < 0)
      if (errno != EINTR) ::_exit(1);
    if (!WIFSTOPPED(status)) ::_exit(0);
    if (!std::exchange(armed, true)) say(to, {1, 0, -1});
    std::uintptr_t deliver = 0;
    const int signal = WSTOPSIG(status);
    if (signal == (SIGTRAP | 0x80)) {
      __ptrace_syscall_info info{};
      ::ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info);
      if (failing) {
        ::ptrace(PTRACE_POKEUSER, pid, offsetof(user_regs_struct, rax), static_cast<long>(-code));
        failing = false;
      } else if (n != 0 && info.op == PTRACE_SYSCALL_INFO_ENTRY) {
        if (const int hit = index_of(code, info); hit >= 0 && --n == 0) {
          ::ptrace(PTRACE_POKEUSER, pid, offsetof(user_regs_struct, orig_rax), -1L);
          failing = true;
          say(to, {1, 0, hit});
        }
      }
    } else if (status >> 16 == 0) {
      deliver = static_cast<std::uintptr_t>(signal);
    } else if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU) {
      ::ptrace(PTRACE_LISTEN, pid, nullptr, nullptr);
      continue;
    }
    ::ptrace(PTRACE_SYSCALL, pid, nullptr, deliver);
  }
}

}  // namespace

Result<SyscallFault> SyscallFault::arm(pid_t pid, int code, unsigned n) {
  Tracer tracer = LUO_TRY(Tracer::start([=](int to) { trace(pid, code, n, to); }));
  const auto report = LUO_TRY_DURING(fmt::format("trace process {}", pid), tracer.next<Report>());
  if (report.armed == 0) return fail(report.error, "trace process {}", pid);
  return SyscallFault{std::move(tracer)};
}

std::string SyscallFault::hit() {
  tracer_.stop();
  const auto report = tracer_.next<Report>();
  return !report || report->hit < 0 ? "" : kCanFail[report->hit].name;
}
#else
Result<SyscallFault> SyscallFault::arm(pid_t pid, int, unsigned) {
  return fail(ENOSYS, "make a system call of process {} fail: only on x86-64", pid);
}
std::string SyscallFault::hit() { return {}; }
#endif

}  // namespace luo::test
