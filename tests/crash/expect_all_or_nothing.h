// An operation on an arena, killed everywhere: all of it or nothing.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>

#include <functional>
#include <iostream>
#include <string>

#include "kho/arena.h"
#include "support/kill_harness.h"

namespace luo::test {

/// `set_up` makes the arena, `operate` is killed at each instruction that matters, `recover` says in what state it was.
inline void expect_all_or_nothing(const std::function<const kho::Arena&()>& set_up,
                                  const std::function<void()>& operate,
                                  const std::function<Result<std::string>(Fd)>& recover) {
  const KillCase c{.set_up = [&]() -> Result<Fd> {
                     Fd fd = Fd::adopt(::fcntl(set_up().fd().raw, F_DUPFD_CLOEXEC, 0));
                     if (!fd.valid()) return sys_fail("fcntl(F_DUPFD_CLOEXEC)");
                     return fd;
                   },
                   .operate = operate,
                   .recover = recover,
                   .also_right = {}};
  const auto count = kill_everywhere(c);
  ASSERT_TRUE(count) << to_string(count.error());
  EXPECT_GT(count->finished, 0U);
  std::cout << count->points << " points, " << count->recovered << " states recovered\n";
}

}  // namespace luo::test
