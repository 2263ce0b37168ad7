// Each command, its process killed at every system call of receive, execute, send: the next one finishes it, the client
// sees one answer, and its effect is there once.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>

#include "cache/connection.h"
#include "cache/listen.h"
#include "cache/recovery.h"
#include "support/kill_harness.h"

namespace luo::cache {
namespace {

constexpr std::int64_t kNow = 1000;

std::string request(const std::vector<std::string>& words) {
  std::string text = fmt::format("*{}\r\n", words.size());
  for (const auto& word : words) text += fmt::format("${}\r\n{}\r\n", word.size(), word);
  return text;
}

/// A cache with one client; its process is whoever calls receive_and_work().
class Scene {
 public:
  void set_up() {
    store = *Store::create(0);
    for (const auto& [key, value] : std::initializer_list<std::pair<std::string_view, std::string_view>>{
             {"n", "40"}, {"s", "hello"}, {"t", "twenty"}, {"u", "unlinked"}}) {
      kho::Tx tx{store->arena()};
      const std::int64_t expire = key == "t" ? kNow + 5000 : 0;
      LUO_CHECK(store->table().put(tx, store->table().find(tx, key, 0), key, value, expire).has_value());
      tx.commit();
    }
    const Fd listener = *listen_tcp("127.0.0.1", 0);
    sockaddr_in address{};
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    LUO_CHECK(::getsockname(listener.raw(), generic, &size) == 0);
    client = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    LUO_CHECK(::connect(client.raw(), generic, size) == 0);
    pollfd one{listener.raw(), POLLIN, 0};
    LUO_CHECK(::poll(&one, 1, 30'000) == 1);
    socket = Fd::adopt(::accept4(listener.raw(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    LUO_CHECK(socket.valid() && store->add_connection(cookie_of(socket)).has_value());
  }
  void client_says(std::string_view text) const {
    LUO_CHECK(::send(client.raw(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
    pollfd arrived{socket.raw(), POLLIN, 0};
    LUO_CHECK(::poll(&arrived, 1, 30'000) == 1);
  }
  /// One round of the server's loop, as the process that begins with what is in `data`.
  void receive_and_work(Store& data) const {
    Facts facts;
    Interpreter interpreter{data.arena(), data.table(), data.counters(), facts};
    ConnectionLimits limits;
    Connection connection{Fd::adopt(::dup(socket.raw())), *data.first_connection(), limits};
    connection.work(data, interpreter, kNow);
    pollfd more{socket.raw(), POLLIN, 0};
    while (::poll(&more, 1, 0) == 1 && connection.receive(data) == Connection::State::Open)
      connection.work(data, interpreter, kNow);
  }
  /// As the next process does.
  Result<std::unique_ptr<Store>> recover(Fd memfd) const {
    auto data = LUO_TRY(Store::open(std::move(memfd)));
    LUO_TRY(data->check());
    LUO_TRY(catch_up(*data->first_connection(), socket));
    return data;
  }
  std::string hear(std::size_t answers) const {
    std::string text;
    char bytes[4096];
    while (static_cast<std::size_t>(std::ranges::count(text, '\n')) < answers) {
      const ssize_t n = ::recv(client.raw(), bytes, sizeof bytes, 0);
      if (n <= 0) return text + "(closed)";
      text.append(bytes, static_cast<std::size_t>(n));
    }
    const ssize_t n = ::recv(client.raw(), bytes, sizeof bytes, MSG_DONTWAIT);
    return n > 0 ? text.append(bytes, static_cast<std::size_t>(n)) : text;
  }

  std::unique_ptr<Store> store;
  Fd socket, client;
};

std::string keys_of(Store& data) {
  std::string text = fmt::format("{} keys, {} expire:", data.table().size(), data.table().expiring());
  for (const char* key : {"n", "s", "t", "u", "new", "more"})
    if (Entry* entry = data.table().peek(key, kNow))
      text += fmt::format(" {}={}@{}", key, entry->value(), entry->expire_ms);
  return text;
}

class KilledCommand : public ::testing::TestWithParam<std::vector<std::string>> {};

TEST_P(KilledCommand, IsCarriedOutOnceAndAnsweredOnce) {
  const std::string words = request({"INCR", "n"}) + request(GetParam()) + request({"INCR", "n"}) + request({"PING"});
  Scene scene;
  test::KillCase c;
  int unrecorded = 0;
  c.set_up = [&]() -> Result<Fd> {
    scene = {};
    scene.set_up();
    scene.client_says(words);
    return Fd::adopt(::dup(scene.store->arena().fd().raw));
  };
  c.operate = [&] { scene.receive_and_work(*scene.store); };
  c.recover = [&](Fd memfd) -> Result<std::string> {
    const auto before = LUO_TRY(Store::open(Fd::adopt(::dup(memfd.raw()))));
    const BufferRecord in = before->first_connection()->input, out = before->first_connection()->output;
    const auto data = LUO_TRY(scene.recover(std::move(memfd)));
    const ConnectionRecord& record = *data->first_connection();
    unrecorded += record.input.end + record.input.base != in.end + in.base ? 1 : 0;
    unrecorded += record.output.begin + record.output.base != out.begin + out.base ? 1 : 0;
    scene.receive_and_work(*data);
    std::string heard = scene.hear(GetParam()[0] == "QUIT" ? 2 : 3);
    while (GetParam()[0] != "QUIT" && !heard.ends_with("+PONG\r\n") && !heard.ends_with("(closed)"))
      heard += scene.hear(1);
    // What is the process's own, not the data's.
    if (GetParam()[0] == "INFO") heard = heard.substr(0, 5) + heard.substr(heard.size() - 12);
    LUO_TRY(data->check());
    return fmt::format("heard {}; {}", heard, keys_of(*data));
  };
  const auto count = test::kill_at_every_syscall(c);
  ASSERT_TRUE(count) << to_string(count.error());
  EXPECT_GE(unrecorded, 2) << "killed after it had received, and after it had sent, and before it said so";
  LUO_CHECK(c.set_up().has_value());
  const std::string whole = *c.recover(Fd::adopt(::dup(scene.store->arena().fd().raw)));
  EXPECT_TRUE(whole.starts_with("heard :41\r\n")) << whole;
  if (GetParam()[0] != "QUIT" && !GetParam()[0].starts_with("FLUSH")) {
    EXPECT_NE(whole.find("n=42@0"), std::string::npos) << whole;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Each, KilledCommand,
    ::testing::Values(
        std::vector<std::string>{"GET", "s"}, std::vector<std::string>{"SET", "s", "other"},
        std::vector<std::string>{"SET", "s", std::string(40'000, 'l')},
        std::vector<std::string>{"SET", "s", "x", "GET"}, std::vector<std::string>{"SET", "t", "x", "KEEPTTL"},
        std::vector<std::string>{"SET", "new", "x", "NX", "PX", "9"}, std::vector<std::string>{"SETNX", "new", "x"},
        std::vector<std::string>{"SETEX", "new", "10", "x"}, std::vector<std::string>{"PSETEX", "new", "10", "x"},
        std::vector<std::string>{"GETSET", "s", "other"}, std::vector<std::string>{"GETDEL", "s"},
        std::vector<std::string>{"MGET", "s", "t", "nope"}, std::vector<std::string>{"MSET", "new", "1", "more", "2"},
        std::vector<std::string>{"APPEND", "s", " world"}, std::vector<std::string>{"STRLEN", "s"},
        std::vector<std::string>{"INCR", "new"}, std::vector<std::string>{"DECR", "more"},
        std::vector<std::string>{"INCRBY", "new", "7"}, std::vector<std::string>{"DECRBY", "new", "7"},
        std::vector<std::string>{"DEL", "s", "t", "nope"}, std::vector<std::string>{"UNLINK", "u"},
        std::vector<std::string>{"EXISTS", "s", "s"}, std::vector<std::string>{"TYPE", "s"},
        std::vector<std::string>{"EXPIRE", "s", "10"}, std::vector<std::string>{"PEXPIRE", "s", "10"},
        std::vector<std::string>{"EXPIREAT", "s", "10"}, std::vector<std::string>{"PEXPIREAT", "s", "10000"},
        std::vector<std::string>{"TTL", "t"}, std::vector<std::string>{"PTTL", "t"},
        std::vector<std::string>{"PERSIST", "t"}, std::vector<std::string>{"DBSIZE"},
        std::vector<std::string>{"FLUSHALL"}, std::vector<std::string>{"FLUSHDB"},
        std::vector<std::string>{"PING", "hello"}, std::vector<std::string>{"ECHO", "hello"},
        std::vector<std::string>{"QUIT"}, std::vector<std::string>{"SELECT", "0"},
        std::vector<std::string>{"AUTH", "x"}, std::vector<std::string>{"HELLO"},
        std::vector<std::string>{"CLIENT", "SETNAME", "me"}, std::vector<std::string>{"CONFIG", "GET", "maxmemory"},
        std::vector<std::string>{"COMMAND", "COUNT"}, std::vector<std::string>{"INFO", "server"},
        std::vector<std::string>{"NOSUCH", "thing"}),
    [](const auto& one) { return fmt::format("{}_{}", one.index, one.param[0]); });

// A request of more keys than one transaction holds: killed in the middle it is gone on with, not begun again.
TEST(KilledLongRequest, IsGoneOnWith) {
  constexpr int kKeys = 25'000;
  std::vector<std::string> set{"MSET"}, del{"DEL"};
  for (int i = 0; i < kKeys; ++i) {
    set.insert(set.end(), {fmt::format("key:{}", i), "v"});
    del.push_back(fmt::format("key:{}", i));
  }
  const std::string del_words = request(del);
  const auto put_into = [](Store& data, const std::string& words) {
    ConnectionRecord& record = *data.first_connection();
    Buffer input{data.arena(), record.input};
    LUO_CHECK(input.make_space(words.size()).has_value());
    std::memcpy(input.space().data(), words.data(), words.size());
    // As if it had come that way: what the socket has counted does not matter to this one.
    input.filled(words.size());
  };
  const auto execute = [](Store& data) {
    Facts facts;
    Interpreter interpreter{data.arena(), data.table(), data.counters(), facts};
    ConnectionLimits limits;
    Connection connection{Fd{}, *data.first_connection(), limits};
    connection.work(data, interpreter, kNow);
  };
  std::minstd_rand random{20'261'121};
  std::chrono::nanoseconds whole_run{0};
  int in_the_middle = 0;
  for (int kill = 0; kill < 300 && in_the_middle < 5; ++kill) {
    auto store = *Store::create(0);
    ASSERT_TRUE(store->add_connection(1).has_value());
    put_into(*store, request(set));
    execute(*store);  // sends into no socket: the answer stays
    store->first_connection()->output.begin = store->first_connection()->output.end;
    ASSERT_EQ(store->table().size(), static_cast<std::uint64_t>(kKeys));
    store->first_connection()->closing = 0;
    put_into(*store, del_words);
    const auto began = std::chrono::steady_clock::now();
    const pid_t child = ::fork();
    if (child == 0) {
      execute(*store);
      ::_exit(0);
    }
    if (kill == 0) {
      ASSERT_EQ(::waitpid(child, nullptr, 0), child);
      whole_run = std::chrono::steady_clock::now() - began;
    } else {
      const auto until = began + whole_run * (random() % 1000) / 1000;
      while (std::chrono::steady_clock::now() < until) {}
      ::kill(child, SIGKILL);
      ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    }
    const auto next = Store::open(Fd::adopt(::dup(store->arena().fd().raw)));
    ASSERT_TRUE(next.has_value()) << to_string(next.error());
    ConnectionRecord& record = *(*next)->first_connection();
    if (record.resume_at != 0) {
      ++in_the_middle;
      EXPECT_LT((*next)->table().size(), static_cast<std::uint64_t>(kKeys));
      EXPECT_GT((*next)->table().size(), 0U);
    }
    execute(**next);
    ASSERT_TRUE((*next)->check().has_value());
    EXPECT_EQ((*next)->table().size(), 0U);
    EXPECT_EQ(record.resume_at, 0U);
    const Buffer output{(*next)->arena(), record.output};
    EXPECT_EQ(output.bytes(), fmt::format(":{}\r\n", kKeys));
    if (HasFailure()) return;
  }
  EXPECT_GT(in_the_middle, 0) << "no kill hit a long request in its middle: nothing was tested";
}

}  // namespace
}  // namespace luo::cache
