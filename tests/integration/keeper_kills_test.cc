// luod's keeper is killed, or told to end, in the middle of each kind of update; and the successor of a service, a
// real process that uses libluo, is killed at each system call of its handover.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "play.h"
#include "support/kill_process.h"
#include "sys/pipe.h"
#include "sys/process.h"

namespace luo::test {
namespace {

using wire::Command;

// --- the keeper is killed --------------------------------------------------------------------------------

/// Parameter: the step of luod's that it dies beside.
class KeeperDiesInHandover : public testing::TestWithParam<int> {};

TEST_P(KeeperDiesInHandover, NobodyNotices) {
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  const pid_t keeper = luod.keeper();
  const auto before = [&](int step) {
    if (step == GetParam()) kill(luod.keeper(), SIGKILL);
  };
  Play play{luod};
  before(0);
  ASSERT_EQ(play.offer(), 0);
  before(1);
  play.start_successor();
  before(2);
  play.warm();
  before(3);
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  before(4);
  ASSERT_EQ(play.verdict(), 0);
  ASSERT_EQ(play.successor->answer()->error(), 0) << luod.log();
  before(5);
  ASSERT_EQ(play.complete(), 0) << luod.log();
  EXPECT_EQ(play.end_of_owner(), "handed over");
  EXPECT_EQ(play.outcome(), "done");
  play.expect_successor_owns();
  while (luod.keeper() == keeper) sched_yield();
  luod.kill_worker();  // the new keeper does its work
  play.expect_successor_owns();
}
INSTANTIATE_TEST_SUITE_P(Step, KeeperDiesInHandover, testing::Range(0, 6));

class KeeperDiesInCrossing : public testing::TestWithParam<int> {};

TEST_P(KeeperDiesInCrossing, EverythingCrosses) {
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  const pid_t keeper = luod.keeper();
  const auto before = [&](int step) {
    if (step == GetParam()) kill(luod.keeper(), SIGKILL);
  };
  RawClient owner = raw_client(luod, "owner"), admin = raw_client(luod, "admin");
  const RawSession session = raw_session(owner, Command::CreateSession, "s");
  const Fd file = memfd_with("content");
  const int fd = file.raw();
  ASSERT_EQ(owner.call(Command::PreserveFd, session.handle, token_arg(1), {&fd, 1})->error(), 0);
  ASSERT_EQ(owner.call(Command::Subscribe, 0, plain_arg(1))->error(), 0);
  before(0);
  ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
  const auto event = owner.event();
  ASSERT_TRUE(event.has_value());
  before(1);
  wire::VerdictArg ready{};
  ready.size = sizeof ready;
  ready.update = event->as<wire::PrepareEvent>().update;
  ASSERT_TRUE(owner.post(Command::Prepared, 0, ready).has_value());
  before(2);
  const auto answer = admin.answer();
  ASSERT_TRUE(answer.has_value() && answer->error() == 0) << luod.log();
  while (luod.keeper() == keeper) sched_yield();
  EXPECT_EQ(luod.status()["generation"], 1);
  luod.kill_worker();  // the new keeper does its work
  const Client after{luod};
  const Fd taken = after.retrieve("s");
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(after, taken.raw(), 1))), "content");
}
INSTANTIATE_TEST_SUITE_P(Step, KeeperDiesInCrossing, testing::Range(0, 3));

// --- the keeper is told to end -----------------------------------------------------------------------------

