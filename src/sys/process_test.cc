#include "sys/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/memfd.h"

namespace luo {
namespace {

int exit_status(pid_t pid) {
  int status = -1;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST(Process, PidfdPollsReadableWhenTheProcessEnded) {
  const pid_t pid = fork();
  if (pid == 0) _exit(3);
  const auto pidfd = open_pidfd(pid);
  ASSERT_TRUE(pidfd);
  pollfd wait{pidfd->raw(), POLLIN, 0};
  EXPECT_EQ(poll(&wait, 1, 20'000), 1);
  EXPECT_EQ(exit_status(pid), 3);
  EXPECT_EQ(open_pidfd(pid).error().code, ESRCH);
}

TEST(Process, ChildThatSharesFilesOpensThemForTheParent) {
  const auto pid = clone_sharing_files();
  ASSERT_TRUE(pid);
  if (*pid == 0) {
    const int fd = memfd_create("shared", 0);
    _exit(fd > 0 && fd < 255 ? fd : 255);
  }
  const int number = exit_status(*pid);
  ASSERT_LT(number, 255);
  const Fd fd = Fd::adopt(number);
  EXPECT_EQ(read_link(fd).value(), "/memfd:shared (deleted)");
}

TEST(Process, ExecFdRunsAnImageFromADescriptor) {
  const Fd image = Fd::adopt(open("/bin/sh", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(image.valid());
  const pid_t pid = fork();
  if (pid == 0) {
    const char* argv[] = {"sh", "-c", "exit $CODE", nullptr};
    const char* envp[] = {"CODE=42", nullptr};
    (void)exec_fd(image, argv, envp);
    _exit(1);
  }
  EXPECT_EQ(exit_status(pid), 42);
}

TEST(Process, ExecFdReturnsWhatWentWrong) {
  const char* argv[] = {"x", nullptr};
  const char* envp[] = {nullptr};
  EXPECT_EQ(exec_fd(make_memfd("x", 0).value(), argv, envp).code, ENOEXEC);
  EXPECT_EQ(exec_fd(FdRef::borrow(19'999), argv, envp).code, EBADF);
}

TEST(Process, ReadLinkReportsAClosedNumber) { EXPECT_EQ(read_link(FdRef::borrow(19'999)).error().code, ENOENT); }

}  // namespace
}  // namespace luo
