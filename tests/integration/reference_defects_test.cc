// Defects of the kernel's LUO that this one must not have, each as a client meets it. Those of FLBs (one that nobody
// asked for is never finished; what came in is never freed) are in luo/flbs_test.cc, that of a close while a handler
// is not done, in luo/session_test.cc.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scenario.h"

namespace luo::test {
namespace {

class ReferenceDefects : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  Luod luod_;
};

/// D1: a refused duplicate at a full block of sessions makes the next kernel panic.
TEST_F(ReferenceDefects, ARefusedDuplicateDoesNotBreakTheNextSide) {
  std::vector<Fd> held;
  for (int n = 1; n <= 102; ++n) {
    const Client client{luod_};
    held.push_back(client.create(fmt::format("s{}", n)));
    ASSERT_TRUE(held.back().valid());
    if (n % 51 == 0) {
      EXPECT_EQ(luo_session_create(client, "s1"), -EEXIST);
    }
  }
  cross(luod_);
  const Client after{luod_};
  for (int n = 1; n <= 102; ++n) {
    const Fd session = after.retrieve(fmt::format("s{}", n));
    EXPECT_TRUE(session.valid()) << luo_last_error();
  }
}

/// D3: a session whose descriptor cannot be delivered is destroyed.
TEST_F(ReferenceDefects, ASessionThatCouldNotBeDeliveredIsStillThere) {
  {
    const Client client{luod_};
    const Fd session = client.create("s"), file = memfd_with("state");
    ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
    cross(luod_);
  }
  for (int i = 0; i < 3; ++i) {
    RawClient lost = raw_client(luod_, "lost");
    const auto answer = lost.call(wire::Command::RetrieveSession, 0, name_arg("s"));  // and never accepts
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->error(), 0);
  }
  // A table without a free number: the answer's descriptor has no place.
  EXPECT_EQ(in_fork([&] {
              const Client client{luod_};
              rlimit limit{0, 0};
              for (int fd = 3; fcntl(fd, F_GETFD) >= 0; ++fd)
                limit.rlim_cur = limit.rlim_max = static_cast<rlim_t>(fd) + 1;
              setrlimit(RLIMIT_NOFILE, &limit);
              return luo_session_retrieve(client, "s") == -EMFILE ? 0 : 1;
            }),
            0);
  const Client client{luod_};
  const Fd session = client.retrieve("s");
  ASSERT_TRUE(session.valid()) << luo_last_error();
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(client, session.raw(), 1))), "state");
}

/// D4: a request reports an error after it has taken effect.
TEST_F(ReferenceDefects, ARequestWhoseAnswerIsLostIsNotDoneTwiceNorReportedAsFailed) {
  const Client client{luod_};
  const Fd session = client.create("s");
  for (std::uint64_t token = 1; token <= 20; ++token) {
    const Fd file = memfd_with("x");
    const pid_t worker = luod_.worker();
    const pid_t killer = fork();
    if (killer == 0) {
      kill(worker, SIGKILL);
      _exit(0);
    }
    EXPECT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), token), 0) << luo_last_error();
    int status = 0;
    waitpid(killer, &status, 0);
    wait_for_death(worker);
  }
  EXPECT_EQ(luod_.show("s")["files"], 20);
}

/// D5: seals that are added, and memory that is allocated, after the preserve are lost.
TEST_F(ReferenceDefects, WhatHappensToAFileAfterItsPreserveIsNotLost) {
  Fd file = Fd::adopt(memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  {
    const Client client{luod_};
    const Fd session = client.create("s");
    ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0) << luo_last_error();
    ASSERT_EQ(fallocate(file.raw(), FALLOC_FL_KEEP_SIZE, 0, 1 << 20), 0);
    ASSERT_EQ(write(file.raw(), "late", 4), 4);
    ASSERT_EQ(fcntl(file.raw(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE), 0);
    cross(luod_);
  }
  file.close();
  const Client client{luod_};
  const Fd session = client.retrieve("s");
  const Fd back = Fd::adopt(luo_retrieve_fd(client, session.raw(), 1));
  ASSERT_TRUE(back.valid()) << luo_last_error();
  EXPECT_EQ(content_of(back), "late");
  EXPECT_EQ(fcntl(back.raw(), F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_WRITE);
  struct stat st {};
  ASSERT_EQ(fstat(back.raw(), &st), 0);
  EXPECT_EQ(st.st_blocks * 512, 1 << 20);
}

}  // namespace
}  // namespace luo::test
