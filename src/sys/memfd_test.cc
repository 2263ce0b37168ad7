#include "sys/memfd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys/pipe.h"

namespace luo {
namespace {

TEST(Memfd, IsBornCloseOnExec) {
  const auto fd = make_memfd("x", 0);
  ASSERT_TRUE(fd);
  EXPECT_EQ(fcntl(fd->raw(), F_GETFD), FD_CLOEXEC);
}

TEST(Memfd, SealedOneIsReadFromItsStartAndCannotChange) {
  const auto fd = sealed_memfd("report", "hello");
  ASSERT_TRUE(fd);
  char text[8] = {};
  EXPECT_EQ(read(fd->raw(), text, sizeof text), 5);
  EXPECT_STREQ(text, "hello");
  EXPECT_EQ(pwrite(fd->raw(), "x", 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(fd->raw(), 1), -1);
  EXPECT_EQ(fcntl(fd->raw(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
}

TEST(Memfd, ReadAllIgnoresTheOffsetAndKeepsTheLimit) {
  const std::string content(200'000, 'q');
  const auto fd = sealed_memfd("big", content);
  ASSERT_TRUE(fd);
  ASSERT_EQ(lseek(fd->raw(), 0, SEEK_END), 200'000);
  EXPECT_EQ(read_all(*fd, Bytes{200'000}).value(), content);
  EXPECT_EQ(read_all(*fd, Bytes{199'999}).error().code, EFBIG);
  EXPECT_EQ(read_all(*fd, Bytes{0}).error().code, EFBIG);
  EXPECT_EQ(read_all(sealed_memfd("empty", "").value(), Bytes{0}).value(), "");
}

TEST(Memfd, ReadAllReadsAPipeToItsEnd) {
  auto pipe = make_pipe();
  ASSERT_TRUE(pipe);
  ASSERT_TRUE(write_all(pipe->write, "abc"));
  pipe->write.close();
  EXPECT_EQ(read_all(pipe->read, Bytes{10}).value(), "abc");
}

TEST(Memfd, WriteAllReportsAFullPipe) {
  const auto pipe = make_pipe();
  ASSERT_TRUE(pipe);
  EXPECT_EQ(write_all(pipe->write, std::string(1 << 20, 'x')).error().code, EAGAIN);
}

}  // namespace
}  // namespace luo
