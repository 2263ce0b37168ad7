// A server with a struct luo_tcp is killed at every system call of one round: the successor's client sees the same.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "luo/tcp.h"
#include "support/kill_harness.h"

namespace luo::test {
namespace {

constexpr std::string_view kRequest = "0123456789";

/// Two ends of a connection, and the server's memory, which wraps in the middle of the request.
struct Scene {
  Fd server, client, memfd;
  std::size_t size = luo_tcp_size(24);

  void connect() {
    const Fd listener = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    socklen_t length = sizeof address;
    client = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    LUO_CHECK(::bind(listener.raw(), generic, length) == 0 && ::listen(listener.raw(), 1) == 0 &&
              ::getsockname(listener.raw(), generic, &length) == 0 && ::connect(client.raw(), generic, length) == 0);
    server = Fd::adopt(::accept4(listener.raw(), nullptr, nullptr, SOCK_CLOEXEC));
    memfd = Fd::adopt(::memfd_create("rings", MFD_CLOEXEC));
    LUO_CHECK(::ftruncate(memfd.raw(), static_cast<off_t>(size)) == 0);
    luo_tcp* tcp = nullptr;
    LUO_CHECK(luo_tcp_create(map(), size, LUO_TCP_ACCEPTED, &tcp) == 0);
    client_says("the round before.");
    LUO_CHECK(round(tcp) == 17);
    hear(17);
    client_says(kRequest);
  }
  void* map() const {
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.raw(), 0);
    LUO_CHECK(at != MAP_FAILED);
    return at;
  }
  void client_says(std::string_view text) const {
    LUO_CHECK(::send(client.raw(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
    pollfd arrived{server.raw(), POLLIN, 0};
    LUO_CHECK(::poll(&arrived, 1, 30'000) == 1);
  }
  std::string hear(std::size_t least) const {
    std::string text(200, '?');
    const ssize_t n = ::recv(client.raw(), text.data(), least, MSG_WAITALL);
    const ssize_t more = ::recv(client.raw(), text.data() + least, text.size() - least, MSG_DONTWAIT);
    text.resize(static_cast<std::size_t>(n) + static_cast<std::size_t>(std::max<ssize_t>(more, 0)));
    return text;
  }
  /// Receives, answers all that there is, counts it, sends.
  std::size_t round(luo_tcp* tcp) const {
    luo_tcp_receive(tcp, server.raw());
    iovec pieces[2];
    const std::size_t n = luo_tcp_input(tcp, pieces);
    for (const iovec& piece : pieces) LUO_CHECK(luo_tcp_reply(tcp, piece.iov_base, piece.iov_len) == 0);
    luo_tcp_words(tcp)[0] += n;
    LUO_CHECK(luo_tcp_commit(tcp, n) == 0);
    LUO_CHECK(luo_tcp_send(tcp, server.raw()) == 0);
    return n;
  }
};

TEST(TcpCrash, AServerIsKilledAtEverySystemCall) {
  Scene scene;
  int learned = 0, deaths = 0;
  KillCase c;
  c.set_up = [&]() -> Result<Fd> {
    scene = {};
    scene.connect();
    return Fd::adopt(::dup(scene.memfd.raw()));
  };
  c.operate = [&] {
    // As a child that has opened what its parent left.
    scene.round(static_cast<luo_tcp*>(scene.map()));
  };
  c.recover = [&](Fd) -> Result<std::string> {
    void* memory = scene.map();
    luo_tcp* tcp = nullptr;
    const int result = luo_tcp_recover(memory, scene.size, scene.server.raw(), &tcp);
    if (result < 0) return fail(-result, "{}", luo_last_error());
    learned += result;
    ++deaths;
    scene.round(tcp);
    std::string state = fmt::format("heard '{}', counted {}", scene.hear(kRequest.size()), luo_tcp_words(tcp)[0]);
    ::munmap(memory, scene.size);
    return state;
  };
  const auto count = kill_at_every_syscall(c);
  ASSERT_TRUE(count) << to_string(count.error());
  EXPECT_GE(learned, 2) << "killed after it had received, and after it had sent, and before it said so";
  EXPECT_GT(deaths, learned);
  // What every death led to is what a whole run leads to; and that is:
  LUO_CHECK(c.set_up().has_value());
  EXPECT_EQ(*c.recover({}), "heard '0123456789', counted 27");
}

}  // namespace
}  // namespace luo::test
