// luo-cache alone, with clients that were not written for it, and beside redis-server.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <random>

#include "cache/test_client.h"

namespace luo::cache::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(LuoCache, ServesRedisCli) {
  auto cache = ServerProcess::luo_cache({"--no-luo"});
  ASSERT_NE(cache.port(), 0);
  const auto cli = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"redis-cli", "-p", std::to_string(cache.port())});
    const Ran ran = run(words);
    EXPECT_EQ(ran.status, 0) << ran.output;
    return ran.output;
  };
  EXPECT_EQ(cli({"set", "greeting", "hello world"}), "OK\n");
  EXPECT_EQ(cli({"get", "greeting"}), "hello world\n");
  EXPECT_EQ(cli({"mset", "a", "1", "b", "2"}), "OK\n");
  EXPECT_EQ(cli({"mget", "a", "nope", "b"}), "1\n\n2\n");
  EXPECT_THAT(cli({"info", "server"}), HasSubstr("luo_cache_version:"));
  EXPECT_THAT(cli({"config", "get", "maxmemory"}), HasSubstr("maxmemory\n0\n"));
  EXPECT_EQ(cli({"-3", "get", "greeting"}).find("hello world") == std::string::npos, false);
  EXPECT_EQ(cache.terminate(), 0);
}

TEST(LuoCache, ServesRedisBenchmark) {
  auto cache = ServerProcess::luo_cache({"--no-luo"});
  ASSERT_NE(cache.port(), 0);
  for (const char* pipeline : {"1", "16"}) {
    const Ran ran = run({"redis-benchmark", "-p", std::to_string(cache.port()), "-t", "ping,set,get,incr,mset", "-n",
                         "20000", "-r", "1000", "-P", pipeline, "--csv"});
    EXPECT_EQ(ran.status, 0) << ran.output;
    for (const char* test : {"PING_INLINE", "SET", "GET", "INCR", "MSET (10 keys)"})
      EXPECT_THAT(ran.output, HasSubstr(test));
    EXPECT_THAT(ran.output, Not(HasSubstr("rror")));
  }
  const Ran lists = run({"redis-benchmark", "-p", std::to_string(cache.port()), "-t", "lpush", "-n", "10"});
  EXPECT_THAT(lists.output, HasSubstr("unknown command 'LPUSH'"));
}

TEST(LuoCache, ServesAUnixSocketAndReplacesAStaleOne) {
  const std::string path = fmt::format("/tmp/luo-cache-test-{}.sock", ::getpid());
  for (int round = 0; round < 2; ++round) {  // the first is killed and leaves its socket
    auto cache = ServerProcess::luo_cache({"--no-luo", "--unixsocket", path});
    ASSERT_NE(cache.port(), 0);
    EXPECT_EQ(RespClient::unix_socket(path).command({"PING"}), "+PONG\r\n");
    auto second = ServerProcess::luo_cache({"--no-luo", "--unixsocket", path});
    EXPECT_EQ(second.port(), 0) << "somebody serves there";
    EXPECT_EQ(second.wait(), 1);
    if (round == 0) continue;
    EXPECT_EQ(cache.terminate(), 0);
  }
  EXPECT_NE(::access(path.c_str(), F_OK), 0) << "a stopped server takes its socket away";
}

TEST(LuoCache, EndsItsConnectionsWhenItStops) {
  auto cache = ServerProcess::luo_cache({"--no-luo"});
  ASSERT_NE(cache.port(), 0);
  auto client = RespClient::tcp(cache.port());
  EXPECT_EQ(client.command({"PING"}), "+PONG\r\n");
  EXPECT_EQ(cache.terminate(), 0);
  EXPECT_TRUE(client.at_end());
}

