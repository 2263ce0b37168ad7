// luo-cache is replaced, and luod is killed and replaced, while clients talk to it: none notices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "cache/records.h"
#include "cache/test_client.h"
#include "support/luod_fixture.h"

namespace luo::cache::test {
namespace {

using luo::test::Luod;
using luo::test::program;
using luo::test::run_program;
using ::testing::HasSubstr;

class LiveCache : public ::testing::Test {
 protected:
  void SetUp() override {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // successors become ours
    ASSERT_TRUE(luod_.running()) << luod_.log();
    unix_path_ = luod_.dir() / "cache.sock";
    first_.emplace(ServerProcess::luo_cache({"--luod", luod_.socket(), "--unixsocket", unix_path_}, log_path()));
    port_ = first_->port();
    ASSERT_NE(port_, 0) << log();
  }
  void TearDown() override {
    if (HasFailure()) fmt::print("luo-cache:\n{}luod:\n{}", log(), luod_.log());
    if (port_ == 0) return;
    const pid_t last = pid();
    if (last > 0 && ::kill(last, SIGTERM) == 0) ::waitpid(last, nullptr, 0);
  }
  RespClient connect() const { return RespClient::tcp(port_); }
  pid_t pid() const {
    const std::string text = connect().info("process_id");
    return text.empty() ? -1 : std::stoi(text);
  }
  std::string log_path() const { return luod_.dir() / "cache.log"; }
  std::string log() const { return run({"cat", log_path()}).output; }
  luo::test::Ran update(std::vector<std::string> command = {LUO_CACHE_PROGRAM}) const {
    // Options of luoctl's come with a separator of their own.
    if (command.front().starts_with("--"))
      command.insert(command.begin(), {program("luoctl"), "update", "service", "cache"});
    else command.insert(command.begin(), {program("luoctl"), "update", "service", "cache", "--"});
    return run_program(command, {{"LUO_SOCKET", luod_.socket()}});
  }
  void expect_update() {
    const auto ran = update();
    EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
  }

  Luod luod_;
  std::string unix_path_;
  std::optional<ServerProcess> first_;
  int port_ = 0;
};

// Counts with INCR and checks each answer, and that what it set is there: one lost, doubled or failed
// request would show.
class Verifier {
 public:
  Verifier(RespClient client, std::string name, int pipeline)
      : client_{std::move(client)}, thread_{[this, name = std::move(name), pipeline] { work(name, pipeline); }} {}
  /// Ends it and returns what went wrong, empty if nothing did.
  std::string stop() {
    stop_ = true;
    thread_.join();
    return wrong_;
  }
  long count() const { return count_; }
  ~Verifier() {
    if (thread_.joinable()) stop();
  }

 private:
  void work(const std::string& name, int pipeline) {
    const std::string filler(500, 'x');
    while (!stop_ && wrong_.empty()) {
      std::string batch;
      for (int i = 1; i <= pipeline; ++i) {
        const long n = count_ + i;
        batch += request({"INCR", name}) +
                 request({"SET", fmt::format("{}:{}", name, n % 100), filler + std::to_string(n)}) +
                 request({"GET", fmt::format("{}:{}", name, n % 100)});
      }
      if (!client_.send(batch)) wrong_ = "cannot send";
      for (int i = 1; i <= pipeline && wrong_.empty(); ++i) {
        const long n = ++count_;
        const std::string value = filler + std::to_string(n);
        expect(fmt::format(":{}\r\n", n));
        expect("+OK\r\n");
        expect(fmt::format("${}\r\n{}\r\n", value.size(), value));
      }
    }
  }
  void expect(const std::string& wanted) {
    const std::string got = client_.answer();
    if (wrong_.empty() && got != wanted)
      wrong_ = fmt::format("request {}: got '{}', not '{}'", count_.load(), got, wanted);
  }

