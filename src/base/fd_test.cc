#include "base/fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

namespace luo {
namespace {

bool is_open(int number) { return fcntl(number, F_GETFD) >= 0; }

TEST(Fd, ClosesWhenItLeavesScope) {
  int number = -1;
  {
    const Fd fd = Fd::adopt(open("/dev/null", O_RDONLY | O_CLOEXEC));
    number = fd.raw();
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(Fd, MovesAndSurvivesAMoveToItself) {
  Fd a = Fd::adopt(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int number = a.raw();
  Fd b = std::move(a);
  EXPECT_FALSE(a.valid());
  Fd& alias = b;
  b = std::move(alias);
  EXPECT_EQ(b.raw(), number);
  EXPECT_TRUE(is_open(number));
}

TEST(Fd, KeepsErrnoOverClose) {
  Fd fd = Fd::adopt(open("/dev/null", O_RDONLY | O_CLOEXEC));
  errno = ENOSPC;
  fd.close();
  EXPECT_EQ(errno, ENOSPC);
}

TEST(FdDeath, AbortsWhenSomeoneElseClosedOurNumber) { EXPECT_DEATH(close_number(19999), "not open"); }

}  // namespace
}  // namespace luo
