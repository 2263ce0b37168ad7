#include "support/kill_harness.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "support/memory_copy.h"
#include "support/tracee.h"

namespace luo::test {
namespace {

/// The child says "now" with a system call that nobody makes otherwise.
constexpr unsigned long kBeginMark = 0x6b696c6c;

/// Its address is the end of what is single-stepped.
extern "C" [[gnu::noinline]] void luo_test_operation_done() { asm volatile("" ::: "memory"); }

/// Keeps this thread, and the children it forks, on one processor: tracer and child take turns anyway, and
/// waking one on another processor costs several times the step itself.
class OneProcessor {
 public:
  OneProcessor() noexcept : valid_{::sched_getaffinity(0, sizeof before_, &before_) == 0} {
    cpu_set_t one;
    CPU_ZERO(&one);
    const int here = ::sched_getcpu();
    if (here < 0) return;
    CPU_SET(static_cast<unsigned>(here), &one);
    ::sched_setaffinity(0, sizeof one, &one);  // slower without it, that is all
  }
  OneProcessor(const OneProcessor&) = delete;
  OneProcessor& operator=(const OneProcessor&) = delete;
  ~OneProcessor() {
    if (valid_) ::sched_setaffinity(0, sizeof before_, &before_);
  }

 private:
  cpu_set_t before_{};
  bool valid_;
};

Result<Tracee> start(const KillCase& c) {
  Tracee child = LUO_TRY(Tracee::fork([&c] {
    ::syscall(SYS_getppid, kBeginMark);
    c.operate();
    luo_test_operation_done();
    ::syscall(SYS_getppid, kBeginMark);
  }));
  while (true) {
    const Stop stop = LUO_TRY(child.to_syscall());
    if (stop.kind == Stop::Kind::Exited || stop.kind == Stop::Kind::Killed)
      return fail(ECHILD, "the child ended before the operation: {}", to_string(stop));
    if (stop.kind == Stop::Kind::SyscallEntry && stop.number == SYS_getppid && stop.argument == kBeginMark) break;
  }
  LUO_TRY(child.to_syscall());  // the mark's own exit
  return child;
}

/// A forked child runs the code that lies at the same place here.
bool is_syscall_instruction(std::uint64_t pc) noexcept {
#if defined(__x86_64__)
  unsigned char bytes[2];
  std::memcpy(bytes, reinterpret_cast<const void*>(pc), sizeof bytes);
  return bytes[0] == 0x0f && bytes[1] == 0x05;
#else
  static_cast<void>(pc);
  return true;  // every step is looked at thoroughly: slower, not less exact
#endif
}

bool is_mark(const Stop& stop) {
  return stop.kind == Stop::Kind::SyscallEntry && stop.number == SYS_getppid && stop.argument == kBeginMark;
}

/// Judges what was recovered, death after death.
class Judge {
 public:
  explicit Judge(const KillCase& c) : case_{c} {}

  Result<> learn() {
    Fd untouched = LUO_TRY_DURING("set up", case_.set_up());
    before_ = LUO_TRY_DURING("recover the state before", case_.recover(std::move(untouched)));
    Fd memfd = LUO_TRY_DURING("set up", case_.set_up());
    Tracee child = LUO_TRY(start(case_));
    while (true) {
      const Stop stop = LUO_TRY(child.to_syscall());
      if (stop.kind == Stop::Kind::Exited || stop.kind == Stop::Kind::Killed || stop.kind == Stop::Kind::Signal)
        return fail(ECHILD, "the operation did not finish: {}", to_string(stop));
      if (is_mark(stop)) break;
    }
    child.kill();
    after_ = LUO_TRY_DURING("recover the state after", case_.recover(std::move(memfd)));
    return {};
  }

  Result<> look(Fd memfd, const std::string& where, KillCount& count) {
    const std::string state = LUO_TRY_DURING(where, case_.recover(std::move(memfd)));
    ++count.recovered;
    if (state == after_) {
      ++count.finished;
      seen_after_ = after_ != before_;
      return {};
    }
    if (case_.also_right && case_.also_right(state)) return {};
    if (state == before_ && !seen_after_) return {};
    return fail(EILSEQ, "{}: {}\nis: {}\nbefore: {}\nafter: {}", where,
                state == before_ ? "the operation was finished, then it was not" : "neither before nor after", state,
                before_, after_);
  }

