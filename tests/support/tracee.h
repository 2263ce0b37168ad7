// A child under ptrace: run to the next system call or by one instruction, and killed where it stands.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/fd.h"

namespace luo::test {

/// Why a traced process stands still, or that it does not run any more.
struct Stop {
  enum class Kind { SyscallEntry, SyscallExit, Step, Signal, Exited, Killed };
  Kind kind;
  long number = 0;             ///< system call (at its entry), signal, or exit status
  std::uint64_t argument = 0;  ///< the system call's first (at its entry)
};
std::string to_string(const Stop& stop);

/// Sole owner of a traced child; kills and reaps it. Used by the thread that made it.
class Tracee {
 public:
  /// Forks; the child stops before `body`, and ends with status 0 after it. If we die, it dies.
  static Result<Tracee> fork(const std::function<void()>& body);
  Tracee(Tracee&& from) noexcept
      : pid_{std::exchange(from.pid_, -1)}, deliver_{from.deliver_}, stat_{std::move(from.stat_)} {}
  Tracee& operator=(Tracee&&) = delete;
  ~Tracee() { kill(); }

  pid_t pid() const noexcept { return pid_; }
  /// Runs on to the next system call's entry or exit. Signals that stopped it are delivered.
  Result<Stop> to_syscall();
  /// Executes one instruction (a system call is one).
  Result<Stop> step();
  /// Where its next instruction lies.
  Result<std::uint64_t> pc() const;
  /// Page faults that needed no reading, so far. A page of memory that it touches first costs one.
  Result<std::uint64_t> page_faults() const;
  /// SIGKILL, then reaps it. Nothing, if it has ended.
  void kill() noexcept;

 private:
  explicit Tracee(pid_t pid) noexcept : pid_{pid} {}
  Result<Stop> resume(int request);
  Result<Stop> wait();
  pid_t pid_;
  int deliver_ = 0;  ///< signal that stopped it
  Fd stat_;          ///< /proc/PID/task/PID/stat
};

}  // namespace luo::test