TEST(LuoCache, HelpAndErrorsOfUsage) {
  const Ran help = run({LUO_CACHE_PROGRAM, "--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_THAT(help.output, HasSubstr("luoctl update service cache -- luo-cache"));
  EXPECT_EQ(run({LUO_CACHE_PROGRAM, "--version"}).status, 0);
  EXPECT_EQ(run({LUO_CACHE_PROGRAM, "--maxmemory", "many"}).status, 2);
  EXPECT_EQ(run({LUO_CACHE_PROGRAM, "--port", "70000"}).status, 2);
  const Ran bind = run({LUO_CACHE_PROGRAM, "--no-luo", "--bind", "localhost.invalid"});
  EXPECT_EQ(bind.status, 1);
  EXPECT_THAT(bind.output, HasSubstr("not an IPv4 or IPv6 address"));
  const Ran alone = run({LUO_CACHE_PROGRAM, "--luod", "/nonexistent/luod.sock"});
  EXPECT_EQ(alone.status, 1);
  EXPECT_THAT(alone.output, HasSubstr("--no-luo"));
}

// What Redis answers is the reference, byte for byte.
class BesideRedis : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(cache_.port(), 0);
    ASSERT_NE(redis_.port(), 0) << "redis-server is needed (see the dependency script)";
  }
  void expect_same(const std::string& bytes) {
    ASSERT_TRUE(ours_.send(bytes) && theirs_.send(bytes));
    const std::string theirs = theirs_.answer();
    EXPECT_EQ(ours_.answer(), theirs) << "for: " << bytes;
  }
  void expect_same_end(const std::string& bytes) {
    auto ours = RespClient::tcp(cache_.port());
    auto theirs = RespClient::tcp(redis_.port());
    ours.send(bytes);
    theirs.send(bytes);
    EXPECT_EQ(ours.answer(), theirs.answer()) << "for: " << bytes;
    EXPECT_TRUE(ours.at_end());
  }

 private:
  ServerProcess cache_ = ServerProcess::luo_cache({"--no-luo"});
  ServerProcess redis_ = ServerProcess::redis();
  RespClient ours_ = RespClient::tcp(cache_.port());
  RespClient theirs_ = RespClient::tcp(redis_.port());
};

TEST_F(BesideRedis, AnswersAreTheSame) {
  for (const char* line :
       {"PING",
        "ping hello",
        "PING a b",
        "ECHO x",
        "ECHO",
        "SET",
        "SET a",
        "SET a 1",
        "GET a",
        "GET",
        "GET a b",
        "SET a 2 NX",
        "SET b 2 XX",
        "SET a 3 XX GET",
        "SET c 1 NX GET",
        "SET a 1 EX 0",
        "SET a 1 EX -5",
        "SET a 1 EX abc",
        "SET a 1 PX 9223372036854775807",
        "SET a 1 EX 9223372036854775",
        "SET a 1 EX 10 PX 10",
        "SET a 1 NX XX",
        "SET a 1 KEEPTTL EX 1",
        "SET a 1 FOO",
        "SET a 1 EX",
        "SET a 1 EXAT 99999999999",
        "SET a 1 PXAT 1",
        "GET a",
        "EXISTS a",
        "MSET a 1 b 2",
        "MSET a 1 b",
        "MSET",
        "MGET a b nope",
        "MGET",
        "DEL a b a",
        "DEL",
        "UNLINK a",
        "EXISTS a b",
        "EXISTS",
        "INCR n",
        "INCR n",
        "DECR n",
        "INCRBY n 10",
        "INCRBY n x",
        "INCRBY n 1.5",
        "DECRBY n 3",
        "DECRBY n -9223372036854775808",
        "SET n 9223372036854775807",
        "INCR n",
        "SET n abc",
        "INCR n",
        "SET n 012",
        "INCR n",
        "SET n ' 1'",
        "INCR n",
        "SET n -0",
        "INCR n",
        "APPEND s abc",
        "APPEND s def",
        "GET s",
        "STRLEN s",
        "STRLEN nope",
        "APPEND s",
        "EXPIRE s 100",
        "TTL s",
        "EXPIRE s 200 NX",
        "EXPIRE s 50 GT",
        "EXPIRE s 300 GT",
        "TTL s",
        "EXPIRE s 400 LT",
        "EXPIRE s 100 XX LT",
        "TTL s",
        "EXPIRE s 1 NX XX",
        "EXPIRE s 1 GT LT",
        "EXPIRE s 1 FOO",
        "EXPIRE s abc",
        "EXPIRE s",
        "EXPIRE s 9223372036854775807",
        "EXPIRE nope 1",
        "PERSIST s",
        "PERSIST s",
        "TTL s",
        "TTL nope",
        "PTTL nope",
        "EXPIRE s 10 XX",
        "EXPIRE s 10 GT",
        "EXPIRE s 10 LT",
        "PEXPIRE s 100000",
        "EXPIREAT s 1",
        "GET s",
        "PEXPIREAT nope 1",
        "SETNX x 1",
        "SETNX x 2",
        "GET x",
        "SETEX y 100 v",
        "SETEX y 0 v",
        "SETEX y x v",
        "PSETEX y 100000 v",
        "PSETEX y -1 v",
        "TTL y",
        "GETSET y w",
        "TTL y",
        "GETDEL y",
        "GETDEL y",
        "TYPE x",
        "TYPE nope",
        "SELECT 0",
        "SELECT 1",
        "SELECT x",
        "SELECT -1",
        "DBSIZE",
        "DBSIZE x",
        "CONFIG",
        "CONFIG GET",
        "CONFIG GET save",
        "CONFIG GET nope",
        "CONFIG NOPE",
        "CLIENT",
        "CLIENT GETNAME",
        "CLIENT SETNAME me",
        "CLIENT GETNAME",
        "CLIENT SETNAME 'a b'",
        "CLIENT NOPE x",
        "CLIENT SETNAME",
        "HELLO 3x",
        "HELLO 4",
        "HELLO 2 FOO",
        "AUTH x",
        "FLUSHALL x",
        "FLUSHALL SYNC",
        "DBSIZE",
        "COMMAND COUNT x",
        "COMMAND NOPE",
        "nope",
        "nope a 'b c'",
        "NOPE aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        " bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb ccccccccccc",
        "SET '' ''",
        "GET ''",
        "SET \"\\x00\\r\\n\" \"\\xff\\\\\\\"\"",
        "GET \"\\x00\\r\\n\"",
        "GET 'it\\'s'"})
    expect_same(std::string{line} + "\r\n");
}