 private:
  const KillCase& case_;
  std::string before_, after_;
  bool seen_after_ = false;
};

/// Kills a new run at its instruction number `n`.
Result<> kill_really(const KillCase& c, Judge& judge, unsigned long n, KillCount& count) {
  Fd memfd = LUO_TRY(c.set_up());
  {
    Tracee child = LUO_TRY(start(c));
    for (unsigned long i = 0; i < n; ++i) LUO_TRY(child.step());
  }
  return judge.look(std::move(memfd), fmt::format("SIGKILL after {} instructions", n), count);
}

}  // namespace

Result<KillCount> kill_at_every_syscall(const KillCase& c) {
  Judge judge{c};
  LUO_TRY(judge.learn());
  KillCount count;
  for (unsigned long n = 1;; ++n) {
    Fd memfd = LUO_TRY(c.set_up());
    Stop stop{};
    {
      Tracee child = LUO_TRY(start(c));
      for (unsigned long i = 0; i < n; ++i) {
        stop = LUO_TRY(child.to_syscall());
        if (is_mark(stop)) break;
        if (stop.kind == Stop::Kind::Exited || stop.kind == Stop::Kind::Killed)
          return fail(ECHILD, "the operation did not finish: {}", to_string(stop));
      }
    }
    LUO_TRY(judge.look(std::move(memfd), fmt::format("SIGKILL at system call stop {}, {}", n, to_string(stop)), count));
    ++count.points;
    if (is_mark(stop)) return count;
  }
}

Result<KillCount> kill_at_every_instruction(const KillCase& c, unsigned real_kills) {
  const OneProcessor turns;
  Judge judge{c};
  LUO_TRY(judge.learn());
  KillCount count;
  const auto end = reinterpret_cast<std::uintptr_t>(&luo_test_operation_done);
  {
    Fd memfd = LUO_TRY(c.set_up());
    Tracee child = LUO_TRY(start(c));
    MemoryCopy memory = LUO_TRY(MemoryCopy::of(memfd));
    Fd copy = LUO_TRY(memory.copy());
    LUO_TRY(judge.look(std::move(copy), "killed before the first instruction", count));
    std::uint64_t pc = LUO_TRY(child.pc());
    std::uint64_t faults = 0;
    while (pc != end) {
      const bool syscall = is_syscall_instruction(pc);
      const Stop stop = LUO_TRY(child.step());
      if (stop.kind != Stop::Kind::Step)
        return fail(ECHILD, "the operation did not finish: {} at {:#x}", to_string(stop), pc);
      ++count.points;
      const bool thorough = std::exchange(faults, LUO_TRY(child.page_faults())) != faults || syscall;
      const bool changed = thorough ? LUO_TRY(memory.update()) : memory.update_known();
      if (changed) {
        copy = LUO_TRY(memory.copy());
        LUO_TRY(
            judge.look(std::move(copy), fmt::format("killed after instruction {} at {:#x}", count.points, pc), count));
      }
      pc = LUO_TRY(child.pc());
    }
  }
  // Those at the end first finish, those before them do not: the judge's memory starts anew.
  Judge again{c};
  LUO_TRY(again.learn());
  for (unsigned i = 1; i <= real_kills; ++i) LUO_TRY(kill_really(c, again, count.points * i / real_kills, count));
  return count;
}

Result<KillCount> kill_at_some_instructions(const KillCase& c, unsigned kills) {
  const OneProcessor turns;
  Judge judge{c};
  LUO_TRY(judge.learn());
  unsigned long all = 0;
  {
    Fd memfd = LUO_TRY(c.set_up());
    Tracee child = LUO_TRY(start(c));
    while (LUO_TRY(child.pc()) != reinterpret_cast<std::uintptr_t>(&luo_test_operation_done)) {
      const Stop stop = LUO_TRY(child.step());
      if (stop.kind != Stop::Kind::Step) return fail(ECHILD, "the operation did not finish: {}", to_string(stop));
      ++all;
    }
  }
  KillCount count;
  for (unsigned i = 1; i <= kills; ++i) {
    LUO_TRY(kill_really(c, judge, all * i / kills, count));
    ++count.points;
  }
  return count;
}

}  // namespace luo::test
