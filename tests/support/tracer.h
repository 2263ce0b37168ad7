// A process of its own that traces another one for a test, and says through a pipe how that goes.
#pragma once
#include <sys/types.h>

#include <functional>

#include "base/error.h"
#include "base/fd.h"

namespace luo::test {

class Tracer {
 public:
  /// Forks it. `life` gets the pipe's end and does not come back; only what is allowed after fork in a program with
  /// threads. It has no other descriptor of ours, because last closes are what some of the traced wait for, and ends
  /// with us.
  static Result<Tracer> start(const std::function<void(int to)>& life);
  Tracer(Tracer&&) noexcept;
  Tracer& operator=(Tracer&&) = delete;
  ~Tracer() { stop(); }

  /// The kernel lets go of what it traced, which runs on. What it has said can still be read.
  void stop() noexcept;
  FdRef reports() const noexcept { return reports_; }
  /// Waits for its next words, which come whole. ECHILD: it is gone.
  template <class Report>
  Result<Report> next() const {
    Report report{};
    LUO_TRY(read_whole(&report, sizeof report));
    return report;
  }

 private:
  Tracer(pid_t pid, Fd reports) noexcept;
  Result<> read_whole(void* to, std::size_t bytes) const;
  pid_t pid_;
  Fd reports_;
};

/// In the tracer: what next() gives. Nobody listens any more: ends it.
void say_bytes(int to, const void* report, std::size_t bytes) noexcept;

}  // namespace luo::test
