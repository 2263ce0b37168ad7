// Each allocation of luod's worker made to fail, in each kind of request and in its start: the client gets what it
// asked for, or ENOMEM and nothing has changed; its next request is served; nothing leaks; luod serves on.
#include <fcntl.h>
#include <sys/mman.h>

#include <cstdint>

#include "images/starved.h"
#include "kill_operations.h"
#include "play.h"
#include "sys/memfd.h"

namespace luo::test {
namespace {

using wire::Command;

/// The memory that a luod_starved looks into.
class Lack {
 public:
  Lack() : file_{*make_memfd("starved", 0)} {
    LUO_CHECK(ftruncate(file_.raw(), sizeof(Starved)) == 0);
    void* at = mmap(nullptr, sizeof(Starved), PROT_READ | PROT_WRITE, MAP_SHARED, file_.raw(), 0);
    LUO_CHECK(at != MAP_FAILED);
    starved_ = static_cast<Starved*>(at);
  }
  ~Lack() { munmap(starved_, sizeof(Starved)); }
  Lack(const Lack&) = delete;
  Lack& operator=(const Lack&) = delete;
  LuodOptions options() const {
    LuodOptions options;
    options.program = program("luod_starved");
    options.environment = {{kStarvedVariable, fmt::format("/proc/{}/fd/{}", getpid(), file_.raw())}};
    return options;
  }
  /// The n-th allocation from now on, and those after it.
  void arm(pid_t process, std::int64_t n, std::int64_t times = 1) {
    starved_->process.store(0);
    starved_->until.store(n);
    starved_->times.store(times);
    starved_->failed.store(0);
    starved_->process.store(process);
  }
  void disarm() { starved_->process.store(0); }
  std::uint64_t failed() const { return starved_->failed.load(); }

 private:
  Fd file_;
  Starved* starved_;
};

/// All of the first ones, then some: most requests have fewer than 100.
constexpr std::int64_t after(std::int64_t n) { return n + (n < 200 ? 1 : 17); }

class OutOfMemory : private Lack, public Kills {
 protected:
  OutOfMemory() : Kills{options()} {}

