// Connections: what one that leaves, lies or does not read leaves behind, and what luod does with few descriptors.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>

#include <fstream>

#include "scenario.h"

namespace luo::test {
namespace {

using wire::Command;

class Peers : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  Luod luod_;
};

TEST_F(Peers, AHandleDiesWithTheHandOutThatWasNeverAccepted) {
  {
    const Client client{luod_};
    const Fd session = client.create("s"), file = memfd_with("x");
    ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
    cross(luod_);
  }
  RawClient first = raw_client(luod_, "first");
  auto handed = first.call(Command::RetrieveSession, 0, name_arg("s"));
  ASSERT_EQ(handed->error(), 0);
  const std::uint64_t handle = handed->header.session;
  handed->fds.clear();  // the session goes back
  const Client second{luod_};
  const Fd session = second.retrieve("s");
  ASSERT_TRUE(session.valid()) << luo_last_error();
  EXPECT_EQ(first.call(Command::Finish, handle, plain_arg())->error(), EBADF);
  EXPECT_EQ(first.call(Command::Accept, handle, plain_arg())->error(), EBADF);
  EXPECT_EQ(first.call(Command::RetrieveFd, handle, token_arg(1))->error(), EBADF);
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(second, session.raw(), 1))), "x") << luo_last_error();
}

TEST_F(Peers, AnErrorThatNoClientCanMeetBreaksTheFraming) {
  for (const int error : {EIO, EPERM, -1, EMFILE}) {
    RawClient client = raw_client(luod_);
    const RawSession session = raw_session(client, Command::CreateSession, fmt::format("s{}", error));
    wire::Builder builder;
    builder.start(Command::PreserveFd, client.next_nonce(), session.handle, error).add(token_arg(1));
    ASSERT_TRUE(client.send_bytes(builder.bytes()).has_value());
    EXPECT_TRUE(client.closed_by_luod()) << error;
  }
}

TEST_F(Peers, WhatAMessageThatBreaksTheFramingBroughtIsClosedAtOnce) {
  const Fd file = memfd_with("x");
  const std::vector<int> fds(100, file.raw());
  const pid_t worker = luod_.worker();
  ASSERT_FALSE(died_rather_than_idled(worker));
  const int before = open_descriptors(worker);
  {
    RawClient client = raw_client(luod_);
    wire::QueryArg query{};
    query.size = sizeof query;
    ASSERT_TRUE(client.post(Command::Query, 0, query, fds).has_value());  // takes none
    EXPECT_TRUE(client.closed_by_luod());
  }
  ASSERT_FALSE(died_rather_than_idled(worker));
  EXPECT_EQ(open_descriptors(worker), before);
}

/// Answers wait for two connections that do not read when the worker is killed; both have gone before the next one
/// starts.
TEST_F(Peers, ThoseThatLeaveWhileNobodyServesAreNoObstacle) {
  const auto deaf = [&] {
    RawClient client = raw_client(luod_, "deaf");
    wire::QueryArg query{};
    query.size = sizeof query;
    query.kind = static_cast<std::uint32_t>(wire::QueryKind::Status);
    for (int i = 0; i < 5000; ++i) {
      wire::Builder builder;
      builder.start(Command::Query, client.next_nonce(), 0).add(query);
      if (client.send_bytes(builder.bytes(), {}, MSG_DONTWAIT)) continue;
      luod_.status();
      if (!client.send_bytes(builder.bytes(), {}, MSG_DONTWAIT)) break;
    }
    return client;
  };
  RawClient first = deaf(), second = deaf(), third = deaf();
  const Client owner{luod_};
  const Fd session = owner.create("s");
  const pid_t keeper = luod_.keeper(), worker = luod_.worker();
  ASSERT_EQ(kill(keeper, SIGSTOP), 0);
  kill_and_wait(worker);
  first.close();
  third.close();
  ASSERT_EQ(kill(keeper, SIGCONT), 0);
  const Fd file = memfd_with("x");
  EXPECT_EQ(luo_preserve_fd(owner, session.raw(), file.raw(), 1), 0) << luo_last_error();
  EXPECT_EQ(luod_.status()["worker_restarts"], 1) << luod_.log();
}

// --- few descriptors ---------------------------------------------------------------------------------------------

