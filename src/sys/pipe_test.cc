#include "sys/pipe.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "sys/memfd.h"

namespace luo {
namespace {

int waiting_bytes(const Fd& end) {
  int n = -1;
  ioctl(end.raw(), FIONREAD, &n);
  return n;
}

Fd reopened(const Fd& fd, int flags) {
  return Fd::adopt(open(fmt::format("/proc/self/fd/{}", fd.raw()).c_str(), flags | O_CLOEXEC));
}

class PipeTest : public testing::Test {
 protected:
  PipeTest() : pipe{make_pipe().value()}, other{make_pipe().value()} {}
  Pipe pipe, other;
};

TEST_F(PipeTest, BothEndsAreNonBlockingAndCloseOnExec) {
  for (const Fd* end : {&pipe.read, &pipe.write}) {
    EXPECT_EQ(fcntl(end->raw(), F_GETFD), FD_CLOEXEC);
    EXPECT_TRUE(fcntl(end->raw(), F_GETFL) & O_NONBLOCK);
  }
}

TEST_F(PipeTest, ReaderIsGoneOnlyAfterTheLastCloseOfAnyDuplicate) {
  Fd duplicate = Fd::adopt(dup(pipe.read.raw()));
  EXPECT_FALSE(reader_gone(pipe.write.raw()));
  pipe.read.close();
  EXPECT_FALSE(reader_gone(pipe.write.raw()));
  duplicate.close();
  EXPECT_TRUE(reader_gone(pipe.write.raw()));
}

TEST_F(PipeTest, ProvesItsOwnReadEndAndLeavesNothingInIt) {
  const Fd duplicate = Fd::adopt(dup(pipe.read.raw()));
  EXPECT_TRUE(same_pipe(pipe.write.raw(), duplicate).value());
  EXPECT_EQ(waiting_bytes(pipe.read), 0);
  EXPECT_TRUE(same_pipe(pipe.write.raw(), reopened(pipe.read, O_RDONLY | O_NONBLOCK)).value());
}

TEST_F(PipeTest, ProvesABlockingReadEndWithoutBlocking) {
  ASSERT_EQ(fcntl(pipe.read.raw(), F_SETFL, 0), 0);
  EXPECT_TRUE(same_pipe(pipe.write.raw(), pipe.read).value());
  EXPECT_EQ(waiting_bytes(pipe.read), 0);
}

TEST_F(PipeTest, KeepsWhatAHolderWroteIntoThePipe) {
  ASSERT_TRUE(write_all(reopened(pipe.read, O_WRONLY | O_NONBLOCK), "abc"));
  EXPECT_TRUE(same_pipe(pipe.write.raw(), pipe.read).value());
  EXPECT_EQ(waiting_bytes(pipe.read), 3);
}

TEST_F(PipeTest, RefusesEverythingThatIsNotItsReadEnd) {
  const int w = pipe.write.raw();
  EXPECT_FALSE(same_pipe(w, other.read).value());
  EXPECT_FALSE(same_pipe(w, pipe.write).value());
  EXPECT_FALSE(same_pipe(w, reopened(pipe.read, O_RDWR)).value());
  EXPECT_FALSE(same_pipe(w, reopened(pipe.read, O_PATH)).value());
  EXPECT_FALSE(same_pipe(w, make_memfd("x", 0).value()).value());
  EXPECT_FALSE(same_pipe(w, FdRef::borrow(19'999)).value());
  EXPECT_EQ(waiting_bytes(pipe.read), 0);
}

TEST_F(PipeTest, RefusesWhenAHolderFilledThePipe) {
  const Fd filler = reopened(pipe.read, O_WRONLY | O_NONBLOCK);
  while (write_all(filler, std::string(4096, 'x'))) {}
  EXPECT_FALSE(same_pipe(pipe.write.raw(), pipe.read).value());
}

TEST_F(PipeTest, ReportsThatTheWriteEndIsNotOpen) { EXPECT_EQ(same_pipe(19'999, pipe.read).error().code, EBADF); }

}  // namespace
}  // namespace luo
