// The echo server is killed again and again under its clients, luod too: every byte comes back once.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <random>

#include "support/luod_fixture.h"

namespace luo::test {
namespace {

std::uint16_t free_port() {
  const Fd socket = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(::bind(socket.raw(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(socket.raw(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin_port);
}

/// Sends numbered bytes and checks what comes back, without waiting.
class Peer {
 public:
  Peer(std::uint16_t port, unsigned seed) : random_{seed} {
    socket_ = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket_.raw(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) wrong_ = "connect";
  }
  void step() {
    char bytes[4000];
    std::size_t size = 1 + random_() % sizeof bytes;
    for (std::size_t i = 0; i < size; ++i) bytes[i] = byte_of(sent_ + i);
    const ssize_t out = ::send(socket_.raw(), bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (out > 0) sent_ += static_cast<std::uint64_t>(out);
    const ssize_t in = ::recv(socket_.raw(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (in == 0) wrong_ = "the server ended the connection";
    if ((in < 0 || out < 0) && errno != EAGAIN) wrong_ = errno_text(errno);
    for (ssize_t i = 0; i < in; ++i)
      if (bytes[i] != byte_of(heard_++) && wrong_.empty()) wrong_ = fmt::format("byte {} is wrong", heard_ - 1);
  }
  std::uint64_t heard() const { return heard_; }
  const std::string& wrong() const { return wrong_; }

 private:
  static char byte_of(std::uint64_t place) { return static_cast<char>((place * 0x9e3779b97f4a7c15) >> 56); }
  Fd socket_;
  std::minstd_rand random_;
  std::uint64_t sent_ = 0, heard_ = 0;
  std::string wrong_;
};

class Echo : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  void TearDown() override {
    if (pid_ > 0) kill_and_wait(std::exchange(pid_, -1));
  }
  /// Returns when it serves.
  void start() {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const Fd ready = Fd::adopt(ends[0]);
    Fd output = Fd::adopt(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(output.raw(), 1);
      ::setenv("LUO_SOCKET", luod_.socket().c_str(), 1);
      ::execl(LUO_ECHO_PROGRAM, "echo", std::to_string(port_).c_str(), nullptr);
      ::_exit(127);
    }
    output.close();
    char line[16];
    ASSERT_GT(::read(ready.raw(), line, sizeof line), 0) << "it ended";
  }
  void go_on_for(std::deque<Peer>& peers, std::uint64_t bytes) {
    for (Peer& peer : peers)
      for (const std::uint64_t until = peer.heard() + bytes; peer.heard() < until && peer.wrong().empty();)
        for (Peer& each : peers) each.step();
  }

  Luod luod_;
  std::uint16_t port_ = free_port();
  pid_t pid_ = -1;
};

TEST_F(Echo, IsKilledAndItsClientsGoOn) {
  constexpr int kKills = 30;
  ASSERT_NO_FATAL_FAILURE(start());
  std::minstd_rand random{20'261'121};
  std::deque<Peer> peers;
  for (unsigned i = 0; i < 5; ++i) peers.emplace_back(port_, i + 1);
  for (int kill = 0; kill < kKills; ++kill) {
    // Once everybody has been heard after the last kill: nobody is younger than its preserve.
    go_on_for(peers, 1 + random() % 50'000);
    if (kill % 10 == 3) luod_.kill_worker();
    if (kill % 10 == 7) luod_.kill_keeper();
    kill_and_wait(std::exchange(pid_, -1));
    for (Peer& peer : peers) peer.step();
    ASSERT_NO_FATAL_FAILURE(start()) << luod_.log();
    if (kill % 10 == 0) peers.emplace_back(port_, 100U + static_cast<unsigned>(kill));
  }
  go_on_for(peers, 100'000);
  for (const Peer& peer : peers) EXPECT_EQ(peer.wrong(), "");
  EXPECT_EQ(luod_.show("echo")["files"], 2 + peers.size());
}

TEST_F(Echo, ItsSessionEndsWhenItIsStopped) {
  ASSERT_NO_FATAL_FAILURE(start());
  std::deque<Peer> peers;
  peers.emplace_back(port_, 1);
  go_on_for(peers, 1000);
  ASSERT_EQ(::kill(pid_, SIGTERM), 0);
  ASSERT_EQ(::waitpid(std::exchange(pid_, -1), nullptr, 0) > 0, true);
  const Client client{luod_};
  EXPECT_EQ(luo_session_retrieve(client, "echo"), -ENOENT);
}

}  // namespace
}  // namespace luo::test
