// luo-cache-kills: kills a luo-cache under load, again and again, and checks each answer that its clients get.
//
// Three ways to run it, a third of the kills each: supervised and kept by a luod, which is killed now and then too;
// kept by a luod and started again from outside; supervised without a luod. Exit status 0 if no client saw anything.
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "cache/test_client.h"
#include "support/luod_fixture.h"

namespace luo::cache::test {
namespace {

using Random = std::minstd_rand;

/// What the clients have been promised, and what went wrong first.
class Ledger {
 public:
  std::atomic<bool> stop = false;
  std::atomic<long> shared = 0;  ///< acknowledged increments of the counter that all have in common
  std::atomic<long> answers = 0;
  std::atomic<long> longest_us = 0;
  void wrong(std::string what) {
    const std::lock_guard lock{mutex_};
    if (first_.empty()) first_ = std::move(what);
    stop = true;
  }
  std::string first() {
    const std::lock_guard lock{mutex_};
    return first_;
  }

 private:
  std::mutex mutex_;
  std::string first_;
};

/// A client with keys of its own, whose values it knows.
class KnowingClient {
 public:
  KnowingClient(Ledger& ledger, int port, int number, unsigned seed)
      : ledger_{ledger}, client_{RespClient::tcp(port)}, name_{fmt::format("c{}", number)}, random_{seed} {}

  void run() {
    while (!ledger_.stop) {
      const int depth = pick(3) == 0 ? 1 + pick(40) : 1;
      words_.clear();
      expected_.clear();
      for (int i = 0; i < depth; ++i) add();
      const auto began = std::chrono::steady_clock::now();
      if (!client_.send(words_)) return ledger_.wrong(name_ + ": cannot send");
      for (const std::string& wanted : expected_) {
        const std::string got = client_.answer();
        const bool right = wanted == kAnyNumber ? got.starts_with(":") : got == wanted;
        if (!right) return ledger_.wrong(fmt::format("{}: got '{}', not '{}'", name_, got, wanted));
        if (wanted == kAnyNumber) ++ledger_.shared;
        ++ledger_.answers;
      }
      const long took =
          std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - began).count();
      for (long seen = ledger_.longest_us; took > seen && !ledger_.longest_us.compare_exchange_weak(seen, took);) {}
    }
  }
  /// After the end: what the cache has must be what it said.
  void check_all() {
    for (const std::string& key : keys()) {
      const std::string got = client_.command({"GET", key});
      if (got != bulk(find(key)))
        ledger_.wrong(fmt::format("{}: at the end {} is '{}', not '{}'", name_, key, got, bulk(find(key))));
    }
  }

 private:
  static constexpr const char* kAnyNumber = "a number";
  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  std::vector<std::string> keys() const { return {name_ + ":0", name_ + ":1", name_ + ":2", name_ + ":n"}; }
  const std::string* find(const std::string& key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
  }
  static std::string bulk(const std::string* value) {
    return value == nullptr ? "$-1\r\n" : fmt::format("${}\r\n{}\r\n", value->size(), *value);
  }
  void ask(const std::vector<std::string>& words, std::string answer) {
    words_ += request(words);
    expected_.push_back(std::move(answer));
  }
  static std::string number(long value) { return fmt::format(":{}\r\n", value); }

  void add() {
    const std::string key = name_ + ":" + std::to_string(pick(3)), counter = name_ + ":n";
    const std::string value =
        fmt::format("{}.{}.{}", name_, ++serial_, std::string(static_cast<std::size_t>(pick(300)), 'v'));
    const auto count = [&](long delta) {
      const long now = (find(counter) != nullptr ? std::stol(values_[counter]) : 0) + delta;
      values_[counter] = std::to_string(now);
      return number(now);
    };
    const bool there = find(key) != nullptr;
    switch (pick(18)) {
      case 0:
      case 1:
      case 2: return ask({"INCR", "all"}, kAnyNumber);
      case 3: return ask({"INCR", counter}, count(1));
      case 4: return ask({"DECR", counter}, count(-1));
      case 5: return ask({"INCRBY", counter, "7"}, count(7));
      case 6: return ask({"DECRBY", counter, "3"}, count(-3));
      case 7: values_[key] = value; return ask({"SET", key, value}, "+OK\r\n");
      case 8: return ask({"GET", key}, bulk(find(key)));
      case 9: values_[key] += value; return ask({"APPEND", key, value}, number(static_cast<long>(values_[key].size())));
      case 10: {
        const std::string old = bulk(find(key));
        values_[key] = value;
        return ask({"GETSET", key, value}, old);
      }
      case 11: {
        const std::string old = bulk(find(key));
        values_.erase(key);
        return ask({"GETDEL", key}, old);
      }
      case 12: values_.erase(key); return ask({"DEL", key}, number(there ? 1 : 0));
      case 13:
        values_[name_ + ":0"] = values_[name_ + ":1"] = value;
        return ask({"MSET", name_ + ":0", value, name_ + ":1", value}, "+OK\r\n");
      case 14: return ask({"MGET", name_ + ":2", counter}, "*2\r\n" + bulk(find(name_ + ":2")) + bulk(find(counter)));
      case 15:
        if (!there) values_[key] = value;
        return ask({"SETNX", key, value}, number(there ? 0 : 1));
      case 16: return ask({"STRLEN", key}, number(there ? static_cast<long>(values_[key].size()) : 0));
      default: ask({"EXPIRE", key, "1000"}, number(there ? 1 : 0)); return ask({"PERSIST", key}, number(there ? 1 : 0));
    }
  }

