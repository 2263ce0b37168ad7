// A connection whose server is killed, at random moments and between any two calls: what its successor learns.
#include "luo/tcp.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>
#include <string>
#include <string_view>

#include "base/fd.h"

namespace luo {
namespace {

struct Pair {
  Fd server, client;
};

Pair connected() {
  const Fd listener = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  socklen_t size = sizeof address;
  EXPECT_EQ(::bind(listener.raw(), generic, size), 0);
  EXPECT_EQ(::listen(listener.raw(), 1), 0);
  EXPECT_EQ(::getsockname(listener.raw(), generic, &size), 0);
  Pair pair;
  pair.client = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(pair.client.raw(), generic, size), 0);
  pair.server = Fd::adopt(::accept4(listener.raw(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(pair.server.valid());
  return pair;
}

/// Memory that children share.
class Memory {
 public:
  explicit Memory(std::size_t size) : size_{size} {
    at_ = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(at_, MAP_FAILED);
  }
  ~Memory() { ::munmap(at_, size_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* at() const noexcept { return at_; }
  std::size_t size() const noexcept { return size_; }

 private:
  void* at_;
  std::size_t size_;
};

void wait_readable(int fd) {
  pollfd file{fd, POLLIN, 0};
  ASSERT_EQ(::poll(&file, 1, 30'000), 1);
}

luo_tcp_position position(const Fd& socket, luo_tcp_side side = LUO_TCP_ACCEPTED) {
  luo_tcp_position found{};
  EXPECT_EQ(luo_tcp_get_position(socket.raw(), side, &found), 0) << luo_last_error();
  return found;
}

std::string input(const luo_tcp* tcp) {
  iovec pieces[2];
  luo_tcp_input(tcp, pieces);
  return std::string{static_cast<char*>(pieces[0].iov_base), pieces[0].iov_len}.append(
      static_cast<char*>(pieces[1].iov_base), pieces[1].iov_len);
}

TEST(TcpPosition, CountsWhatWasReadAndWritten) {
  const Pair pair = connected();
  EXPECT_EQ(position(pair.server).received, 0U);
  EXPECT_EQ(position(pair.server).sent, 0U);
  EXPECT_EQ(position(pair.client, LUO_TCP_CONNECTED).sent, 0U);
  ASSERT_EQ(::send(pair.client.raw(), "0123456789", 10, 0), 10);
  EXPECT_EQ(position(pair.client, LUO_TCP_CONNECTED).sent, 10U);
  char bytes[100];
  ASSERT_EQ(::recv(pair.server.raw(), bytes, 4, MSG_WAITALL), 4);
  EXPECT_EQ(position(pair.server).received, 4U);
  ASSERT_EQ(::send(pair.server.raw(), "abc", 3, 0), 3);
  EXPECT_EQ(position(pair.server).sent, 3U);
  wait_readable(pair.client.raw());
  EXPECT_EQ(position(pair.client, LUO_TCP_CONNECTED).received, 0U);
}

TEST(TcpPosition, TheEndOfADirectionIsNoByteOfIt) {
  const Pair pair = connected();
  char bytes[100];
  ASSERT_EQ(::send(pair.client.raw(), "0123", 4, 0), 4);
  ASSERT_EQ(::recv(pair.server.raw(), bytes, 1, MSG_WAITALL), 1);
  ASSERT_EQ(::shutdown(pair.client.raw(), SHUT_WR), 0);
  pollfd end{pair.server.raw(), POLLRDHUP, 0};
  ASSERT_EQ(::poll(&end, 1, 30'000), 1);
  EXPECT_EQ(position(pair.client, LUO_TCP_CONNECTED).sent, 4U);
  EXPECT_EQ(position(pair.server).received, 1U) << "the end has come, three bytes before it wait";
  ASSERT_EQ(::recv(pair.server.raw(), bytes, 3, MSG_WAITALL), 3);
  EXPECT_EQ(position(pair.server).received, 4U) << "all bytes have been read, the end has not";
  ASSERT_EQ(::recv(pair.server.raw(), bytes, 1, 0), 0);
  EXPECT_EQ(position(pair.server).received, 4U);
  ASSERT_EQ(::send(pair.server.raw(), "abc", 3, 0), 3);
  EXPECT_EQ(position(pair.server).sent, 3U);
  luo_tcp_position none{};
  ASSERT_EQ(::shutdown(pair.server.raw(), SHUT_WR), 0);
  wait_readable(pair.client.raw());
  EXPECT_EQ(luo_tcp_get_position(pair.server.raw(), LUO_TCP_ACCEPTED, &none), -ENOTCONN)
      << "both ends: nothing to go on with";
}

TEST(TcpPosition, RefusesWhatDoesNotCount) {
  luo_tcp_position none{.received = 7, .sent = 7};
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  EXPECT_EQ(luo_tcp_get_position(ends[0], LUO_TCP_ACCEPTED, &none), -EOPNOTSUPP);
  EXPECT_NE(std::string_view{luo_last_error()}.find("only TCP sockets count"), std::string_view::npos);
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT_EQ(luo_tcp_get_position(ends[0], LUO_TCP_ACCEPTED, &none), -EBADF);
  const Fd alone = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(luo_tcp_get_position(alone.raw(), LUO_TCP_CONNECTED, &none), -ENOTCONN);
  const Pair reset = connected();
  const linger now{.l_onoff = 1, .l_linger = 0};
  ASSERT_EQ(::setsockopt(reset.client.raw(), SOL_SOCKET, SO_LINGER, &now, sizeof now), 0);
  ::close(::dup(reset.client.raw()));
  ASSERT_EQ(::dup2(alone.raw(), reset.client.raw()), reset.client.raw()) << "closes it";
  wait_readable(reset.server.raw());
  EXPECT_EQ(luo_tcp_get_position(reset.server.raw(), LUO_TCP_ACCEPTED, &none), -ENOTCONN);
  EXPECT_EQ(none.received, 7U) << "an error changes nothing";
}

class Recovery : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(luo_tcp_create(memory_.at(), memory_.size(), LUO_TCP_ACCEPTED, &tcp_), 0); }
  int recover() { return luo_tcp_recover(memory_.at(), memory_.size(), pair_.server.raw(), &tcp_); }
  void client_says(std::string_view text) {
    ASSERT_EQ(::send(pair_.client.raw(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
    wait_readable(pair_.server.raw());
  }
  std::string client_hears(std::size_t n) {
    std::string text(n, '?');
    EXPECT_EQ(::recv(pair_.client.raw(), text.data(), n, MSG_WAITALL), static_cast<ssize_t>(n));
    return text;
  }
  Pair pair_ = connected();
  Memory memory_{luo_tcp_size(16)};
  luo_tcp* tcp_ = nullptr;
};

TEST_F(Recovery, LearnsOfAReceiveThatNobodyRecorded) {
  client_says("hello");
  // What a recv() leaves that is killed before it can say so.
  iovec pieces[2];
  luo_tcp_input(tcp_, pieces);
  ASSERT_EQ(::recv(pair_.server.raw(), pieces[0].iov_base, 3, 0), 3);
  EXPECT_EQ(input(tcp_), "");
  EXPECT_EQ(recover(), 1);
  EXPECT_EQ(input(tcp_), "hel");
  EXPECT_EQ(luo_tcp_receive(tcp_, pair_.server.raw()), 2);
  EXPECT_EQ(input(tcp_), "hello");
  EXPECT_EQ(recover(), 0);
}

TEST_F(Recovery, LearnsOfASendThatNobodyRecorded) {
  ASSERT_EQ(luo_tcp_reply(tcp_, "answer", 6), 0);
  ASSERT_EQ(luo_tcp_commit(tcp_, 0), 0);
  ASSERT_EQ(::send(pair_.server.raw(), "answ", 4, 0), 4);
  EXPECT_EQ(recover(), 1);
  EXPECT_EQ(luo_tcp_send(tcp_, pair_.server.raw()), 0);
  EXPECT_EQ(client_hears(6), "answer");
}

TEST_F(Recovery, WhatWasNotCommittedHasNotHappened) {
  client_says("ab");
  ASSERT_EQ(luo_tcp_receive(tcp_, pair_.server.raw()), 2);
  luo_tcp_words(tcp_)[3] = 1;
  ASSERT_EQ(luo_tcp_reply(tcp_, "1", 1), 0);
  ASSERT_EQ(luo_tcp_commit(tcp_, 1), 0);
  luo_tcp_words(tcp_)[3] = 2;
  ASSERT_EQ(luo_tcp_reply(tcp_, "2", 1), 0);
  EXPECT_EQ(luo_tcp_room(tcp_), 14U);
  EXPECT_EQ(recover(), 0);
  EXPECT_EQ(input(tcp_), "b");
  EXPECT_EQ(luo_tcp_words(tcp_)[3], 1U);
  EXPECT_EQ(luo_tcp_room(tcp_), 15U);
  EXPECT_EQ(luo_tcp_send(tcp_, pair_.server.raw()), 0);
  EXPECT_EQ(client_hears(1), "1");
}

TEST_F(Recovery, RingsAreBounded) {
  client_says("0123456789abcdefXYZ");
  EXPECT_EQ(luo_tcp_receive(tcp_, pair_.server.raw()), 16);
  EXPECT_EQ(luo_tcp_receive(tcp_, pair_.server.raw()), -ENOBUFS);
  EXPECT_EQ(luo_tcp_commit(tcp_, 17), -EINVAL);
  EXPECT_EQ(luo_tcp_commit(tcp_, 15), 0);
  EXPECT_EQ(luo_tcp_receive(tcp_, pair_.server.raw()), 3);
  EXPECT_EQ(luo_tcp_receive(tcp_, pair_.server.raw()), -EAGAIN);
  EXPECT_EQ(input(tcp_), "fXYZ") << "over the end of the ring";
  EXPECT_EQ(luo_tcp_reply(tcp_, "0123456789abcdefg", 17), -ENOBUFS);
  EXPECT_EQ(luo_tcp_room(tcp_), 16U);
}

TEST_F(Recovery, RefusesDamageAndForeignSockets) {
  client_says("hello");
  ASSERT_EQ(luo_tcp_receive(tcp_, pair_.server.raw()), 5);
  luo_tcp* none = nullptr;
  const Pair other = connected();
  EXPECT_EQ(luo_tcp_recover(memory_.at(), memory_.size(), other.server.raw(), &none), -ESTALE);
  EXPECT_EQ(luo_tcp_recover(memory_.at(), memory_.size() - 2, pair_.server.raw(), &none), -EBADMSG) << "cut off";
  EXPECT_EQ(luo_tcp_recover(memory_.at(), 8, pair_.server.raw(), &none), -EBADMSG);
  const Memory empty{4096};
  EXPECT_EQ(luo_tcp_recover(empty.at(), empty.size(), pair_.server.raw(), &none), -EBADMSG);
  EXPECT_EQ(luo_tcp_create(empty.at(), 8, LUO_TCP_ACCEPTED, &none), -EINVAL);
  EXPECT_EQ(luo_tcp_create(static_cast<char*>(empty.at()) + 1, 4000, LUO_TCP_ACCEPTED, &none), -EINVAL);
  EXPECT_EQ(none, nullptr);
}

// --- killed -------------------------------------------------------------------------------------------

constexpr std::size_t kRing = 3000;

[[noreturn]] void serve(const Memory& memory, int socket, bool fresh, std::uint64_t* learned) {
  luo_tcp* tcp = nullptr;
  const int found = fresh ? luo_tcp_create(memory.at(), memory.size(), LUO_TCP_ACCEPTED, &tcp)
                          : luo_tcp_recover(memory.at(), memory.size(), socket, &tcp);
  if (found < 0) ::_exit(10);
  *learned += static_cast<std::uint64_t>(found);
  for (;;) {
    iovec pieces[2];
    const std::size_t n = std::min(luo_tcp_input(tcp, pieces), luo_tcp_room(tcp));
    const std::size_t first = std::min(n, pieces[0].iov_len);
    if (luo_tcp_reply(tcp, pieces[0].iov_base, first) != 0) ::_exit(11);
    if (luo_tcp_reply(tcp, pieces[1].iov_base, n - first) != 0) ::_exit(11);
    luo_tcp_words(tcp)[0] += n;
    if (luo_tcp_commit(tcp, n) != 0) ::_exit(12);
    if (luo_tcp_send(tcp, socket) < 0) ::_exit(13);
    const ssize_t received = luo_tcp_receive(tcp, socket);
    if (received == 0 && luo_tcp_input(tcp, pieces) == 0) ::_exit(0);
    if (received < 0 && received != -EAGAIN && received != -ENOBUFS) ::_exit(14);
  }
}

/// A client that sends and hears pseudo-random bytes, without waiting.
class Client {
 public:
  explicit Client(int socket) : socket_{socket} {}
  void step() {
    char bytes[700];
    if (pending_.empty())
      for (std::size_t left = 1 + random_() % sizeof bytes; left > 0; --left) pending_.push_back(byte_of(sending_++));
    const ssize_t out = ::send(socket_, pending_.data(), pending_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (out > 0) pending_.erase(0, static_cast<std::size_t>(out));
    const ssize_t in = ::recv(socket_, bytes, sizeof bytes, MSG_DONTWAIT);
    for (ssize_t i = 0; i < in; ++i, ++hearing_)
      if (bytes[i] != byte_of(hearing_) && wrong_ < 0) wrong_ = static_cast<long>(hearing_);
  }
  std::uint64_t heard() const { return hearing_; }
  long wrong() const { return wrong_; }  ///< the first wrong answer, -1: none

 private:
  static char byte_of(std::uint64_t place) { return static_cast<char>((place * 0x9e3779b97f4a7c15) >> 56); }
  int socket_;
  std::minstd_rand random_;
  std::string pending_;
  std::uint64_t sending_ = 0, hearing_ = 0;
  long wrong_ = -1;
};

TEST(KilledServer, NoByteIsLostOrDoubled) {
  constexpr int kKills = 150;
  const Pair pair = connected();
  const Memory memory{luo_tcp_size(kRing)};
  const Memory counter{sizeof(std::uint64_t)};
  auto* learned = static_cast<std::uint64_t*>(counter.at());
  Client client{pair.client.raw()};
  std::minstd_rand random{20'261'121};
  for (int kill = 0; kill <= kKills && client.wrong() < 0; ++kill) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(pair.client.raw());
      serve(memory, pair.server.raw(), kill == 0, learned);
    }
    // It dies wherever it is when the client has heard so much more.
    const std::uint64_t until = client.heard() + 1 + random() % 20'000;
    int status = 0;
    while (client.heard() < until && client.wrong() < 0) {
      client.step();
      ASSERT_EQ(::waitpid(child, &status, WNOHANG), 0) << "the server ended by itself: " << status;
    }
    client.step();  // gives it something to do, in the midst of which it is hit
    for (auto left = random() % 10'000; left > 0; --left) std::atomic_signal_fence(std::memory_order_seq_cst);
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    ASSERT_EQ(::waitpid(child, &status, 0), child);
  }
  EXPECT_EQ(client.wrong(), -1);
  luo_tcp* tcp = nullptr;
  ASSERT_GE(luo_tcp_recover(memory.at(), memory.size(), pair.server.raw(), &tcp), 0) << luo_last_error();
  EXPECT_EQ(luo_tcp_words(tcp)[0], position(pair.server).received - input(tcp).size()) << "the effect, and once";
  // How many kills hit between a call and its record: chance. tests/crash/tcp_crash_test.cc hits all.
  RecordProperty("learned", static_cast<int>(*learned));
}

}  // namespace
}  // namespace luo
