#include "support/kill_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

namespace luo::test {
namespace {

/// What the tracer says through its pipe; one write each, so never in parts.
struct Report {
  enum class What : int { Armed, Failed, Killed, Ended } what;
  int error;  ///< Failed
  unsigned stops;
  long number;  ///< Killed at the entry of this system call; -1: at an exit
};

void say(int to, const Report& report) noexcept { say_bytes(to, &report, sizeof report); }

[[noreturn]] void give_up(int to) noexcept {
  say(to, {Report::What::Failed, errno, 0, -1});
  ::_exit(1);
}

/// Goes on with a process that has stopped, up to its next system call stop. It is killed if this one is the n-th.
void step(pid_t pid, int status, unsigned n, int kill_with, unsigned& stops, int to) noexcept {
  std::uintptr_t deliver = 0;
  const int signal = WSTOPSIG(status);
  if (signal == (SIGTRAP | 0x80)) {
    if (++stops == n) {
      __ptrace_syscall_info info{};
      const bool known = ::ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) > 0;
      const bool entry = known && info.op == PTRACE_SYSCALL_INFO_ENTRY;
      ::kill(pid, kill_with);
      // The tracer sees the death before the parent can reap it: reported only when it is true.
      while (kill_with == SIGKILL && (::waitpid(pid, &status, __WALL) < 0 ? errno == EINTR : WIFSTOPPED(status))) {}
      say(to, {Report::What::Killed, 0, stops, entry ? static_cast<long>(info.entry.nr) : -1});
      ::_exit(0);
    }
  } else if (status >> 16 == 0) {
    deliver = static_cast<std::uintptr_t>(signal);  // a signal's delivery; with an event it is a stop of ours
  } else if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU) {
    ::ptrace(PTRACE_LISTEN, pid, nullptr, nullptr);  // it was stopped by somebody, and stays so
    return;
  }
  ::ptrace(PTRACE_SYSCALL, pid, nullptr, deliver);  // fails only if it has just died: seen next
}

/// The tracer's whole life. Only what is allowed after fork in a program with threads.
void trace(pid_t pid, unsigned n, int signal, int to) noexcept {
  if (::ptrace(PTRACE_SEIZE, pid, nullptr, PTRACE_O_TRACESYSGOOD) != 0) give_up(to);
  if (::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0) give_up(to);
  unsigned stops = 0;
  bool armed = false;
  while (true) {
    int status = 0;
    while (::waitpid(pid, &status, __WALL) < 0)
      if (errno != EINTR) give_up(to);
    if (!WIFSTOPPED(status)) {
      say(to, {Report::What::Ended, 0, stops, -1});
      ::_exit(0);
    }
    if (!armed) {
      armed = true;
      say(to, {Report::What::Armed, 0, 0, -1});
    }
    step(pid, status, n, signal, stops, to);
  }
}

/// Another tracer: counts instructions.
void trace_instructions(pid_t pid, unsigned n, int signal, int to) noexcept {
  if (::ptrace(PTRACE_SEIZE, pid, nullptr, 0) != 0) give_up(to);
  if (::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0) give_up(to);
  bool armed = false;
  for (unsigned steps = 0;;) {
    int status = 0;
    while (::waitpid(pid, &status, __WALL) < 0)
      if (errno != EINTR) give_up(to);
    if (!WIFSTOPPED(status)) {
      say(to, {Report::What::Ended, 0, steps, -1});
      ::_exit(0);
    }
    std::uintptr_t deliver = 0;
    if (!armed) {
      armed = true;
      say(to, {Report::What::Armed, 0, 0, -1});
    } else if (WSTOPSIG(status) == SIGTRAP) {
      if (++steps == n) {
        ::kill(pid, signal);
        while (::waitpid(pid, &status, __WALL) < 0 ? errno == EINTR : WIFSTOPPED(status)) {}
        say(to, {Report::What::Killed, 0, steps, -1});
        ::_exit(0);
      }
    } else if (status >> 16 == 0) {
      deliver = static_cast<std::uintptr_t>(WSTOPSIG(status));
    }
    ::ptrace(PTRACE_SINGLESTEP, pid, nullptr, deliver);
  }
}

