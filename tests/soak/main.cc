// luo-soak: clients that do everything at random against one luod, while its worker, its keeper, they themselves are
// killed, luod is updated, and everything crosses. Each client knows what every answer has to be.
//
//   luo-soak --kills 10000 --seed 1
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string_view>

#include "soak/model.h"
#include "support/kill_process.h"
#include "support/luod_fixture.h"
#include "support/luod_raw_client.h"

namespace luo::soak {
namespace {

struct Options {
  std::uint64_t kills = 300, seed = 0;
};

class Soak {
 public:
  explicit Soak(const Options& options) : options_{options}, random_{options.seed} {
    void* memory = mmap(nullptr, sizeof(World), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    world_ = new (memory) World{};
  }

  int run() {
    if (!luod_.running()) return complain("luod does not start:\n" + luod_.log());
    const std::string empty = luod_.state();
    for (unsigned n = 0; n < kClients; ++n) start(n);
    const bool to_terminal = isatty(STDERR_FILENO) == 1;
    timespec last{};
    for (std::uint64_t kills = 0; kills < options_.kills; ++kills) {
      if (!one_kill() || !clients_are_well()) return complain(trouble_);
      timespec now{};
      clock_gettime(CLOCK_MONOTONIC, &now);
      if (now.tv_sec > last.tv_sec + (to_terminal ? 0 : 30)) {
        fmt::print(stderr, "{}{} of {} kills, {} operations{}", to_terminal ? "\r" : "", kills, options_.kills,
                   operations(), to_terminal ? "   " : "\n");
        last = now;
      }
    }
    if (to_terminal) fmt::print(stderr, "\r");
    __atomic_store_n(&world_->stop, 1U, __ATOMIC_RELEASE);
    for (unsigned n = 0; n < kClients; ++n)
      if (!ended_well(n, wait_for_end(n))) return complain(trouble_);
    drop_held();
    if (const std::string state = luod_.state(); state != empty)
      return complain("luod is not as at the beginning:\n" + state + "\ninstead of\n" + empty);
    fmt::print(
        "{{\"ok\": true, \"seed\": {}, \"kills\": {{\"worker\": {}, \"worker at a system call\": {}, \"keeper\": {}, "
        "\"client\": {}}}, \"luod updates\": {}, \"crossings\": {}, \"operations\": {}, \"client lives\": {}}}\n",
        options_.seed, workers_, stops_, keepers_, clients_, updates_, world_->crossings, operations(), lives());
    return 0;
  }

 private:
  int complain(const std::string& what) {
    fmt::print(stderr, "\nluo-soak: seed {}: {}\nthe end of luod's log:\n", options_.seed, what);
    const std::string log = luod_.log();
    fmt::print(stderr, "{}\n", log.substr(log.size() > 3000 ? log.size() - 3000 : 0));
    for (const pid_t pid : pid_)
      if (pid > 0) kill(pid, SIGKILL);
    return 1;
  }
  std::uint64_t operations() const {
    std::uint64_t all = 0;
    for (const Client& client : world_->client) all += client.operations;
    return all;
  }
  std::uint64_t lives() const {
    std::uint64_t all = 0;
    for (const Client& client : world_->client) all += client.lives;
    return all;
  }
  void start(unsigned n) {
    const std::uint64_t seed = random_();
    ++world_->client[n].lives;
    pid_[n] = fork();
    if (pid_[n] == 0) live(*world_, n, luod_.socket().c_str(), seed);
  }
  int wait_for_end(unsigned n) {
    int status = 0;
    while (waitpid(pid_[n], &status, 0) < 0 && errno == EINTR) {}
    pid_[n] = -1;
    return status;
  }
  bool ended_well(unsigned n, int status) {
    const Client& client = world_->client[n];
    if (client.failed != 0) {
      trouble_ = fmt::format("client {}: {}", n, client.text);
      return false;
    }
    if ((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) || (WIFEXITED(status) && WEXITSTATUS(status) % 2 == 0))
      return true;
    trouble_ = fmt::format("client {} ended with status {:#x}", n, status);
    return false;
  }
  /// One that has ended on its own has something to say, or begins anew after a crossing.
  bool clients_are_well() {
    for (unsigned n = 0; n < kClients; ++n) {
      int status = 0;
      if (waitpid(pid_[n], &status, WNOHANG) != pid_[n]) continue;
      if (!ended_well(n, status)) return false;
      start(n);
    }
    return true;
  }

  bool one_kill() {
    usleep(static_cast<useconds_t>(random_() % 3000));
    const std::uint64_t what = random_() % 100;
    if (what < 2) return cross();
    if (what < 6 && !update_luod()) return false;
    if (what < 25) {
      const auto n = static_cast<unsigned>(random_() % kClients);
      kill(pid_[n], SIGKILL);
      ++clients_;
      if (!ended_well(n, wait_for_end(n))) return false;
      start(n);
      return true;
    }
    const bool keeper = what < 40;
    const pid_t victim = keeper ? luod_.keeper() : luod_.worker();
    if (victim <= 0) {
      trouble_ = "luod does not answer";
      return false;
    }
    if (!keeper && what < 70) {
      if (!test::kill_at_syscall(victim, static_cast<unsigned>(1 + random_() % 100))) return true;
      ++stops_;
    } else {
      kill(victim, SIGKILL);
      ++(keeper ? keepers_ : workers_);
    }
    if (!test::wait_for_death(victim)) {
      trouble_ = fmt::format("process {} does not die", victim);
      return false;
    }
    // Both at once is more than luod promises: the worker has made a keeper before it is the next one's turn.
    while (keeper && luod_.keeper() == victim) sched_yield();
    return true;
  }
  bool update_luod() {
    const test::Ran ran = test::run_program({test::program("luoctl"), "--socket", luod_.socket(), "update", "luod"});
    ++updates_;
    if (ran.status == 0) return true;
    trouble_ = "update luod: " + ran.err;
    return false;
  }
  /// A kexec takes everybody; here they wait, and begin anew with what came over.
  bool cross() {
    __atomic_store_n(&world_->pause, 1U, __ATOMIC_RELEASE);
    for (unsigned n = 0; n < kClients; ++n)
      while (__atomic_load_n(&world_->client[n].paused, __ATOMIC_ACQUIRE) == 0) {
        if (!clients_are_well()) return false;
        usleep(200);
      }
    const test::Ran ran =
        test::run_program({test::program("luoctl"), "--socket", luod_.socket(), "update", "simulated"});
    if (ran.status != 0) {
      trouble_ = "update simulated: " + ran.err;
      return false;
    }
    __atomic_add_fetch(&world_->crossings, 1, __ATOMIC_ACQ_REL);
    __atomic_store_n(&world_->pause, 0U, __ATOMIC_RELEASE);
    for (unsigned n = 0; n < kClients; ++n) {
      if (!ended_well(n, wait_for_end(n))) return false;
      start(n);
    }
    return true;
  }
  void drop_held() {
    const nlohmann::json all = luod_.list();
    for (const auto& session : all["sessions"])
      test::run_program({test::program("luoctl"), "--socket", luod_.socket(), "drop", session["name"]});
  }

  const Options options_;
  std::mt19937_64 random_;
  World* world_;
  test::Luod luod_;
  pid_t pid_[kClients] = {-1, -1, -1, -1};
  std::string trouble_ = "?";
  std::uint64_t workers_ = 0, stops_ = 0, keepers_ = 0, clients_ = 0, updates_ = 0;
};

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    char* end = nullptr;
    const std::uint64_t value = std::strtoull(argv[i + 1], &end, 10);
    if (*end != '\0' || end == argv[i + 1]) return false;
    if (name == "--kills") options.kills = value;
    else if (name == "--seed") options.seed = value;
    else return false;
  }
  return argc % 2 == 1;
}

}  // namespace
}  // namespace luo::soak

int main(int argc, char** argv) {
  luo::soak::Options options;
  options.seed = static_cast<std::uint64_t>(time(nullptr));
  if (!luo::soak::parse(argc, argv, options)) {
    fmt::print(stderr,
               "Usage: luo-soak [--kills N] [--seed S]\n\n"
               "Random operations of {} clients against a luod of its own, under N (300) kills of luod's worker and\n"
               "keeper and of the clients, under updates of luod and crossings. Every answer is compared with what it\n"
               "must be. Prints its seed; the same seed makes the same choices, though not the same moments.\n\n"
               "Exit status: 0 all was right, 1 something was not (says what), 2 wrong usage.\n",
               luo::soak::kClients);
    return 2;
  }
  fmt::print(stderr, "luo-soak: seed {}\n", options.seed);
  return luo::soak::Soak{options}.run();
}