  struct Outcome {
    Seen seen;
    bool hit = false;
    std::string next;  ///< what the same client's next request got
  };
  Outcome attempt(std::int64_t n) {
    Outcome out;
    {
      Bench bench{luod_};
      GetParam().set_up(bench);
      luod_.state();  // nothing is left to be done
      const pid_t worker = luod_.worker();
      arm(worker, n);
      out.seen.result = GetParam().call(bench);
      const bool died = died_rather_than_idled(worker);
      disarm();
      out.hit = failed() != 0;
      EXPECT_EQ(died, out.hit);
      if (bench.client && bench.client->error() == 0)
        out.next = errno_or_zero(luo_session_retrieve(*bench.client, "there is none"));
      out.seen.state = luod_.state();
    }
    drop_incoming();
    return out;
  }
};

TEST_P(OutOfMemory, AtEachAllocation) {
  const std::string name = GetParam().name;
  const std::string empty = luod_.state();
  const pid_t keeper = luod_.keeper();
  const Outcome whole = attempt(INT64_MAX);
  ASSERT_EQ(luod_.state(), empty);
  const Seen untouched = run([](auto) {});
  ASSERT_EQ(luod_.state(), empty);
  int hits = 0, refused = 0;
  for (std::int64_t n = 1;; n = after(n)) {
    ASSERT_LT(n, 20'000) << "it never ends";
    const Outcome out = attempt(n);
    const std::string log = luod_.log();
    SCOPED_TRACE(fmt::format("the {}. allocation\n{}", n, log.substr(log.size() > 1500 ? log.size() - 1500 : 0)));
    if (!out.hit) {
      ASSERT_EQ(out.seen, whole.seen);
      break;
    }
    ++hits;
    if (out.seen.result == whole.seen.result) {
      EXPECT_EQ(out.seen, whole.seen);
    } else {
      ++refused;
      EXPECT_TRUE(tells(out.seen.result, ENOMEM)) << out.seen.result;
      // Of several requests, the first may have been carried out; of many that stand by themselves, any.
      const bool first_of_several = out.seen.result.starts_with('0') && out.seen.state == whole.seen.state;
      const bool some_of_many = name.find("_each") != name.npos;
      EXPECT_TRUE(first_of_several || some_of_many || out.seen.state == untouched.state)
          << out.seen << "\nbefore:\n"
          << untouched.state;
    }
    // A crossing closes the connections of those that held sessions.
    if (!name.starts_with("cross")) {
      const bool no_client = out.seen.result == "ENOMEM" && name == "hello";
      EXPECT_EQ(out.next, no_client ? "" : whole.next);
    }
    ASSERT_EQ(luod_.state(), empty) << "something is left";
    ASSERT_EQ(luod_.keeper(), keeper);
  }
  EXPECT_GT(hits, 0);
  RecordProperty("hits", hits);
  RecordProperty("refused", refused);
}

INSTANTIATE_TEST_SUITE_P(Of, OutOfMemory, testing::ValuesIn(kOperations),
                         [](const auto& of) { return std::string{of.param.name}; });

class OutOfMemoryOfLuod : private Lack, public testing::Test {
 protected:
  OutOfMemoryOfLuod() : luod_{options()} {}
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  using Lack::arm, Lack::disarm, Lack::failed;
  Luod luod_;
};

TEST_F(OutOfMemoryOfLuod, TheNextWorkerStartsAgain) {
  Bench bench{luod_};
  bench.make_session();
  const std::string before = luod_.state();
  const pid_t keeper = luod_.keeper();
  int hits = 0;
  for (std::int64_t n = 1;; n = after(n)) {
    ASSERT_LT(n, 20'000) << "it never ends";
    const pid_t worker = luod_.worker();
    arm(-keeper, n);
    kill_and_wait(worker);
    // Waits for the one that serves, whose allocations for this count, too.
    const int answer = luo_session_retrieve(*bench.client, "there is none");
    ASSERT_TRUE(answer == -ENOENT || answer == -ENOMEM) << answer;
    disarm();
    const bool hit = failed() != 0;
    ASSERT_EQ(luod_.state(), before) << n;
    ASSERT_EQ(luod_.keeper(), keeper);
    if (!hit) break;
    ++hits;
  }
  EXPECT_GT(hits, 0);
}

TEST_F(OutOfMemoryOfLuod, TheKeeperWaits) {
  Bench bench{luod_};
  bench.make_session();
  const std::string before = luod_.state();
  const pid_t keeper = luod_.keeper();
  int waits = 0;
  for (std::int64_t n = 1;; ++n) {
    ASSERT_LT(n, 100) << "it never ends";
    arm(keeper, n, 3);
    luod_.kill_worker();
    ASSERT_EQ(errno_or_zero(luo_session_retrieve(*bench.client, "there is none")), "ENOENT");
    disarm();
    ASSERT_EQ(luod_.state(), before);
    ASSERT_EQ(luod_.keeper(), keeper) << "it did not wait";
    if (failed() == 0) break;
    EXPECT_EQ(failed(), 3U);
    ++waits;
  }
  EXPECT_GT(waits, 0);
}

TEST_F(OutOfMemoryOfLuod, AnUpdateOfLuodIsRefusedOrCarriedOut) {
  Bench bench{luod_};
  bench.make_session();
  const Fd image = Fd::adopt(open(program("luod_starved").c_str(), O_RDONLY | O_CLOEXEC));
  const int fd = image.raw();
  int refused = 0, done = 0;
  for (std::int64_t n = 1;; n = n < 20 ? n + 1 : n + 9) {
    ASSERT_LT(n, 20'000) << "it never ends";
    RawClient admin = raw_client(luod_);
    const std::string before = luod_.state();
    arm(luod_.worker(), n);
    const auto answer = admin.call(Command::UpdateLuod, 0, update_arg("", 20'000), {&fd, 1});
    disarm();
    ASSERT_TRUE(answer.has_value()) << answer.error().what;
    ASSERT_TRUE(answer->error() == 0 || answer->error() == ENOMEM) << n << ": " << strerrorname_np(answer->error());
    ++(answer->error() == 0 ? done : refused);
    ASSERT_EQ(luod_.state(), before) << n;
    ASSERT_EQ(luo_session_retrieve(*bench.client, "there is none"), -ENOENT);
    if (failed() == 0) break;
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(done, 0);
}

/// Who is refused asks again; what has begun is not refused.
TEST_F(OutOfMemoryOfLuod, AServiceIsHandedOver) {
  int asked_again = 0;
  const auto until_done = [&](const auto& request) {
    int error = request();
    for (; error == ENOMEM; error = request()) ++asked_again;
    return error;
  };
  for (std::int64_t n = 1;; n = after(n)) {
    ASSERT_LT(n, 20'000) << "it never ends";
    SCOPED_TRACE(fmt::format("the {}. allocation", n));
    Play play{luod_};
    ASSERT_EQ(play.offer(), 0);
    play.start_successor();
    play.warm();
    arm(-luod_.keeper(), n);
    const auto take_over = [&] {
      play.ask_to_take_over();
      pollfd either[] = {{play.owner.socket().raw, POLLIN, 0}, {play.successor->socket().raw, POLLIN, 0}};
      LUO_CHECK(poll(either, 2, 30'000) > 0);
      return (either[1].revents & POLLIN) != 0 ? play.successor->answer()->error() : 0;
    };
    ASSERT_EQ(until_done(take_over), 0);
    ASSERT_TRUE(play.owner_is_asked());
    ASSERT_EQ(until_done([&] { return play.verdict(); }), 0);
    ASSERT_EQ(play.successor->answer()->error(), 0) << "it had begun";
    ASSERT_EQ(until_done([&] { return play.complete(); }), 0);
    EXPECT_EQ(play.end_of_owner(), "handed over");
    std::string outcome = play.outcome();
    if (outcome.starts_with("ENOMEM")) {
      ASSERT_TRUE(play.admin.post(Command::UpdateWait, 0, play.wait_for()).has_value());
      outcome = play.outcome();
    }
    EXPECT_EQ(outcome, "done");
    disarm();
    play.expect_successor_owns();
    if (HasFailure() || failed() == 0) break;
  }
  EXPECT_GT(asked_again, 0);
}

}  // namespace
}  // namespace luo::test