/// Another tracer: of the first child that `parent` makes.
void trace_next_child(pid_t parent, unsigned n, int signal, int to) noexcept {
  constexpr long kBirths = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE;
  if (::ptrace(PTRACE_SEIZE, parent, nullptr, kBirths | PTRACE_O_TRACESYSGOOD) != 0) give_up(to);
  say(to, {Report::What::Armed, 0, 0, -1});
  unsigned stops = 0;
  pid_t child = -1;
  while (true) {
    int status = 0;
    pid_t pid = -1;
    while ((pid = ::waitpid(-1, &status, __WALL)) < 0)
      if (errno != EINTR) give_up(to);
    if (child < 0 && pid != parent) child = pid;
    if (!WIFSTOPPED(status)) {
      if (pid != child && (pid != parent || child >= 0)) continue;
      say(to, {Report::What::Ended, 0, stops, -1});
      ::_exit(0);
    }
    if (pid == child) {
      step(pid, status, n, signal, stops, to);
    } else {
      const bool delivery = status >> 16 == 0 && WSTOPSIG(status) != SIGTRAP;
      ::ptrace(pid == parent ? PTRACE_CONT : PTRACE_DETACH, pid, nullptr, delivery ? WSTOPSIG(status) : 0);
    }
  }
}

}  // namespace

Result<SyscallKill> SyscallKill::arm_with_signal(pid_t pid, unsigned n, int signal) {
  return arm_with(&trace, pid, n, signal);
}
Result<SyscallKill> SyscallKill::arm_at_instruction(pid_t pid, unsigned n) {
  return arm_with(&trace_instructions, pid, n, SIGKILL);
}
Result<SyscallKill> SyscallKill::arm_next_child(pid_t parent, unsigned n) {
  return arm_with(&trace_next_child, parent, n, SIGKILL);
}

Result<SyscallKill> SyscallKill::arm_with(Trace trace, pid_t pid, unsigned n, int signal) {
  if (n == 0) return fail(EINVAL, "kill process {} at its system call 0", pid);
  Tracer tracer = LUO_TRY(Tracer::start([=](int to) { trace(pid, n, signal, to); }));
  const auto report = LUO_TRY_DURING(fmt::format("trace process {}", pid), tracer.next<Report>());
  if (report.what == Report::What::Failed) return fail(report.error, "trace process {}", pid);
  if (report.what != Report::What::Armed) return fail(ESRCH, "trace process {}: it has ended", pid);
  return SyscallKill{std::move(tracer)};
}

Result<SyscallKill::Outcome> SyscallKill::wait(std::chrono::milliseconds limit) {
  pollfd poll{.fd = tracer_.reports().raw, .events = POLLIN, .revents = 0};
  const auto until = std::chrono::steady_clock::now() + limit;
  int ready = 0;
  do {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    ready = ::poll(&poll, 1, static_cast<int>(std::max<std::int64_t>(left.count(), 0)));
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) return sys_fail("poll(tracer)");
  if (ready == 0) {
    tracer_.stop();
    return Outcome{false, 0, fmt::format("still running after {} ms", limit.count())};
  }
  const auto said = tracer_.next<Report>();
  tracer_.stop();
  const Report report = LUO_TRY(said);
  if (report.what == Report::What::Failed) return fail(report.error, "the tracer failed");
  if (report.what != Report::What::Killed) return Outcome{false, report.stops, "it ended by itself"};
  return Outcome{true, report.stops,
                 report.number >= 0 ? fmt::format("entry of system call {}", report.number) : "exit of a system call"};
}

Result<SyscallKill::Outcome> kill_at_syscall(pid_t pid, unsigned n) {
  SyscallKill kill = LUO_TRY(SyscallKill::arm(pid, n));
  auto outcome = LUO_TRY(kill.wait(std::chrono::seconds{10}));
  if (!outcome.killed) return fail(ETIMEDOUT, "process {} was not killed at stop {}: {}", pid, n, outcome.at);
  return outcome;
}

}  // namespace luo::test
