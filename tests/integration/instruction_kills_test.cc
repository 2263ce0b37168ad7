// luod's worker is stepped through each kind of request, one instruction after the other, and killed at some of them:
// close together where a request begins, further apart later. kills_test.cc does it at every system call; the engine
// and the arena are killed at every instruction in tests/crash.
#include <random>

#include "kill_operations.h"
#include "support/kill_process.h"

namespace luo::test {
namespace {

class InstructionKills : public Kills {};

TEST_P(InstructionKills, OfTheWorker) {
  const std::string empty = luod_.state();
  const Seen whole = run([](auto call) { call(); });
  ASSERT_EQ(luod_.state(), empty);
  std::minstd_rand random{static_cast<unsigned>(std::hash<std::string_view>{}(GetParam().name))};
  int kills = 0;
  for (unsigned n = 1;; n += 1 + n / 2 + static_cast<unsigned>(random()) % (n + 1)) {
    ASSERT_LT(n, 100'000'000U) << "it never ends";
    bool killed = false;
    const Seen seen = run([&](auto call) {
      const pid_t worker = luod_.worker();
      auto kill = SyscallKill::arm_at_instruction(worker, n);
      ASSERT_TRUE(kill.has_value()) << kill.error().what;
      call();
      killed = died_rather_than_idled(worker);
    });
    ASSERT_EQ(seen, whole) << "killed at instruction " << n;
    ASSERT_EQ(luod_.state(), empty) << "killed at instruction " << n;
    if (!killed) break;
    ++kills;
  }
  EXPECT_GT(kills, 8) << "so few instructions?";
  RecordProperty("kills", kills);
}

INSTANTIATE_TEST_SUITE_P(Of, InstructionKills, testing::ValuesIn(kOperations),
                         [](const auto& of) { return std::string{of.param.name}; });

}  // namespace
}  // namespace luo::test
