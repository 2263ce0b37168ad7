// Makes one system call of a running process fail, with an errno of our choice, without executing it.
//
//   auto fault = SyscallFault::arm(worker_pid, EMFILE, n);  // the n-th call from now on that can give EMFILE
//   ... make it do something ...
//   fault->hit()                                            // "pipe2", or "" if there were fewer
#pragma once
#include <sys/types.h>

#include <string>

#include "base/error.h"
#include "support/tracer.h"

namespace luo::test {

/// Traces one thread from a process of its own until it is destroyed. x86-64 only (ENOSYS elsewhere). Which system
/// calls an errno is given to: those that Linux gives it for want of a resource; see kCanFail in the source.
class SyscallFault {
 public:
  /// n >= 1. ESRCH, EPERM, ENOSYS.
  static Result<SyscallFault> arm(pid_t pid, int code, unsigned n);
  /// Stops tracing. The name of the call that failed; empty: it was not reached.
  std::string hit();

 private:
  explicit SyscallFault(Tracer tracer) noexcept : tracer_{std::move(tracer)} {}
  Tracer tracer_;
};

}  // namespace luo::test
