// luo-cache dies and goes on: what else its users do to it meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/test_client.h"
#include "support/luod_fixture.h"

namespace luo::cache::test {
namespace {

using luo::test::Luod;
using luo::test::program;
using luo::test::run_program;
using ::testing::HasSubstr;

class DyingCache : public ::testing::Test {
 protected:
  void SetUp() override {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // successors become ours
    ASSERT_TRUE(luod_.running()) << luod_.log();
  }
  void TearDown() override {
    if (HasFailure()) fmt::print("luo-cache:\n{}luod:\n{}", log(), luod_.log());
  }
  void start(std::vector<std::string> more) {
    more.insert(more.end(), {"--luod", luod_.socket(), "--unixsocket", unix_path()});
    server_.emplace(ServerProcess::luo_cache(more, log_path()));
    ASSERT_NE(server_->port(), 0) << log();
  }
  RespClient connect() const { return RespClient::tcp(server_->port()); }
  /// Kills the process that serves; returns when the next one does.
  void kill_server(RespClient& client) {
    const pid_t dead = std::stoi("0" + client.info("process_id"));
    ASSERT_GT(dead, 0);
    ::kill(dead, SIGKILL);
    for (pid_t now = dead; now == dead;) {
      now = std::stoi("0" + client.info("process_id"));
      ASSERT_GT(now, 0) << "the connection is lost";
    }
  }
  luo::test::Ran update(const std::vector<std::string>& arguments) const {
    std::vector<std::string> words{program("luoctl"), "update", "service", "cache", "--", LUO_CACHE_PROGRAM};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run_program(words, {{"LUO_SOCKET", luod_.socket()}});
  }
  bool session_ends() {
    for (int i = 0; i < 3000 && !luod_.list()["sessions"].empty(); ++i) ::poll(nullptr, 0, 10);
    return luod_.list()["sessions"].empty();
  }
  std::string unix_path() const { return luod_.dir() / "cache.sock"; }
  std::string log_path() const { return luod_.dir() / "cache.log"; }
  std::string log() const { return run({"cat", log_path()}).output; }

  Luod luod_;
  std::optional<ServerProcess> server_;
};

TEST_F(DyingCache, IsUpdatedAfterItDiedAndDiesAfterItWasUpdated) {
  ASSERT_NO_FATAL_FAILURE(start({"--supervise"}));
  auto client = connect();
  for (int round = 1; round <= 3; ++round) {
    ASSERT_NO_FATAL_FAILURE(kill_server(client));
    EXPECT_EQ(client.command({"INCR", "n"}), fmt::format(":{}\r\n", round));
    const auto ran = update({"--supervise"});
    ASSERT_EQ(ran.status, 0) << ran.out << ran.err;
    EXPECT_EQ(client.info("generation"), std::to_string(round));
    EXPECT_EQ(client.info("recoveries"), std::to_string(round));
    EXPECT_EQ(client.info("luod_connected"), "1");
  }
  EXPECT_EQ(server_->wait(), 0) << "the first supervisor left when its server had handed over";
  ::kill(std::stoi(client.info("process_id")), SIGTERM);
  EXPECT_TRUE(session_ends());
}

TEST_F(DyingCache, EndsWithItsSupervisorsSignalAndItsSessionToo) {
  ASSERT_NO_FATAL_FAILURE(start({"--supervise"}));
  auto client = connect();
  ASSERT_NO_FATAL_FAILURE(kill_server(client));
  EXPECT_EQ(server_->terminate(), 0);
  EXPECT_TRUE(client.at_end());
  EXPECT_TRUE(session_ends()) << luod_.list();
  EXPECT_NE(::access(unix_path().c_str(), F_OK), 0);
}

TEST_F(DyingCache, UnixSocketsAreClosedForTheyDoNotCount) {
  ASSERT_NO_FATAL_FAILURE(start({"--supervise"}));
  auto client = connect();
  auto local = RespClient::unix_socket(unix_path());
  EXPECT_EQ(local.command({"SET", "key", "value"}), "+OK\r\n");
  ASSERT_NO_FATAL_FAILURE(kill_server(client));
  EXPECT_TRUE(local.at_end());
  EXPECT_EQ(RespClient::unix_socket(unix_path()).command({"GET", "key"}), "$5\r\nvalue\r\n");
  EXPECT_THAT(log(), HasSubstr("only TCP sockets count"));
}

TEST_F(DyingCache, GoesOnWithoutLuodAndFindsANewOne) {
  ASSERT_NO_FATAL_FAILURE(start({"--supervise"}));
  auto client = connect();
  EXPECT_EQ(client.command({"SET", "key", "value"}), "+OK\r\n");
  EXPECT_EQ(luod_.stop(), 0);
  ASSERT_NO_FATAL_FAILURE(kill_server(client));
  EXPECT_EQ(client.info("luod_connected"), "0");
  Luod second{{.arguments = {"--state-dir", luod_.dir().path(), "--socket", luod_.socket()},
               .environment = {{"LUO_SOCKET", luod_.socket()}},
               .own_directory = false}};
  ASSERT_TRUE(second.running()) << second.log();
  while (client.info("luod_connected") != "1") ::poll(nullptr, 0, 10);
  ASSERT_NO_FATAL_FAILURE(kill_server(client));
  EXPECT_EQ(client.command({"GET", "key"}), "$5\r\nvalue\r\n");
  EXPECT_EQ(client.info("luod_connected"), "1");
  EXPECT_EQ(server_->terminate(), 0);
}

// Supervisor and server at once, as when a unit is killed: luod has what was preserved.
TEST_F(DyingCache, IsStartedAgainByAnybodyWhileItsSessionWaits) {
  ASSERT_NO_FATAL_FAILURE(start({"--supervise"}));
  auto client = connect();
  EXPECT_EQ(client.command({"INCR", "n"}), ":1\r\n");
  while (luod_.show("cache")["files"] != 4) ::poll(nullptr, 0, 5);
  const pid_t served = std::stoi(client.info("process_id"));
  ::kill(server_->pid(), SIGKILL);
  ::kill(served, SIGKILL);
  server_->wait();
  ASSERT_TRUE(client.send(request({"INCR", "n"}))) << "nobody is there now";
  ASSERT_NO_FATAL_FAILURE(start({}));
  EXPECT_EQ(client.answer(), ":2\r\n");
  EXPECT_EQ(client.info("recoveries"), "1");
  EXPECT_EQ(server_->terminate(), 0);
  EXPECT_TRUE(session_ends()) << luod_.list();
}

TEST_F(DyingCache, ThatNeverServedIsNotStartedAgain) {
  auto cache = ServerProcess::luo_cache({"--supervise", "--luod", luod_.dir() / "nobody"}, log_path());
  EXPECT_EQ(cache.port(), 0);
  EXPECT_EQ(cache.wait(), 1);
}

}  // namespace
}  // namespace luo::cache::test
