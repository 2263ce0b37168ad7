// Two kills within one request: the worker at a system call of its work, and the next one at a system call of what
// it does to go on from there. The request takes effect once all the same.
#include "kill_operations.h"
#include "support/kill_process.h"

namespace luo::test {
namespace {

class DoubleKills : public Kills {};

TEST_P(DoubleKills, TheWorkerAndThenTheNextOne) {
  const std::string empty = luod_.state();
  const Seen whole = run([](auto call) { call(); });
  ASSERT_EQ(luod_.state(), empty);
  unsigned n = 1;
  int pairs = 0;
  for (bool more = true; more; ++n) {
    ASSERT_LT(n, 1000U) << "it never ends";
    // From its birth to its event loop a worker has some 150 stops; what the dead one left is settled among the last.
    for (const unsigned m : {3U, 41U, 90U + n % 7, 120U + n % 11, 150U + n % 13}) {
      bool first = false, second = false;
      const Seen seen = run([&](auto call) {
        const pid_t worker = luod_.worker();
        auto next = SyscallKill::arm_next_child(luod_.keeper(), m);
        ASSERT_TRUE(next.has_value()) << next.error().what;
        auto kill = SyscallKill::arm(worker, n);
        ASSERT_TRUE(kill.has_value()) << kill.error().what;
        call();
        first = died_rather_than_idled(worker);
        luod_.status();  // somebody serves
        const auto outcome = next->wait(std::chrono::milliseconds{0});
        second = outcome.has_value() && outcome->killed;
      });
      ASSERT_EQ(seen, whole) << "killed at stop " << n << ", the next at " << m << "\n" << luod_.log();
      ASSERT_EQ(luod_.state(), empty) << "killed at stop " << n << ", the next at " << m;
      pairs += first && second ? 1 : 0;
      if (!(more = first)) break;
    }
  }
  EXPECT_GT(pairs, 20) << "of " << n;
  RecordProperty("pairs", pairs);
}

INSTANTIATE_TEST_SUITE_P(Of, DoubleKills, testing::ValuesIn([] {
                           std::vector<Operation> chosen;
                           for (const Operation& operation : kOperations)
                             for (const char* name :
                                  {"create", "preserve", "preserve_many", "retrieve_session", "retrieve", "finish",
                                   "unpreserve", "renew", "close_outgoing", "cross"})
                               if (std::string_view{operation.name} == name) chosen.push_back(operation);
                           return chosen;
                         }()),
                         [](const auto& of) { return std::string{of.param.name}; });

}  // namespace
}  // namespace luo::test