  Ledger& ledger_;
  RespClient client_;
  std::string name_;
  Random random_;
  std::map<std::string, std::string> values_;
  std::string words_;
  std::vector<std::string> expected_;
  long serial_ = 0;
};

/// Connects for each request: is there a moment at which a connection is lost?
void connect_again_and_again(Ledger& ledger, int port) {
  while (!ledger.stop) {
    const std::string got = RespClient::tcp(port).command({"INCR", "all"});
    if (!got.starts_with(":")) return ledger.wrong(fmt::format("a fresh connection got '{}'", got));
    ++ledger.shared;
    ++ledger.answers;
  }
}

enum class Way { SupervisedWithLuod, HeldByLuod, SupervisedAlone };
constexpr std::pair<Way, const char*> kWays[] = {{Way::SupervisedWithLuod, "supervised, with a luod"},
                                                 {Way::HeldByLuod, "held by a luod"},
                                                 {Way::SupervisedAlone, "supervised, without a luod"}};

/// One luo-cache, its clients, and its deaths.
class Run {
 public:
  Run(Way way, unsigned seed) : way_{way}, random_{seed} {
    if (way != Way::SupervisedAlone) luod_.emplace();
    start();
  }
  std::string run(int kills) {
    if (server_->port() == 0) return "luo-cache does not start: " + log();
    const int port = server_->port();
    std::deque<KnowingClient> clients;
    for (int i = 0; i < kClients; ++i) clients.emplace_back(ledger_, port, i, static_cast<unsigned>(random_()));
    RespClient control = RespClient::tcp(port);
    pid_t pid = std::stoi("0" + control.info("process_id"));
    wait_until_preserved();
    std::vector<std::thread> threads;
    for (KnowingClient& client : clients) threads.emplace_back([&client] { client.run(); });
    if (way_ != Way::HeldByLuod) threads.emplace_back([&] { connect_again_and_again(ledger_, port); });
    for (int kill = 1; kill <= kills && !ledger_.stop; ++kill) {
      ::poll(nullptr, 0, static_cast<int>(random_() % 20));  // the moment is the point
      if (luod_ && kill % 20 == 7) luod_->kill_worker();
      if (luod_ && kill % 20 == 14) luod_->kill_keeper();
      ::kill(pid, SIGKILL);
      if (way_ == Way::HeldByLuod) {
        server_->wait();
        start();
      }
      const pid_t dead = pid;
      for (std::string now; pid == dead && !ledger_.stop; pid = std::stoi("0" + now))
        if ((now = control.info("process_id")).empty()) ledger_.wrong("the control connection is lost");
      if (kill % 50 == 0)
        fmt::print("  {} kills, {} answers, the longest after {} ms\n", kill, ledger_.answers.load(),
                   ledger_.longest_us / 1000);
      std::fflush(stdout);
    }
    ledger_.stop = true;
    for (std::thread& thread : threads) thread.join();
    if (!ledger_.first().empty()) return ledger_.first() + "\nluo-cache said:\n" + log();
    for (KnowingClient& client : clients) client.check_all();
    const std::string all = fmt::format("{}", ledger_.shared.load());
    if (const std::string got = control.command({"GET", "all"}); got != fmt::format("${}\r\n{}\r\n", all.size(), all))
      ledger_.wrong(fmt::format("{} increments were acknowledged, the counter says {}", all, got));
    if (const std::string got = control.info("recoveries"); got != std::to_string(kills))
      ledger_.wrong(fmt::format("{} kills, but {} recoveries", kills, got));
    return ledger_.first();
  }
  long answers() const { return ledger_.answers; }

 private:
  static constexpr int kClients = 6;

  void start() {
    std::vector<std::string> arguments;
    if (way_ != Way::HeldByLuod) arguments.emplace_back("--supervise");
    if (luod_) arguments.insert(arguments.end(), {"--luod", luod_->socket()});
    else arguments.emplace_back("--no-luo");
    server_.emplace(ServerProcess::luo_cache(arguments, dir_ / "cache.log"));
  }
  // A connection that luod does not have yet would be lost with an unsupervised cache.
  void wait_until_preserved() {
    while (luod_ && luod_->show("cache")["files"] < 3 + kClients) ::poll(nullptr, 0, 5);
  }
  std::string log() const { return luo::cache::test::run({"tail", "-n", "20", dir_ / "cache.log"}).output; }

  Way way_;
  Random random_;
  luo::test::TempDir dir_;
  std::optional<luo::test::Luod> luod_;
  std::optional<ServerProcess> server_;
  Ledger ledger_;
};

}  // namespace
}  // namespace luo::cache::test

int main(int argc, char** argv) {
  using namespace luo::cache::test;
  int kills = 100;
  unsigned seed = std::random_device{}();
  CLI::App app{"Kills a luo-cache under load and checks every answer.", "luo-cache-kills"};
  app.add_option("--kills", kills, "in all")->capture_default_str();
  app.add_option("--seed", seed, "of what clients ask and when it is killed (default: any, printed)");
  CLI11_PARSE(app, argc, argv);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  fmt::print("luo-cache-kills: {} kills, seed {}\n", kills, seed);
  for (const auto& [way, name] : kWays) {
    const int share = std::max(1, kills / 3);
    fmt::print("{}: {} kills\n", name, share);
    std::fflush(stdout);
    Run run{way, seed};
    if (const std::string wrong = run.run(share); !wrong.empty()) {
      fmt::print("FAILED (seed {}): {}\n", seed, wrong);
      return 1;
    }
    fmt::print("  {} answers, all right\n", run.answers());
  }
  return 0;
}
