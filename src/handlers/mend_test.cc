#include "handlers/mend.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace luo::handlers {
namespace {

constexpr unsigned kSealExec = 0x20;

Fd memfd(unsigned flags, std::string_view text) {
  Fd fd = Fd::adopt(memfd_create("mend", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
  EXPECT_EQ(write(fd.raw(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  return fd;
}
/// Not of every kernel that luod runs on (6.3).
bool has_seal_exec() {
  const Fd fd = memfd(0, "probe");
  return fcntl(fd.raw(), F_ADD_SEALS, kSealExec) == 0;
}
struct stat stat_of(const Fd& fd) {
  struct stat st {};
  EXPECT_EQ(fstat(fd.raw(), &st), 0);
  return st;
}
std::string content(const Fd& fd) {
  std::string text(64, '\0');
  text.resize(static_cast<std::size_t>(pread(fd.raw(), text.data(), text.size(), 0)));
  return text;
}

TEST(Mend, WhatCameBackAsItWasIsTheSameFile) {
  Fd fd = memfd(0, "as it was");
  const struct stat st = stat_of(fd);
  const int number = fd.raw();
  const Properties properties = properties_of(number, st.st_mode);
  const auto same = mend(std::move(fd), st, properties);
  ASSERT_TRUE(same) << same.error().what;
  EXPECT_EQ(same->raw(), number);
  EXPECT_EQ(fcntl(number, F_GET_SEALS), 0);
}

TEST(Mend, ASealThatWasAddedLateIsPutBack) {
  Fd fd = memfd(0, "grown up");
  const struct stat st = stat_of(fd);
  const auto mended = mend(std::move(fd), st, {F_SEAL_GROW, 0640});
  ASSERT_TRUE(mended) << mended.error().what;
  EXPECT_EQ(stat_of(*mended).st_ino, st.st_ino) << "not copied";
  EXPECT_EQ(fcntl(mended->raw(), F_GET_SEALS), F_SEAL_GROW);
  EXPECT_EQ(stat_of(*mended).st_mode & 07777U, 0640U);
}

TEST(Mend, OneThatCameBackSealedAgainstWritingCanBeWrittenAgain) {
  if (!has_seal_exec()) GTEST_SKIP() << "this kernel has no MFD_NOEXEC_SEAL";
  Fd fd = memfd(0, "no exec");
  // As Linux 7.3 brings an MFD_NOEXEC_SEAL memfd back: mode 0777, seals 0x3e.
  ASSERT_EQ(fchmod(fd.raw(), 0777), 0);
  ASSERT_EQ(lseek(fd.raw(), 3, SEEK_SET), 3);
  ASSERT_EQ(fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE), 0);
  const struct stat st = stat_of(fd);
  const auto mended = mend(std::move(fd), st, {kSealExec, 0666});
  ASSERT_TRUE(mended) << mended.error().what;
  EXPECT_EQ(fcntl(mended->raw(), F_GET_SEALS), static_cast<int>(kSealExec));
  EXPECT_EQ(stat_of(*mended).st_mode & 07777U, 0666U);
  EXPECT_EQ(content(*mended), "no exec");
  EXPECT_EQ(lseek(mended->raw(), 0, SEEK_CUR), 3);
  EXPECT_EQ(pwrite(mended->raw(), "NO", 2, 0), 2);
}

TEST(Mend, WhatWasOpenForReadingOnlyIsSoAgain) {
  for (const int access : {O_RDONLY, O_WRONLY}) {
    Fd fd = memfd(0, "read only");
    ASSERT_EQ(lseek(fd.raw(), 5, SEEK_SET), 5);
    const struct stat st = stat_of(fd);
    const auto mended = mend(std::move(fd), st, {F_SEAL_GROW, 0, access});
    ASSERT_TRUE(mended) << mended.error().what;
    EXPECT_EQ(stat_of(*mended).st_ino, st.st_ino) << "not copied";
    EXPECT_EQ(fcntl(mended->raw(), F_GETFL) & O_ACCMODE, access);
    EXPECT_EQ(lseek(mended->raw(), 0, SEEK_CUR), 5);
    EXPECT_EQ(fcntl(mended->raw(), F_GET_SEALS), F_SEAL_GROW) << "added before that";
    EXPECT_EQ(stat_of(*mended).st_mode & 07777U, 0U) << "taken away after that";
    EXPECT_EQ(pwrite(mended->raw(), "x", 1, 0), access == O_RDONLY ? -1 : 1);
  }
}

/// F_SEAL_EXEC seals what can be executed against writing, too, and fixes the bits that say so.
TEST(Mend, OneThatWasSealedAgainstExecutionLateCanBeWrittenStill) {
  if (!has_seal_exec()) GTEST_SKIP() << "this kernel has no F_SEAL_EXEC";
  Fd fd = memfd(0, "late");
  ASSERT_EQ(fchmod(fd.raw(), 0777), 0);  // as Linux 7.3 brings each one back
  const struct stat st = stat_of(fd);
  const auto mended = mend(std::move(fd), st, {kSealExec, 0640});
  ASSERT_TRUE(mended) << mended.error().what;
  EXPECT_EQ(fcntl(mended->raw(), F_GET_SEALS), static_cast<int>(kSealExec));
  EXPECT_EQ(stat_of(*mended).st_mode & 07777U, 0640U);
  EXPECT_EQ(pwrite(mended->raw(), "LA", 2, 0), 2);
}

TEST(Mend, WhatAppendedDoesAgain) {
  Fd fd = memfd(0, "log");
  const struct stat st = stat_of(fd);
  const auto mended = mend(std::move(fd), st, {0, st.st_mode & 07777U, O_RDWR | O_APPEND});
  ASSERT_TRUE(mended) << mended.error().what;
  ASSERT_EQ(lseek(mended->raw(), 0, SEEK_SET), 0);
  EXPECT_EQ(write(mended->raw(), "!", 1), 1);
  EXPECT_EQ(content(*mended), "log!");
}

TEST(Mend, SealsThatItHadStay) {
  Fd fd = memfd(0, "sealed");
  ASSERT_EQ(fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL), 0);
  const struct stat st = stat_of(fd);
  const unsigned mode = st.st_mode & 07777U;
  const auto mended = mend(std::move(fd), st, {F_SEAL_WRITE | F_SEAL_SEAL, mode});
  ASSERT_TRUE(mended) << mended.error().what;
  EXPECT_EQ(stat_of(*mended).st_ino, st.st_ino);
  EXPECT_EQ(fcntl(mended->raw(), F_GET_SEALS), F_SEAL_WRITE | F_SEAL_SEAL);
}

}  // namespace
}  // namespace luo::handlers