TEST_F(BesideRedis, ProtocolErrorsAreTheSame) {
  for (const char* bytes : {"*x\r\n", "*1\r\n:1\r\n", "*1\r\n$-1\r\n", "*1\r\n$x\r\n", "SET 'a\r\n", "GET \"a\"b\r\n",
                            "*2147483648\r\n", "*1\r\n$536870913\r\n"})
    expect_same_end(bytes);
  expect_same_end(std::string(70'000, 'x'));
}

TEST_F(BesideRedis, RandomRequestsGetTheSameAnswers) {
  std::mt19937 random{20260101};
  const auto one_of = [&](std::initializer_list<const char*> words) {
    return std::string{words.begin()[random() % words.size()]};
  };
  const auto key = [&] { return "k" + std::to_string(random() % 12); };
  const auto value = [&] {
    return random() % 3 == 0 ? std::string(random() % 2000, 'v') : std::to_string(random() % 99);
  };
  for (int i = 0; i < 4000; ++i) {
    std::vector<std::string> words;
    switch (random() % 8) {
      case 0: words = {"SET", key(), value()}; break;
      case 1: words = {"SET", key(), value(), one_of({"NX", "XX", "GET", "KEEPTTL"})}; break;
      case 2: words = {"SET", key(), value(), "EX", one_of({"100", "1000000", "0", "x"})}; break;
      case 3: words = {one_of({"GET", "INCR", "DECR", "STRLEN", "PERSIST", "DEL", "EXISTS", "GETDEL"}), key()}; break;
      case 4: words = {one_of({"APPEND", "INCRBY", "DECRBY", "GETSET", "SETNX"}), key(), value()}; break;
      case 5: words = {one_of({"MGET", "DEL", "EXISTS"}), key(), key(), key()}; break;
      case 6:  // far apart, so that GT and LT do not depend on the millisecond
        words = {"EXPIRE", key(), std::to_string(1'000 * (random() % 5'000)), one_of({"NX", "XX", "GT", "LT"})};
        break;
      default: words = {"MSET", key(), value(), key(), value()}; break;
    }
    ASSERT_NO_FATAL_FAILURE(expect_same(request(words)));
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace luo::cache::test
