// Sessions through libluo and a real luod: errno in the order of Linux 7.3, and what a last close is.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scenario.h"
#include "sys/packet_socket.h"

namespace luo::test {
namespace {

class Sessions : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  std::size_t count() { return luod_.list()["sessions"].size(); }
  void cross() { test::cross(luod_); }
  Luod luod_;
  Client client_{luod_};
};

TEST_F(Sessions, CreateChecksTheNameAndThenWhetherItIsThere) {
  const Fd first = client_.create("a");
  ASSERT_TRUE(first.valid());
  EXPECT_EQ(luo_session_create(client_, ""), -EINVAL);
  EXPECT_EQ(luo_session_create(client_, std::string(64, 'x').c_str()), -EINVAL);
  EXPECT_EQ(luo_session_create(client_, std::string(200, 'x').c_str()), -EINVAL);
  EXPECT_EQ(luo_session_create(client_, "a"), -EEXIST);
  const Fd longest = client_.create(std::string(63, 'x'));
  EXPECT_TRUE(longest.valid());
  const Fd odd = client_.create("/\x01\xff \n");
  EXPECT_TRUE(odd.valid());
  EXPECT_NE(fcntl(first.raw(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(count(), 3U);
}

TEST_F(Sessions, AFullTableComesBeforeTheName) {
  std::vector<Fd> fill;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlimit low{64, limit.rlim_max};
  setrlimit(RLIMIT_NOFILE, &low);
  for (;;) {
    Fd next = Fd::adopt(dup(0));
    if (!next.valid()) break;
    fill.push_back(std::move(next));
  }
  const int create = luo_session_create(client_, ""), retrieve = luo_session_retrieve(client_, "nobody");
  setrlimit(RLIMIT_NOFILE, &limit);
  EXPECT_EQ(create, -EMFILE);
  EXPECT_EQ(retrieve, -EMFILE);
}

TEST_F(Sessions, RetrieveFindsOnlyWhatCrossed) {
  const Fd session = client_.create("a");
  EXPECT_EQ(luo_session_retrieve(client_, "a"), -ENOENT);
  EXPECT_EQ(luo_session_retrieve(client_, ""), -ENOENT);
  EXPECT_EQ(luo_session_retrieve(client_, std::string(64, 'x').c_str()), -ENOENT);
  cross();
  const Client after{luod_};
  const Fd incoming = after.retrieve("a");
  ASSERT_TRUE(incoming.valid()) << luo_last_error();
  EXPECT_EQ(luo_session_retrieve(after, "a"), -EINVAL);
  EXPECT_EQ(luo_session_finish(after, incoming.raw()), 0);
  EXPECT_EQ(luo_session_finish(after, incoming.raw()), 0) << "a second time";
  EXPECT_EQ(luo_session_retrieve(after, "a"), -EINVAL) << "finished, but held";
  EXPECT_EQ(luo_preserve_fd(after, incoming.raw(), 0, 1), -EINVAL);
  EXPECT_EQ(luo_retrieve_fd(after, incoming.raw(), 1), -ENOENT);
}

TEST_F(Sessions, AnOutgoingOneMayHaveTheNameOfAnIncomingOne) {
  const Fd before = client_.create("a");
  cross();
  const Client after{luod_};
  const Fd outgoing = after.create("a");
  ASSERT_TRUE(outgoing.valid()) << luo_last_error();
  const Fd incoming = after.retrieve("a");
  ASSERT_TRUE(incoming.valid()) << luo_last_error();
  EXPECT_EQ(luo_session_renew(after, incoming.raw()), -EEXIST);
  EXPECT_EQ(luo_session_finish(after, outgoing.raw()), -EINVAL);
  EXPECT_EQ(count(), 2U);
}

TEST_F(Sessions, NamesAreToldOfBothKinds) {
  const std::string longest(63, 'n');
  const Fd session = client_.create(longest);
  char name[LUO_NAME_LENGTH];
  ASSERT_EQ(luo_session_get_name(client_, session.raw(), name), 0);
  EXPECT_EQ(name, longest);
  cross();
  const Client after{luod_};
  const Fd incoming = after.retrieve(longest);
  ASSERT_EQ(luo_session_get_name(after, incoming.raw(), name), 0);
  EXPECT_EQ(name, longest);
  EXPECT_EQ(luo_session_get_name(after, session.raw(), name), -ENOTTY) << "that capability is gone";
}

TEST_F(Sessions, WhatIsNoSessionIsNotTaken) {
  char name[LUO_NAME_LENGTH];
  int pipe_ends[2];
  ASSERT_EQ(pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK), 0);
  const Fd r = Fd::adopt(pipe_ends[0]), w = Fd::adopt(pipe_ends[1]), file = memfd_with("x");
  for (const int fd : {r.raw(), w.raw(), file.raw()}) {
    EXPECT_EQ(luo_session_get_name(client_, fd, name), -ENOTTY);
    EXPECT_EQ(luo_preserve_fd(client_, fd, file.raw(), 1), -ENOTTY);
  }
  EXPECT_EQ(luo_session_get_name(client_, -1, name), -EBADF);
  EXPECT_EQ(luo_session_get_name(client_, 1000, name), -EBADF);
}

TEST_F(Sessions, TheLastCloseGivesItUp) {
  Fd session = client_.create("a");
  Fd copy = Fd::adopt(dup(session.raw()));
  session.close();
  EXPECT_EQ(count(), 1U) << "a dup keeps it";
  copy.close();
  EXPECT_EQ(count(), 0U);
}

TEST_F(Sessions, AChildThatInheritedItKeepsIt) {
  Fd session = client_.create("a");
  int go[2];
  ASSERT_EQ(pipe(go), 0);
  const pid_t child = fork();
  if (child == 0) {
    char c;
    close(go[1]);
    [[maybe_unused]] const ssize_t n = read(go[0], &c, 1);
    _exit(0);
  }
  close(go[0]);
  session.close();
  EXPECT_EQ(count(), 1U);
  close(go[1]);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(count(), 0U);
}

TEST_F(Sessions, OneInFlightIsKept) {
  Fd session = client_.create("a");
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  Fd left = Fd::adopt(ends[0]), right = Fd::adopt(ends[1]);
  const int number = session.raw();
  const std::byte byte{1};
  ASSERT_TRUE(send(left, {&byte, 1}, {&number, 1}).has_value());
  session.close();
  EXPECT_EQ(count(), 1U);
  right.close();  // with the message unread
  EXPECT_EQ(count(), 0U);
}

TEST_F(Sessions, TheDeathOfItsHolderGivesItUp) {
  EXPECT_EQ(in_fork([&] {
              const Client own{luod_};
              const Fd session = own.create("a"), file = memfd_with("x");
              return session.valid() && luo_preserve_fd(own, session.raw(), file.raw(), 1) == 0 ? 0 : 1;
            }),
            0);
  EXPECT_EQ(count(), 0U);
  EXPECT_EQ(luod_.status()["files"], 0);
}

TEST_F(Sessions, ANameIsFreeAsSoonAsItsHolderHasClosed) {
  for (int i = 0; i < 2000; ++i) {
    const Fd session = client_.create("a");
    ASSERT_TRUE(session.valid()) << i << ": " << luo_last_error();
  }
  EXPECT_EQ(count(), 0U);
}

TEST_F(Sessions, AFileIsFreeAsSoonAsItsHolderHasClosed) {
  const Fd file = memfd_with("x");
  for (int i = 0; i < 500; ++i) {
    const Fd session = client_.create(i % 2 == 0 ? "a" : "b");
    ASSERT_TRUE(session.valid()) << i << ": " << luo_last_error();
    ASSERT_EQ(luo_preserve_fd(client_, session.raw(), file.raw(), 1), 0) << i << ": " << luo_last_error();
  }
}

TEST_F(Sessions, AnIncomingOneIsFreeAsSoonAsItsUnacceptedReceiverIsGone) {
  const Fd session = client_.create("a"), file = memfd_with("content");
  ASSERT_EQ(luo_preserve_fd(client_, session.raw(), file.raw(), 7), 0);
  cross();
  for (int i = 0; i < 50; ++i) {
    // A receiver that gets the descriptor and dies before it has said so.
    RawClient raw = *RawClient::connect(luod_.socket());
    ASSERT_TRUE(raw.hello().has_value());
    wire::NameArg arg{};
    arg.size = sizeof arg;
    wire::put_text(arg.name, "a");
    const auto answer = raw.call(wire::Command::RetrieveSession, 0, arg);
    ASSERT_TRUE(answer.has_value());
    ASSERT_EQ(answer->error(), 0) << i << ": " << answer->text();
    ASSERT_EQ(answer->fds.size(), 1U);
  }
  const Client after{luod_};
  const Fd incoming = after.retrieve("a");
  ASSERT_TRUE(incoming.valid()) << luo_last_error();
  const Fd back = Fd::adopt(luo_retrieve_fd(after, incoming.raw(), 7));
  EXPECT_EQ(content_of(back), "content");
}

TEST_F(Sessions, AnUnacceptedNewOneVanishes) {
  RawClient raw = *RawClient::connect(luod_.socket());
  ASSERT_TRUE(raw.hello().has_value());
  wire::NameArg arg{};
  arg.size = sizeof arg;
  wire::put_text(arg.name, "a");
  {
    const auto answer = raw.call(wire::Command::CreateSession, 0, arg);
    ASSERT_EQ(answer->error(), 0);
    EXPECT_EQ(luod_.list()["sessions"][0]["holder"], "handed out");
  }
  EXPECT_EQ(count(), 0U);
}

TEST_F(Sessions, ARetrievedOneIsFinishedByItsLastClose) {
  const Fd session = client_.create("a"), file = memfd_with("x");
  ASSERT_EQ(luo_preserve_fd(client_, session.raw(), file.raw(), 1), 0);
  cross();
  const Client after{luod_};
  after.retrieve("a").close();
  EXPECT_EQ(luo_session_retrieve(after, "a"), -ENOENT);
  EXPECT_EQ(luod_.status()["files"], 0);
}

TEST_F(Sessions, CanBeGivenToAnotherProcessAndUsedThere) {
  const Fd session = client_.create("a"), file = memfd_with("x");
  ASSERT_EQ(luo_preserve_fd(client_, session.raw(), file.raw(), 1), 0);
  EXPECT_EQ(in_fork([&] {
              if (luo_unpreserve_fd(client_, session.raw(), 1) != -EOWNERDEAD) return 1;
              const Client own{luod_};
              char name[LUO_NAME_LENGTH];
              if (luo_session_get_name(own, session.raw(), name) != 0 || std::string{name} != "a") return 2;
              if (luo_preserve_fd(own, session.raw(), file.raw(), 2) != -EBUSY) return 3;
              const Fd other = memfd_with("y");
              if (luo_preserve_fd(own, session.raw(), other.raw(), 1) != -EEXIST) return 4;
              if (luo_preserve_fd(own, session.raw(), other.raw(), 2) != 0) return 5;
              return luo_unpreserve_fd(own, session.raw(), 1) == 0 ? 0 : 6;
            }),
            0);
  std::uint64_t tokens[2] = {};
  EXPECT_EQ(luo_session_tokens(client_, session.raw(), tokens, 2), 1);
  EXPECT_EQ(tokens[0], 2U);
}

TEST_F(Sessions, RetrieveWaitGetsOneThatComesLater) {
  EXPECT_EQ(luo_session_retrieve_wait(client_, "a", 0), -ETIMEDOUT);
  EXPECT_EQ(luo_session_retrieve_wait(client_, "a", 20), -ETIMEDOUT);
  const Fd session = client_.create("a");
  RawClient waiter = *RawClient::connect(luod_.socket());
  ASSERT_TRUE(waiter.hello("waiter").has_value());
  wire::WaitArg arg{};
  arg.size = sizeof arg;
  arg.timeout_ms = UINT32_MAX;
  wire::put_text(arg.name, "a");
  ASSERT_TRUE(waiter.post(wire::Command::RetrieveWait, 0, arg).has_value());
  luod_.kill_worker();  // waiting survives that
  cross();
  const auto answer = waiter.answer();
  ASSERT_TRUE(answer.has_value()) << answer.error().what;
  EXPECT_EQ(answer->error(), 0) << answer->text();
  EXPECT_EQ(answer->fds.size(), 1U);
}

}  // namespace
}  // namespace luo::test
