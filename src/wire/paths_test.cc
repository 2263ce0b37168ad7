#include "wire/paths.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

namespace luo::wire {
namespace {

class PathsTest : public testing::Test {
 protected:
  ~PathsTest() override {
    unsetenv("LUO_SOCKET");
    unsetenv("XDG_RUNTIME_DIR");
  }
};

TEST_F(PathsTest, EnvironmentComesFirstUnlessItIsEmpty) {
  setenv("LUO_SOCKET", "/x/y.sock", 1);
  EXPECT_EQ(socket_path().value(), "/x/y.sock");
  setenv("LUO_SOCKET", "", 1);
  setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(socket_path().value(), geteuid() == 0 ? "/run/luo/luod.sock" : "/run/user/7/luo/luod.sock");
}

TEST_F(PathsTest, OthersThanRootNeedARuntimeFolder) {
  const int child_says = [] {
    const pid_t pid = fork();
    if (pid == 0) {
      if (geteuid() == 0 && seteuid(12345) != 0) _exit(9);
      unsetenv("XDG_RUNTIME_DIR");
      const bool refused = !socket_path() && socket_path().error().code == ENOENT;
      setenv("XDG_RUNTIME_DIR", "/run/user/12345", 1);
      _exit(refused && socket_path().value() == "/run/user/12345/luo/luod.sock" ? 0 : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    return status;
  }();
  EXPECT_EQ(child_says, 0);
}

}  // namespace
}  // namespace luo::wire
