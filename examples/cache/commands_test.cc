// Requests through a real socket pair: what a client sees, and what stays when the process is killed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "cache/connection.h"

namespace luo::cache {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

// A client and the server's side of its connection.
class Rig {
 public:
  explicit Rig(std::uint64_t maxmemory = 0, std::unique_ptr<Store> store = nullptr) : store_{std::move(store)} {
    if (store_ == nullptr) store_ = std::move(*Store::create(maxmemory));
    facts_.maxmemory = maxmemory;
    limits_ = ConnectionLimits::within(maxmemory);
    interpreter_.emplace(store_->arena(), store_->table(), store_->counters(), facts_);
    connect();
  }
  void connect(ConnectionRecord* record = nullptr) {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    client_ = Fd::adopt(ends[0]);
    if (record == nullptr) record = *store_->add_connection(0);
    connection_.emplace(Fd::adopt(ends[1]), *record, limits_);
  }
  // Sends, lets the server work, and returns what came back.
  std::string talk(std::string_view bytes) {
    std::string answer;
    while (!bytes.empty() && state_ == Connection::State::Open) {
      const ssize_t n = ::send(client_.raw(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n > 0) bytes.remove_prefix(static_cast<std::size_t>(n));
      serve();
      answer += read();
    }
    for (int waiting = 0;;) {
      const bool more_input = state_ == Connection::State::Open && connection_->wants_to_receive() &&
                              ::ioctl(connection_->socket().raw, FIONREAD, &waiting) == 0 && waiting > 0;
      if (more_input) serve();
      else serve_output();
      const std::string more = read();
      if (more.empty() && !more_input) return answer;
      answer += more;
    }
  }
  std::string command(std::initializer_list<std::string_view> words) {
    std::string request = fmt::format("*{}\r\n", words.size());
    for (const auto word : words) request += fmt::format("${}\r\n{}\r\n", word.size(), word);
    return talk(request);
  }
  void serve() {
    state_ = connection_->receive(*store_);
    if (state_ == Connection::State::Open) state_ = connection_->work(*store_, *interpreter_, now_ms);
  }
  void serve_output() {
    if (state_ == Connection::State::Open) state_ = connection_->work(*store_, *interpreter_, now_ms);
  }
  std::string read() {
    std::string bytes(1 << 16, '\0');
    const ssize_t n = ::recv(client_.raw(), bytes.data(), bytes.size(), 0);
    bytes.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return bytes;
  }
  Connection& connection() { return *connection_; }
  Connection::State state() const { return state_; }
  Store& store() { return *store_; }
  Fd& client() { return client_; }

  std::int64_t now_ms = 1'000'000;

 private:
  std::unique_ptr<Store> store_;
  Facts facts_;
  ConnectionLimits limits_;
  std::optional<Interpreter> interpreter_;
  Fd client_;
  std::optional<Connection> connection_;
  Connection::State state_ = Connection::State::Open;
};

TEST(Commands, AnswerAStreamInEveryCut) {
  const std::string requests =
      "*3\r\n$3\r\nSET\r\n$1\r\nn\r\n$2\r\n10\r\nINCRBY n 5\r\nGET n\r\n*2\r\n$6\r\nAPPEND\r\n$1\r\nn\r\n"
      "MGET n missing\r\nFOO bar\r\nDEL n\r\n";
  const std::string answers =
      "+OK\r\n:15\r\n$2\r\n15\r\n-ERR wrong number of arguments for 'append' command\r\n*2\r\n$2\r\n15\r\n$-1\r\n"
      "-ERR unknown command 'FOO', with args beginning with: 'bar' \r\n:1\r\n";
  for (std::size_t cut = 0; cut <= requests.size(); ++cut) {
    Rig rig;
    std::string got = rig.talk(requests.substr(0, cut));
    got += rig.talk(requests.substr(cut));
    ASSERT_EQ(got, answers) << "cut at " << cut;
  }
}

TEST(Commands, SetHasRedissOptions) {
  Rig rig;
  EXPECT_EQ(rig.command({"SET", "k", "1", "XX"}), "$-1\r\n");
  EXPECT_EQ(rig.command({"SET", "k", "1", "NX", "EX", "10"}), "+OK\r\n");
  EXPECT_EQ(rig.command({"SET", "k", "2", "NX"}), "$-1\r\n");
  EXPECT_EQ(rig.command({"TTL", "k"}), ":10\r\n");
  EXPECT_EQ(rig.command({"SET", "k", "2", "KEEPTTL", "GET"}), "$1\r\n1\r\n");
  EXPECT_EQ(rig.command({"PTTL", "k"}), ":10000\r\n");
  EXPECT_EQ(rig.command({"set", "k", "3", "xx"}), "+OK\r\n");
  EXPECT_EQ(rig.command({"TTL", "k"}), ":-1\r\n");
  EXPECT_EQ(rig.command({"SET", "k", "3", "PX", "50"}), "+OK\r\n");
  rig.now_ms += 49;
  EXPECT_EQ(rig.command({"GET", "k"}), "$1\r\n3\r\n");
  rig.now_ms += 1;
  EXPECT_EQ(rig.command({"GET", "k"}), "$-1\r\n");
  EXPECT_EQ(rig.command({"DBSIZE"}), ":0\r\n");
  for (const char* bad : {"SET k v NX XX", "SET k v EX", "SET k v EX 1 PX 1", "SET k v EX 1 KEEPTTL", "SET k v FOO"})
    EXPECT_EQ(rig.talk(std::string{bad} + "\r\n"), "-ERR syntax error\r\n") << bad;
  EXPECT_EQ(rig.command({"SET", "k", "v", "EX", "x"}), "-ERR value is not an integer or out of range\r\n");
  EXPECT_EQ(rig.command({"SET", "k", "v", "EX", "0"}), "-ERR invalid expire time in 'set' command\r\n");
  EXPECT_EQ(rig.command({"SET", "k", "v", "EX", "9223372036854775807"}),
            "-ERR invalid expire time in 'set' command\r\n");
}

TEST(Commands, CountAndRefuseAsRedisDoes) {
  Rig rig;
  EXPECT_EQ(rig.command({"DECR", "n"}), ":-1\r\n");
  EXPECT_EQ(rig.command({"SET", "n", "9223372036854775807"}), "+OK\r\n");
  EXPECT_EQ(rig.command({"INCR", "n"}), "-ERR increment or decrement would overflow\r\n");
  EXPECT_EQ(rig.command({"DECRBY", "n", "-9223372036854775808"}), "-ERR decrement would overflow\r\n");
  EXPECT_EQ(rig.command({"SET", "n", " 1"}), "+OK\r\n");
  EXPECT_EQ(rig.command({"INCR", "n"}), "-ERR value is not an integer or out of range\r\n");
  EXPECT_EQ(rig.command({"MSET", "a"}), "-ERR wrong number of arguments for 'mset' command\r\n");
  EXPECT_EQ(rig.command({"MSET", "a", "1", "b"}), "-ERR wrong number of arguments for 'mset' command\r\n");
  EXPECT_EQ(rig.command({"SELECT", "1"}), "-ERR DB index is out of range\r\n");
  EXPECT_EQ(rig.command({"CLIENT", "NOPE"}), "-ERR unknown subcommand 'NOPE'. Try CLIENT HELP.\r\n");
  EXPECT_EQ(rig.command({"HELLO", "3"}), "-NOPROTO unsupported protocol version\r\n");
  EXPECT_THAT(rig.command({"HELLO", "2"}), StartsWith("*14\r\n$6\r\nserver\r\n"));
  EXPECT_EQ(rig.command({"FOO\r\nBAR"}), "-ERR unknown command 'FOO  BAR', with args beginning with: \r\n");
  EXPECT_EQ(rig.command({"LPUSH", "l", "x"}), "-ERR unknown command 'LPUSH', with args beginning with: 'l' 'x' \r\n");
}

TEST(Commands, InfoNamesWhatOperatorsLookFor) {
  Rig rig;
  EXPECT_EQ(rig.command({"SET", "k", "v"}), "+OK\r\n");
  const std::string info = rig.command({"INFO"});
  for (const char* wanted :
       {"# Server\r\n", "process_id:", "used_memory:", "maxmemory:0\r\n", "total_commands_processed:2\r\n",
        "# Luo\r\ngeneration:0\r\n", "last_pause_us:0\r\n", "db0:keys=1,expires=0"})
    EXPECT_THAT(info, HasSubstr(wanted));
  EXPECT_THAT(rig.command({"INFO", "keyspace"}), MatchesRegex("\\$[0-9]+\r\n# Keyspace\r\ndb0:keys=1[^#]*"));
}

TEST(Commands, RefuseWritesAboveMaxmemory) {
  Rig rig{4 << 20};
  const std::string value(64'000, 'v');
  std::string answer;
  int stored = 0;
  while ((answer = rig.command({"SET", std::to_string(stored), value})) == "+OK\r\n" && stored < 1000) ++stored;
  EXPECT_EQ(answer, "-OOM command not allowed when used memory > 'maxmemory'.\r\n");
  EXPECT_GT(stored, 30);
  EXPECT_LT(stored, 70);
  EXPECT_EQ(rig.command({"GET", "1"}), fmt::format("$64000\r\n{}\r\n", value));
  EXPECT_EQ(rig.command({"DEL", "1", "2", "3", "4", "5"}), ":5\r\n");
  EXPECT_EQ(rig.command({"SET", "1", value}), "+OK\r\n");
  // What FLUSHALL frees can be used at once, though its entries are released later.
  while (rig.command({"SET", std::to_string(stored), value}) == "+OK\r\n") ++stored;
  EXPECT_EQ(rig.command({"FLUSHALL"}), "+OK\r\n");
  EXPECT_EQ(rig.command({"SET", "1", value}), "+OK\r\n");
}

TEST(Commands, RefuseAClaimOfMoreThanMaxmemory) {
  Rig rig{4 << 20};
  EXPECT_EQ(rig.talk("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000000\r\n"), "-ERR Protocol error: invalid bulk length\r\n");
  EXPECT_EQ(rig.state(), Connection::State::Closed);
}

TEST(Commands, AClaimedLengthReservesNothing) {
  Rig rig;
  const auto before = rig.store().arena().stats().used_bytes;
  EXPECT_EQ(rig.talk("*1000000\r\n$3\r\nSET\r\n$1\r\nk\r\n$500000000\r\nabc"), "");
  EXPECT_LT(rig.store().arena().stats().used_bytes, before + 100'000);
}

TEST(Commands, LargeValuesComeAndGo) {
  Rig rig;
  const std::string value(5 << 20, 'x');
  EXPECT_EQ(rig.command({"SET", "k", value}), "+OK\r\n");
  EXPECT_EQ(rig.command({"APPEND", "k", value}), fmt::format(":{}\r\n", 2 * value.size()));
  EXPECT_EQ(rig.command({"GET", "k"}), fmt::format("${}\r\n{}{}\r\n", 2 * value.size(), value, value));
  rig.connection().trim(rig.store());
  rig.connection().trim(rig.store());
  EXPECT_EQ(rig.command({"DEL", "k"}), ":1\r\n");
  EXPECT_LT(rig.store().arena().stats().used_bytes, 200'000U);
}

// More keys than one transaction has room for.
TEST(Commands, ManyKeysInOneRequest) {
  Rig rig;
  constexpr std::size_t kKeys = 50'000;
  std::string mset = fmt::format("*{}\r\n$4\r\nMSET\r\n", 2 * kKeys + 1);
  std::string del = fmt::format("*{}\r\n$3\r\nDEL\r\n", kKeys + 1);
  for (std::size_t i = 0; i < kKeys; ++i) {
    const std::string key = fmt::format("key:{:08}", i);
    mset += fmt::format("$12\r\n{}\r\n$12\r\n{}\r\n", key, key);
    del += fmt::format("$12\r\n{}\r\n", key);
  }
  EXPECT_EQ(rig.talk(mset), "+OK\r\n");
  EXPECT_EQ(rig.talk(mset), "+OK\r\n");
  EXPECT_EQ(rig.command({"DBSIZE"}), fmt::format(":{}\r\n", kKeys));
  EXPECT_EQ(rig.command({"GET", "key:00049999"}), "$12\r\nkey:00049999\r\n");
  EXPECT_EQ(rig.talk(del), fmt::format(":{}\r\n", kKeys));
  EXPECT_TRUE(rig.store().check());
}

TEST(Commands, QuitAnswersFirst) {
  Rig rig;
  EXPECT_EQ(rig.talk("PING\r\nQUIT\r\nPING\r\n"), "+PONG\r\n+OK\r\n");
  EXPECT_EQ(rig.state(), Connection::State::Closed);
}

// Its requests wait, and go on when it reads again; nothing is lost or answered twice.
TEST(Commands, APeerThatDoesNotReadHoldsUpItselfOnly) {
  Rig rig{8 << 20};
  const std::string value(100'000, 'v');
  EXPECT_EQ(rig.command({"SET", "k", value}), "+OK\r\n");
  constexpr int kRequests = 200;
  std::string requests;
  for (int i = 0; i < kRequests; ++i) requests += "GET k\r\n";
  ASSERT_EQ(::send(rig.client().raw(), requests.data(), requests.size(), 0), static_cast<ssize_t>(requests.size()));
  rig.serve();
  EXPECT_EQ(rig.state(), Connection::State::Open);
  EXPECT_FALSE(rig.connection().wants_to_receive());
  EXPECT_LT(rig.store().arena().stats().used_bytes, 8U << 20);
  std::size_t got = 0;
  for (std::string bytes; !(bytes = rig.read()).empty(); rig.serve_output()) got += bytes.size();
  EXPECT_EQ(got, kRequests * (value.size() + sizeof "$100000\r\n\r\n" - 1));
  EXPECT_TRUE(rig.connection().wants_to_receive());
  EXPECT_FALSE(rig.connection().has_input());
}

// Half a request and half an answer, taken over by a second mapping of the arena, as a successor does.
TEST(Takeover, GoesOnInTheMiddleOfARequestAndOfAnAnswer) {
  Rig old;
  const std::string value(3 << 20, 'v');
  EXPECT_EQ(old.command({"SET", "k", value}), "+OK\r\n");
  const std::string requests = "GET k\r\n*2\r\n$3\r\nGET\r\n$1\r\n";
  ASSERT_EQ(::send(old.client().raw(), requests.data(), requests.size(), 0), static_cast<ssize_t>(requests.size()));
  old.serve();
  std::string answer = old.read();
  ASSERT_TRUE(old.connection().wants_to_send());
  ASSERT_TRUE(old.connection().has_input());

  auto store = Store::open(Fd::adopt(::dup(old.store().arena().fd().raw)));
  ASSERT_TRUE(store) << to_string(store.error());
  ConnectionRecord* record = (*store)->first_connection();
  Rig next{0, std::move(*store)};
  next.connect(record);
  next.serve_output();
  for (std::string more; !(more = next.read()).empty(); answer += more) next.serve_output();
  // The rest of what the kernel had already taken from the old one.
  std::string kept;
  for (std::string more; !(more = old.read()).empty();) kept += more;
  EXPECT_EQ(answer.size() + kept.size(), fmt::format("${}\r\n\r\n", value.size()).size() + value.size());
  EXPECT_EQ(next.talk("k\r\n"), fmt::format("${}\r\n{}\r\n", value.size(), value));
}

// A child executes requests that keep an invariant and is killed at a random moment.
TEST(Kill, LeavesTheTableWhole) {
  auto store = std::move(*Store::create(0));
  std::mt19937 random{7};
  for (int round = 0; round < 60; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto mine = Store::open(Fd::adopt(::dup(store->arena().fd().raw)));
      if (!mine) ::_exit(1);
      Rig rig{0, std::move(*mine)};
      for (unsigned i = 0;; ++i) {
        const std::string n = std::to_string(i % 997);
        const std::string size(i % 1300, 'v');
        rig.talk(fmt::format("MSET a{0} {1} b{0} {1} c{0} {1}\r\nINCR x\r\nINCR y\r\nAPPEND z{0} {2}.\r\nDEL z{0}\r\n",
                             n, i, size));
        if (i % 5000 == 4999) rig.talk("FLUSHALL\r\n");
      }
    }
    ::usleep(static_cast<useconds_t>(random() % 20'000));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child failed by itself";

    auto again = Store::open(store->arena().release());
    ASSERT_TRUE(again) << to_string(again.error());
    store = std::move(*again);
    const auto checked = store->check();
    ASSERT_TRUE(checked) << "round " << round << ": " << to_string(checked.error());
    const auto value = [&](const std::string& key) {
      Entry* entry = store->table().peek(key, 0);
      return entry == nullptr ? std::string{} : std::string{entry->value()};
    };
    for (int i = 0; i < 997; ++i) {
      const std::string n = std::to_string(i);
      ASSERT_EQ(value("a" + n), value("b" + n));
      ASSERT_EQ(value("a" + n), value("c" + n));
    }
    while (ConnectionRecord* record = store->first_connection()) store->remove_connection(*record);
  }
}

}  // namespace
}  // namespace luo::cache
