// Kills a process that already runs, which may be nobody's child of ours, at a system call of our choice.
//
//   auto kill = SyscallKill::arm(worker_pid, n);     // returns when the process is being traced
//   ... make it do something ...
//   auto outcome = kill.wait(10s);
#pragma once
#include <sys/types.h>

#include <chrono>
#include <string>

#include "base/error.h"
#include "support/tracer.h"

namespace luo::test {

/// Counts the system call stops of a process (entry 1, exit 2, next entry 3, ...), from the moment that it
/// is armed, and kills it with SIGKILL at the n-th. A process of its own does the tracing, so that any
/// thread may wait. Only the thread `pid` is watched; the kill takes its whole process. Arming makes a
/// system call in which the process waits return once with EINTR, or restart. Needs the right to ptrace it,
/// which nobody else may be tracing. Its destructor stops tracing; a process that is not dead by then runs on.
class SyscallKill {
 public:
  struct Outcome {
    bool killed;     ///< by us, at stop n. False: it ended by itself before, or wait() gave up
    unsigned stops;  ///< counted
    std::string at;  ///< "entry of system call 47"
  };
  /// n >= 1. ESRCH, EPERM.
  static Result<SyscallKill> arm(pid_t pid, unsigned n) { return arm_with_signal(pid, n, 9); }
  /// With another signal; the process runs on, untraced. `killed` says that the signal was sent.
  static Result<SyscallKill> arm_with_signal(pid_t pid, unsigned n, int signal);
  /// The same for the next process that `parent` makes, from that one's first instruction on. The parent itself
  /// is not held up.
  static Result<SyscallKill> arm_next_child(pid_t parent, unsigned n);
  /// With SIGKILL at the n-th instruction instead; a system call is one. Some microseconds for each instruction.
  static Result<SyscallKill> arm_at_instruction(pid_t pid, unsigned n);

  /// Waits for the kill or for the process's own end. After `limit`, which counts as neither: stops tracing,
  /// the process runs on. Once.
  Result<Outcome> wait(std::chrono::milliseconds limit);

 private:
  using Trace = void (*)(pid_t pid, unsigned n, int signal, int to);
  static Result<SyscallKill> arm_with(Trace trace, pid_t pid, unsigned n, int signal);
  explicit SyscallKill(Tracer tracer) noexcept : tracer_{std::move(tracer)} {}
  Tracer tracer_;
};

/// arm() and wait() in one, for a process that is busy anyway. ETIMEDOUT after 10 s without n stops.
Result<SyscallKill::Outcome> kill_at_syscall(pid_t pid, unsigned n);

}  // namespace luo::test
