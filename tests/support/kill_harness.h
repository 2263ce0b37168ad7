// Kills an operation at every point there is and looks at what it left: all of it, or nothing.
//
//   KillCase c;
//   c.set_up  = [&] { ...; return dup of the arena's memfd };   // here, before each run
//   c.operate = [&] { Tx tx{*arena}; ...; tx.commit(); };        // in a forked child
//   c.recover = [&](Fd memfd) { open, check, describe };         // here, after the death
//   const auto count = kill_at_every_instruction(c);
//
// What `recover` says of the state before the operation and of that after a whole run is asked first.
// Then each death must lead to one of these two, and never back to "before" once it led to "after".
//
// Between instructions only memory matters, because only memory outlives the process. So for every
// instruction the tracer takes a copy of the memfd as it is then, and recovery works on the copy while the
// child stands still: the same as a kill there, without running it all again. Some are really killed, too.
#pragma once
#include <functional>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace luo::test {

struct KillCase {
  /// Makes the state. Returns a descriptor of the memfd in which it lies. May be called often.
  std::function<Result<Fd>()> set_up;
  /// In the forked child: no gtest assertions; a call of _exit or a crash is an error of the run.
  std::function<void()> operate;
  /// Takes over what the dead left, in a memfd of its own or the very one of set_up; says what is there, as
  /// text. An error ends the run, with the place of the kill in front of it.
  std::function<Result<std::string>(Fd memfd)> recover;
  /// States between before and after that are right too (operations of several transactions). Optional.
  std::function<bool(const std::string& state)> also_right;
};

struct KillCount {
  unsigned long points = 0;     ///< places at which the operation was (as good as) killed
  unsigned long recovered = 0;  ///< different memory contents that were recovered from
  unsigned long finished = 0;   ///< of these, how many led to "after"
};

/// At the entry and the exit of each system call, by SIGKILL; a new run for each.
Result<KillCount> kill_at_every_syscall(const KillCase& c);

/// At every instruction, see above; `real_kills` of them, evenly spread, by SIGKILL.
Result<KillCount> kill_at_every_instruction(const KillCase& c, unsigned real_kills = 4);

/// At `kills` instructions, evenly spread, by SIGKILL, a new run for each: for memory that cannot be copied as a
/// memfd's can (hugetlb).
Result<KillCount> kill_at_some_instructions(const KillCase& c, unsigned kills);

/// What to use in this build: under a sanitizer an operation has many times the instructions, most of them
/// the sanitizer's own, so that only the system calls are taken there.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kStepsInstructions = false;
#else
inline constexpr bool kStepsInstructions = true;
#endif
inline Result<KillCount> kill_everywhere(const KillCase& c) {
  auto calls = kill_at_every_syscall(c);
  if (!calls || !kStepsInstructions) return calls;
  return kill_at_every_instruction(c);
}

}  // namespace luo::test