/// An update of luod needs some descriptors of its own, in several steps: whichever of them is the one that
/// there is none for, the update is refused or done, and nothing is lost.
TEST(FewDescriptorsLeft, AnUpdateOfLuodIsRefusedOrDone) {
  Luod luod{LuodOptions{.nofile = 64}};
  ASSERT_TRUE(luod.running()) << luod.log();
  const Client client{luod};
  const Fd session = client.create("s"), image = Fd::adopt(open(program("luod").c_str(), O_RDONLY | O_CLOEXEC));
  RawClient admin = raw_client(luod, "admin");
  std::vector<Fd> files;
  std::uint64_t token = 0;
  for (int r = 0; r == 0; ++token) {
    files.push_back(memfd_with("x"));
    r = luo_preserve_fd(client, session.raw(), files.back().raw(), token);
    ASSERT_TRUE(r == 0 || r == -EMFILE) << luo_last_error();
  }
  --token;  // was refused
  int done = 0, refused = 0;
  for (int free = 0; free < 12; ++free) {
    SCOPED_TRACE(free);
    const int fd = image.raw();
    const auto answer = admin.call(Command::UpdateLuod, 0, update_arg("", 20'000), {&fd, 1});
    ASSERT_TRUE(answer.has_value()) << answer.error().what << luod.log();
    EXPECT_TRUE(answer->error() == 0 || answer->error() == EMFILE || answer->error() == ENFILE ||
                answer->error() == ECHILD || answer->error() == EIO)
        << answer->error() << answer->text();
    ++(answer->error() == 0 ? done : refused);
    // The next one has one more descriptor to work with.
    ASSERT_EQ(luo_unpreserve_fd(client, session.raw(), static_cast<std::uint64_t>(free)), 0)
        << luo_last_error() << luod.log();
  }
  EXPECT_GT(refused, 3);
  EXPECT_GT(done, 0) << luod.log();
  std::vector<std::uint64_t> tokens(100);
  EXPECT_EQ(luo_session_tokens(client, session.raw(), tokens.data(), tokens.size()), static_cast<int>(token) - 12)
      << luo_last_error();
}

// --- a full disk ----------------------------------------------------------------------------------------------------

/// A file system of 64 KiB with nothing left on it.
class FullDisk : public testing::Test {
 protected:
  void SetUp() override {
    if (mount("luo-test", dir_.path().c_str(), "tmpfs", 0, "size=64k") != 0) GTEST_SKIP() << "may not mount a tmpfs";
    mounted_ = true;
  }
  void TearDown() override {
    if (mounted_) {
      EXPECT_EQ(umount2(dir_.path().c_str(), MNT_DETACH), 0);
    }
  }
  LuodOptions options() const {
    return {.arguments = {"--state-dir", dir_.path()},
            .environment = {{"LUO_SOCKET", dir_ / "luod.sock"}},
            .own_directory = false};
  }
  void fill() {
    std::ofstream file{dir_ / "filler", std::ios::app};
    const std::string block(4096, 'x');
    while (file.write(block.data(), 4096).flush()) {}
  }
  TempDir dir_;
  bool mounted_ = false;
};

TEST_F(FullDisk, StartsOnItOrSaysWhyNot) {
  fill();
  const Ran ran = [&] {
    // It would serve if it could start: only a start that fails comes back.
    Luod luod{options()};
    if (luod.running()) {
      const Client client{luod};
      EXPECT_EQ(client.error(), 0);
      return Ran{.status = luod.stop(), .out = {}, .err = {}};
    }
    return Ran{.status = luod.wait_for_exit(), .out = {}, .err = luod.log()};
  }();
  if (ran.status == 0) return;
  EXPECT_NE(ran.err.find("No space left"), std::string::npos) << ran.err;
  EXPECT_NE(ran.err.find(dir_.path()), std::string::npos) << ran.err;
}

TEST_F(FullDisk, OneThatServesGoesOn) {
  Luod luod{options()};
  ASSERT_TRUE(luod.running()) << luod.log();
  fill();
  const Client client{luod};
  const Fd session = client.create("s"), file = memfd_with("x");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0) << luo_last_error();
  luod.kill_worker();
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), -EEXIST) << luo_last_error();
  luod.kill_keeper();
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), -EEXIST) << luo_last_error();
  const Ran ran = luoctl(luod, {"update", "luod", "--json"});
  EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), -EEXIST) << luo_last_error();
  const Ran crossed = luoctl(luod, {"update", "simulated", "--json"});
  EXPECT_EQ(crossed.status, 0) << crossed.out << crossed.err;
  const Client after{luod};
  const Fd again = after.retrieve("s");
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(after, again.raw(), 1))), "x") << luo_last_error();
}

}  // namespace
}  // namespace luo::test
