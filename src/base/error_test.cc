#include "base/error.h"

#include <gtest/gtest.h>

namespace luo {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return fail(EINVAL, "half of {}", n);
  return n / 2;
}

Result<int> quarter(int n) {
  const int h = LUO_TRY_DURING("quarter", half(n));
  return LUO_TRY(half(h));
}

TEST(Error, SaysCallOperandsErrnoAndGoal) {
  EXPECT_EQ(to_string(quarter(3).error()), "quarter: half of 3: Invalid argument [EINVAL]");
}

TEST(Error, PassesThroughTryUnchanged) {
  EXPECT_EQ(quarter(8).value(), 2);
  EXPECT_EQ(quarter(6).error().what, "half of 3");
}

TEST(Error, TakesErrnoBeforeFormattingCanChangeIt) {
  errno = ENOSPC;
  const Error e = sys_fail("write({})", 4).error();
  EXPECT_EQ(e.code, ENOSPC);
}

TEST(Error, NamesAnUnknownNumber) { EXPECT_EQ(errno_text(99999), "error 99999"); }

}  // namespace
}  // namespace luo