/// A luod with a session, whose keeper gets SIGTERM in the middle of something. It ends, and leaves nothing.
class Terminated : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(luod_.running()) << luod_.log();
    session_ = client_.create("s");
    const Fd file = memfd_with("x");
    ASSERT_EQ(luo_preserve_fd(client_, session_.raw(), file.raw(), 1), 0);
    keeper_ = luod_.keeper();
    for (const pid_t pid : {keeper_, luod_.worker()}) processes_.push_back(*open_pidfd(pid));
  }
  [[nodiscard]] bool post_update(const std::string& image, std::uint32_t timeout_ms) {
    const Fd file = Fd::adopt(open(image.c_str(), O_RDONLY | O_CLOEXEC));
    const int fd = file.raw();
    return admin_.post(Command::UpdateLuod, 0, update_arg("", timeout_ms), {&fd, 1}).has_value();
  }
  void ask_for(const std::string& image, std::uint32_t timeout_ms) { ASSERT_TRUE(post_update(image, timeout_ms)); }
  /// Waits until the keeper has become what `name` says, or is gone.
  void keeper_becomes(const std::string& name) const {
    for (;;) {
      std::error_code error;
      const std::string exe = std::filesystem::read_symlink(fmt::format("/proc/{}/exe", keeper_), error);
      if (error || exe.ends_with(name)) return;
      sched_yield();
    }
  }
  void terminate() const { ASSERT_EQ(kill(keeper_, SIGTERM), 0); }
  /// Every process that could have our session has ended: its end hangs up, and all connections do.
  void expect_end() {
    for (const Fd& process : processes_) EXPECT_TRUE(readable(process.raw())) << "still there\n" << luod_.log();
    EXPECT_TRUE(hung_up(session_.raw())) << "somebody holds its other end\n" << luod_.log();
    while (admin_.answer()) {}
    EXPECT_TRUE(admin_.closed_by_luod());
    EXPECT_FALSE(std::filesystem::exists(luod_.socket())) << "it left its socket\n" << luod_.log();
    const int status = luod_.wait_for_exit();
    EXPECT_TRUE(expected_statuses_.contains(status)) << status << "\n" << luod_.log();
  }
  Luod luod_;
  Client client_{luod_};
  RawClient admin_ = raw_client(luod_, "admin");
  Fd session_;
  pid_t keeper_ = -1;
  std::vector<Fd> processes_;
  std::set<int> expected_statuses_{0};
};

TEST_F(Terminated, WhileServing) {
  terminate();
  expect_end();
}

