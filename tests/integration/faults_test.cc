// Each system call of luod's worker that can fail for want of a resource, made to fail, in each kind of request: the
// client gets what it asked for, or the errno and nothing has changed; nothing leaks; luod serves on.
#include <map>

#include "kill_operations.h"
#include "support/syscall_fault.h"

namespace luo::test {
namespace {

constexpr int kCodes[] = {EMFILE, ENFILE, ENOMEM, ENOSPC, ENOBUFS, ETOOMANYREFS, EAGAIN};

class Faults : public Kills {
 protected:
  static bool names(const std::string& result, int code) {
    return result.find(strerrorname_np(code)) != std::string::npos || result.starts_with(fmt::format("-{} ", code));
  }
};

TEST_P(Faults, InEachSystemCall) {
  const std::string name = GetParam().name;
  const std::string empty = luod_.state();
  const Seen whole = run([](auto call) { call(); });
  ASSERT_EQ(luod_.state(), empty);
  const Seen untouched = run([](auto) {});
  ASSERT_EQ(luod_.state(), empty);
  std::map<std::string, int> seen_at;
  const pid_t worker = luod_.worker();
  for (const int code : kCodes) {
    for (unsigned n = 1;; ++n) {
      ASSERT_LT(n, 500U) << "it never ends";
      std::string hit;
      const Seen seen = run([&](auto call) {
        auto fault = SyscallFault::arm(luod_.worker(), code, n);
        if (!fault && fault.error().code == ENOSYS) GTEST_SKIP() << fault.error().what;
        ASSERT_TRUE(fault.has_value()) << fault.error().what;
        call();
        luod_.status();  // what it does without being asked is done
        hit = fault->hit();
      });
      if (IsSkipped()) return;
      if (hit.empty()) {
        ASSERT_EQ(seen, whole) << strerrorname_np(code) << " was not given";
        break;
      }
      ++seen_at[fmt::format("{} {}", strerrorname_np(code), hit)];
      SCOPED_TRACE(fmt::format("{} from {}, the {}. such call\n{}", strerrorname_np(code), hit, n,
                               luod_.log().substr(luod_.log().size() > 1500 ? luod_.log().size() - 1500 : 0)));
      // Of a batch some may be refused, each with its errno.
      if (is_in_parts(name) && seen.result != whole.result) {
        EXPECT_TRUE(tells(seen.result, code)) << seen.result;
      } else if (seen.result != whole.result) {
        EXPECT_TRUE(names(seen.result, code)) << seen.result;
        EXPECT_EQ(seen.state, untouched.state);
      } else {
        EXPECT_EQ(seen, whole);
      }
      ASSERT_EQ(luod_.state(), empty) << "something is left";
    }
  }
  for (const auto& [where, times] : seen_at) RecordProperty(where, times);
  if (worker != luod_.worker()) RecordProperty("worker was replaced", 1);
}

INSTANTIATE_TEST_SUITE_P(Of, Faults, testing::ValuesIn(kOperations),
                         [](const auto& of) { return std::string{of.param.name}; });

}  // namespace
}  // namespace luo::test