  RespClient client_;
  std::string wrong_;  // the thread's, until it has been joined
  std::atomic<bool> stop_ = false;
  std::atomic<long> count_ = 0;
  std::thread thread_;
};

TEST_F(LiveCache, UpdatesAndCrashesUnderLoadAreNotNoticed) {
  std::vector<std::unique_ptr<Verifier>> clients;
  for (int i = 0; i < 3; ++i)
    clients.push_back(std::make_unique<Verifier>(connect(), fmt::format("t{}", i), i == 0 ? 1 : 20));
  clients.push_back(std::make_unique<Verifier>(RespClient::unix_socket(unix_path_), "u", 5));
  const auto everyone_goes_on = [&] {
    for (const auto& client : clients)
      for (const long before = client->count(); client->count() < before + 200;) {
        ::poll(nullptr, 0, 1);
        if (client->count() == before && HasFailure()) return;
      }
  };
  for (int round = 0; round < 4; ++round) {
    everyone_goes_on();
    expect_update();
    everyone_goes_on();
    luod_.kill_worker();
    everyone_goes_on();
    luod_.kill_keeper();
    everyone_goes_on();
    const auto luod = run_program({program("luoctl"), "update", "luod"}, {{"LUO_SOCKET", luod_.socket()}});
    EXPECT_EQ(luod.status, 0) << luod.out << luod.err;
    // New connections come and go at any time.
    for (int i = 0; i < 20; ++i) EXPECT_EQ(connect().command({"PING"}), "+PONG\r\n");
  }
  for (auto& client : clients) EXPECT_EQ(client->stop(), "");
  auto client = connect();
  EXPECT_EQ(client.info("generation"), "4");
  EXPECT_EQ(client.info("luod_connected"), "1");
  EXPECT_EQ(first_->wait(), 0) << "the first one left when it was handed over";
}

TEST_F(LiveCache, HalfARequestAndHalfAnAnswerGoAcross) {
  auto client = connect();
  auto reader = connect();
  const std::string big(20 << 20, 'b');
  EXPECT_EQ(client.command({"SET", "big", big}), "+OK\r\n");
  const std::string words = request({"SET", "key", "value"});
  ASSERT_TRUE(client.send(words.substr(0, words.size() / 2)));
  ASSERT_TRUE(reader.send(request({"GET", "big"}) + request({"PING"})));
  pollfd some{reader.socket().raw, POLLIN, 0};
  ASSERT_EQ(::poll(&some, 1, 30'000), 1);
  const pid_t before = pid();
  expect_update();
  EXPECT_NE(pid(), before);
  expect_update();
  ASSERT_TRUE(client.send(words.substr(words.size() / 2)));
  EXPECT_EQ(client.answer(), "+OK\r\n");
  EXPECT_EQ(client.command({"GET", "key"}), "$5\r\nvalue\r\n");
  EXPECT_EQ(reader.answer(), fmt::format("${}\r\n{}\r\n", big.size(), big));
  EXPECT_EQ(reader.answer(), "+PONG\r\n");
}

TEST_F(LiveCache, GoesOnWhateverTheSuccessorIs) {
  auto client = connect();
  EXPECT_EQ(client.command({"INCR", "n"}), ":1\r\n");
  const pid_t before = pid();
  const auto file = [&](const std::string& name, const std::string& content, mode_t mode) {
    const std::string path = luod_.dir() / name;
    std::ofstream{path, std::ios::binary} << content;
    ::chmod(path.c_str(), mode);
    return path;
  };
  std::string foreign = [] {
    std::ifstream self{LUO_CACHE_PROGRAM, std::ios::binary};
    return std::string{std::istreambuf_iterator<char>{self}, {}};
  }();
  foreign[18] = 22;  // e_machine: s390
  struct Successor {
    std::string what;
    std::vector<std::string> command;
    std::string words;  // luoctl prints them
  };
  const Successor all[] = {
      {"missing", {"/nonexistent/luo-cache"}, "/nonexistent/luo-cache"},
      {"not executable", {file("plain", "#!/bin/sh\n", 0644)}, "plain"},
      {"of another architecture", {file("foreign", foreign, 0755)}, "ENOEXEC"},
      {"exits at once", {"/bin/sh", "-c", "echo I do not want to >&2; exit 1"}, "I do not want to"},
      {"crashes at its start", {"/bin/sh", "-c", "echo ouch >&2; kill -SEGV $$"}, "ouch"},
      {"crashes after it has read the memory", {LUO_CACHE_DYING_SUCCESSOR, "read"}, "read it all"},
      {"reads another layout",
       {LUO_CACHE_DYING_SUCCESSOR, "other_layout"},
       fmt::format("it holds luo-cache version {}, expected is", kLayout.version)},
      {"dies when the old one has stopped", {LUO_CACHE_DYING_SUCCESSOR, "take_over"}, ""},
      {"serves another session", {LUO_CACHE_PROGRAM, "--session", "another"}, ""},
      {"hangs", {"--timeout", "0.5", "--", "/bin/sh", "-c", "echo let me think >&2; exec sleep 1000"}, "let me think"},
  };
  int n = 1;
  for (const Successor& successor : all) {
    SCOPED_TRACE(successor.what);
    const auto ran = update(successor.command);
    EXPECT_NE(ran.status, 0);
    EXPECT_THAT(ran.out + ran.err, HasSubstr(successor.words));
    EXPECT_EQ(client.command({"INCR", "n"}), fmt::format(":{}\r\n", ++n));
    EXPECT_EQ(pid(), before);
  }
  EXPECT_THAT(log(), HasSubstr("serving on"));
  expect_update();
  EXPECT_EQ(client.command({"INCR", "n"}), fmt::format(":{}\r\n", ++n));
}

TEST_F(LiveCache, SurvivesASimulatedKexec) {
  auto client = connect();
  EXPECT_EQ(client.command({"SET", "key", "value"}), "+OK\r\n");
  const auto ran = run_program({program("luoctl"), "update", "simulated"}, {{"LUO_SOCKET", luod_.socket()}});
  ASSERT_EQ(ran.status, 0) << ran.out << ran.err;
  EXPECT_EQ(first_->wait(), 0);
  auto next = ServerProcess::luo_cache({"--luod", luod_.socket()}, log_path());
  ASSERT_EQ(next.port(), port_) << log();
  EXPECT_EQ(client.command({"GET", "key"}), "$5\r\nvalue\r\n") << "on the connection from before";
  EXPECT_EQ(RespClient::unix_socket(unix_path_).command({"GET", "key"}), "$5\r\nvalue\r\n");
  EXPECT_EQ(client.info("generation"), "1");
  EXPECT_EQ(next.terminate(), 0);
  EXPECT_NE(::access(unix_path_.c_str(), F_OK), 0) << "it takes away the socket that it took over";
  port_ = 0;
}

TEST_F(LiveCache, ServesOnWithoutLuodAndFindsANewOne) {
  auto client = connect();
  EXPECT_EQ(client.command({"SET", "key", "value"}), "+OK\r\n");
  EXPECT_EQ(luod_.stop(), 0);
  EXPECT_EQ(client.command({"GET", "key"}), "$5\r\nvalue\r\n");
  while (client.info("luod_connected") == "1") ::poll(nullptr, 0, 10);
  EXPECT_THAT(log(), HasSubstr("luod is gone"));
  Luod second{{.arguments = {"--state-dir", luod_.dir().path(), "--socket", luod_.socket()},
               .environment = {{"LUO_SOCKET", luod_.socket()}},
               .own_directory = false}};
  ASSERT_TRUE(second.running()) << second.log();
  while (client.info("luod_connected") == "0") ::poll(nullptr, 0, 10);
  expect_update();
  EXPECT_EQ(client.command({"GET", "key"}), "$5\r\nvalue\r\n");
  EXPECT_EQ(client.info("generation"), "1");
}

TEST_F(LiveCache, SaysHowToReplaceTheOneThatRuns) {
  const auto second = run({LUO_CACHE_PROGRAM, "--port", "0", "--luod", luod_.socket()});
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.output, HasSubstr("luoctl update service cache"));
}

}  // namespace
}  // namespace luo::cache::test