TEST_F(Terminated, WhileAnImageIsAsked) {
  ask_for(program("luod_image_probe_hangs"), 5'000);
  pid_t probe = -1;
  while (probe < 0) {
    const pid_t worker = luod_.worker();
    std::ifstream children{fmt::format("/proc/{0}/task/{0}/children", worker)};
    for (pid_t child = 0; children >> child;) {
      std::error_code error;
      if (std::filesystem::read_symlink(fmt::format("/proc/{}/exe", child), error).string().ends_with("probe_hangs"))
        probe = child;
    }
  }
  processes_.push_back(*open_pidfd(probe));
  terminate();
  expect_end();
}

TEST_F(Terminated, WhileTheNewImageHangs) {
  ask_for(program("luod_image_hangs"), 1'000);
  keeper_becomes("luod_image_hangs");
  terminate();
  expected_statuses_ = {128 + SIGKILL};  // by the old worker, whose deadline the image missed
  expect_end();
}

TEST_F(Terminated, BeforeTheNewImageFails) {
  // The keeper hears of both at once.
  ASSERT_EQ(kill(keeper_, SIGSTOP), 0);
  ask_for(program("luod_image_start_exits"), 20'000);
  terminate();
  ASSERT_EQ(kill(keeper_, SIGCONT), 0);
  expected_statuses_ = {0, 1};  // of the image, if that was sooner
  expect_end();
}

TEST_F(Terminated, WhileACrossingWaits) {
  RawClient subscriber = raw_client(luod_, "subscriber");
  ASSERT_EQ(subscriber.call(Command::Subscribe, 0, plain_arg(1))->error(), 0);
  ASSERT_TRUE(admin_.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
  ASSERT_TRUE(subscriber.event().has_value());
  terminate();
  expect_end();
}

TEST_F(Terminated, WhileAHandoverWaits) {
  Play play{luod_, true, "other"};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  terminate();
  expect_end();
}

/// The same at many moments of an update to a good image, between one system call of the keeper and the next.
class TerminatedAt : public Terminated, public testing::WithParamInterface<unsigned> {};

TEST_P(TerminatedAt, ASystemCallOfTheKeeper) {
  auto when = SyscallKill::arm_with_signal(keeper_, GetParam(), SIGTERM);
  ASSERT_TRUE(when.has_value());
  const bool posted = post_update(program("luod"), 20'000);  // not if the signal has ended luod before
  pollfd ended{admin_.socket().raw, POLLIN, 0};              // an answer of a luod that goes on, or its end
  ASSERT_EQ(poll(&ended, 1, 30'000), 1);
  const auto outcome = when->wait(std::chrono::milliseconds{0});
  if (!outcome || !outcome->killed) {
    ASSERT_TRUE(posted) << luod_.log();
    const auto answer = admin_.answer();
    EXPECT_TRUE(answer.has_value() && answer->error() == 0) << luod_.log();
    terminate();
  }
  expect_end();
}
INSTANTIATE_TEST_SUITE_P(Stop, TerminatedAt,
                         testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 30, 45, 70, 100, 140, 190, 250,
                                         300, 350, 400, 430, 450, 470));

// --- the successor is killed -------------------------------------------------------------------------------

/// What a successor does, with libluo; its exit status says where it ended.
int succeed(const Luod& luod, std::uint64_t ticket) {
  setenv("LUO_TICKET", fmt::format("{:x}", ticket).c_str(), 1);
  const Client own{luod};
  if (own.error() != 0 || luo_is_successor(own) != 1) return 10;
  const Fd session = own.retrieve("s");
  if (!session.valid()) return 11;
  const Fd file = Fd::adopt(luo_retrieve_fd(own, session.raw(), 1));
  if (!file.valid() || content_of(file) != "content") return 12;
  if (luo_session_take_over(own, session.raw(), 20'000) != 0) return 13;
  return luo_session_renew(own, session.raw()) == 0 ? 0 : 14;
}

TEST(Successor, KilledAtEachSystemCallOfTheHandover) {
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  int given_back = 0;
  for (unsigned n = 1;; ++n) {
    ASSERT_LT(n, 1000U);
    SCOPED_TRACE(n);
    Play play{luod};
    ASSERT_EQ(play.offer(), 0);
    Pipe go = *make_pipe(), ready = *make_pipe();
    fcntl(go.read.raw(), F_SETFL, 0);
    const pid_t child = fork();
    if (child == 0) {
      play.owner.close();  // its connection and its session are the parent's alone
      play.session.fd.close();
      play.admin.close();
      go.write.close();
      char c;
      if (::write(ready.write.raw(), "r", 1) != 1 || ::read(go.read.raw(), &c, 1) != 1) _exit(2);
      _exit(succeed(luod, play.update.ticket));
    }
    ASSERT_TRUE(readable(ready.read.raw()));
    auto kill = SyscallKill::arm(child, n);
    ASSERT_TRUE(kill.has_value());
    const Fd pidfd = *open_pidfd(child);
    ASSERT_EQ(::write(go.write.raw(), "g", 1), 1);
    // The owner agrees when it is asked; whoever starts a successor tells luod when that has ended (as luoctl does).
    for (bool asked = false, ended = false; !ended;) {
      pollfd waits[] = {{asked ? -1 : play.owner.socket().raw, POLLIN, 0}, {pidfd.raw(), POLLIN, 0}};
      ASSERT_GT(poll(waits, 2, 30'000), 0);
      if ((waits[0].revents & POLLIN) != 0) {
        asked = true;
        ASSERT_TRUE(play.owner_is_asked());
        play.verdict();  // ECANCELED if the successor is dead already
      }
      ended = (waits[1].revents & POLLIN) != 0;
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0) << "exit status " << WEXITSTATUS(status) << luod.log();
    // Of one that had the session luod learns by itself, first of all; of one that had not yet come, from its starter.
    luod.status();
    const nlohmann::json left = luod.show("s");
    EXPECT_FALSE(left.value("successor", false)) << luod.log();
    if (left.value("state", "") == "outgoing") {
      RawClient starter = raw_client(luod, "starter");
      ASSERT_TRUE(starter.call(Command::UpdateCancel, 0, play.wait_for()).has_value());
    }
    const std::string outcome = play.outcome();
    if (outcome == "done") {
      // It had the session, and has died as its owner.
      luod.status();
      EXPECT_TRUE(luod.list()["sessions"].empty()) << luod.log();
      EXPECT_TRUE(hung_up(play.session.fd.raw()));
    } else {
      ++given_back;
      play.expect_owner_serves();
    }
    if (HasFailure()) FAIL() << outcome << luod.log();
    if (WIFEXITED(status)) break;
  }
  EXPECT_GT(given_back, 20);
  EXPECT_EQ(luod.status()["files"], 0);
}

}  // namespace
}  // namespace luo::test
