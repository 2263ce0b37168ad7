// `update service`, by its commands: the session passes to the successor, or stays whole with its owner,
// whoever refuses, dawdles or dies, and whenever luod's worker is killed.
#include <signal.h>

#include "play.h"
#include "support/kill_process.h"

namespace luo::test {
namespace {

using wire::Command;

class ServiceUpdate : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  Luod luod_;
};

void whole(Play& play) {
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  ASSERT_EQ(play.verdict(), 0);
  ASSERT_EQ(play.successor->answer()->error(), 0);
  ASSERT_EQ(play.complete(), 0);
  EXPECT_EQ(play.end_of_owner(), "handed over");
  EXPECT_EQ(play.outcome(), "done");
  play.expect_successor_owns();
}

TEST_F(ServiceUpdate, HandsTheSessionOver) {
  Play play{luod_};
  whole(play);
}

TEST_F(ServiceUpdate, AnOwnerThatListensToNothingIsJustReplaced) {
  Play play{luod_, false};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_EQ(play.successor->answer()->error(), 0);
  ASSERT_EQ(play.complete(), 0);
  EXPECT_EQ(play.outcome(), "done");
  play.expect_successor_owns();
}

TEST_F(ServiceUpdate, OneAtATime) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  RawClient other = raw_client(luod_, "other");
  EXPECT_EQ(other.call(Command::UpdateService, 0, update_arg("s"))->error(), EBUSY);
  EXPECT_EQ(other.call(Command::UpdateService, 0, update_arg("nobody"))->error(), ENOENT);
  play.start_successor();
  RawClient second = raw_client(luod_, "second", play.update.ticket);  // the ticket is used up
  EXPECT_EQ(second.call(Command::RetrieveSession, 0, name_arg("s"))->error(), ENOENT);
  play.warm();
  EXPECT_EQ(play.successor->call(Command::RetrieveSession, 0, name_arg("s"))->error(), EINVAL);
  EXPECT_NE(play.complete(), 0) << "before the owner has quiesced";
}

TEST_F(ServiceUpdate, TheSuccessorExitsBeforeItRetrieves) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.die(play.successor, play.taken);
  EXPECT_EQ(play.outcome().substr(0, 12), "ECONNABORTED");
  play.expect_owner_serves();
  whole(play);
}

TEST_F(ServiceUpdate, TheSuccessorExitsWhileItWarms) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.die(play.successor, play.taken);
  EXPECT_EQ(play.outcome().substr(0, 12), "ECONNABORTED");
  play.expect_owner_serves();
  whole(play);
}

TEST_F(ServiceUpdate, TheSuccessorExitsWhileItWaits) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  play.die(play.successor, play.taken);
  EXPECT_EQ(play.end_of_owner().substr(0, 8), "resumed:");
  EXPECT_EQ(play.outcome().substr(0, 12), "ECONNABORTED");
  play.expect_owner_serves();
  whole(play);
}

TEST_F(ServiceUpdate, TheSuccessorExitsBetweenTakeOverAndRenew) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  ASSERT_EQ(play.verdict(), 0);
  ASSERT_EQ(play.successor->answer()->error(), 0);
  EXPECT_EQ(luod_.show("s")["state"], "frozen");
  play.die(play.successor, play.taken);
  EXPECT_EQ(play.end_of_owner().substr(0, 8), "resumed:");
  EXPECT_EQ(play.outcome().substr(0, 12), "ECONNABORTED");
  play.expect_owner_serves();
  whole(play);
}

TEST_F(ServiceUpdate, TheOwnerRefuses) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  ASSERT_EQ(play.verdict("not now"), 0);
  EXPECT_EQ(play.successor->answer()->error(), ECANCELED);
  EXPECT_TRUE(hung_up(play.taken.fd.raw()));
  EXPECT_NE(play.end_of_owner().find("not now"), std::string::npos);
  const std::string outcome = play.outcome();
  EXPECT_EQ(outcome.substr(0, 5), "EBUSY");
  EXPECT_NE(outcome.find("not now"), std::string::npos) << outcome;
  play.expect_owner_serves();
  whole(play);
}

TEST_F(ServiceUpdate, TheOwnerDoesNotAnswer) {
  Play play{luod_};
  ASSERT_EQ(play.offer(300), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  EXPECT_EQ(play.successor->answer()->error(), ECANCELED);
  EXPECT_NE(play.end_of_owner().find("owner"), std::string::npos) << "the culprit's name";
  EXPECT_EQ(play.outcome().substr(0, 9), "ETIMEDOUT");
  play.expect_owner_serves();
}

TEST_F(ServiceUpdate, TheSuccessorDawdles) {
  Play play{luod_};
  ASSERT_EQ(play.offer(100), 0);
  play.start_successor();
  play.warm();
  EXPECT_EQ(play.outcome().substr(0, 9), "ETIMEDOUT");
  EXPECT_TRUE(hung_up(play.taken.fd.raw()));
  play.expect_owner_serves();
}

TEST_F(ServiceUpdate, TheOperatorCallsItOff) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  RawClient operator_ = raw_client(luod_, "operator");
  wire::UpdateArg off = play.wait_for();
  wire::put_text(off.text, "Ctrl-C");
  EXPECT_EQ(operator_.call(Command::UpdateCancel, 0, off)->error(), 0);
  EXPECT_NE(play.outcome().find("Ctrl-C"), std::string::npos);
  EXPECT_EQ(operator_.call(Command::UpdateCancel, 0, off)->error(), ENOENT);
  play.expect_owner_serves();
}

/// The owner dies in a phase: what it left is its successor's, if there is one that has it.
class OwnerDies : public ServiceUpdate, public testing::WithParamInterface<int> {};

TEST_P(OwnerDies, ItsSuccessorGoesOnIfItHasTheSession) {
  const int phase = GetParam();
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  const auto owner_dies = [&] {
    play.session.fd.close();
    play.owner.close();
  };
  if (phase == 0) {
    owner_dies();
    EXPECT_EQ(play.outcome().substr(0, 6), "ESTALE");
    EXPECT_EQ(luod_.status()["files"], 0);
    return;
  }
  play.warm();
  if (phase == 1) owner_dies();
  play.ask_to_take_over();
  if (phase >= 2) {
    ASSERT_TRUE(play.owner_is_asked());
  }
  if (phase == 2) owner_dies();
  if (phase >= 3) {
    ASSERT_EQ(play.verdict(), 0);
  }
  ASSERT_EQ(play.successor->answer()->error(), 0) << luod_.log();
  if (phase == 3) owner_dies();
  ASSERT_EQ(play.complete(), 0) << luod_.log();
  EXPECT_EQ(play.outcome(), "done");
  EXPECT_EQ(luod_.show("s")["state"], "outgoing");
  EXPECT_EQ(luod_.status()["files"], 1);
  const auto file = play.successor->call(Command::UnpreserveFd, play.taken.handle, token_arg(1));
  EXPECT_EQ(file->error(), 0);
}
INSTANTIATE_TEST_SUITE_P(Phase, OwnerDies, testing::Values(0, 1, 2, 3));

/// The worker is killed at each system call of the whole story, in one of its steps.
class KilledHandover : public testing::TestWithParam<int> {};

TEST_P(KilledHandover, EndsAsIfNothingHadHappened) {
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  for (unsigned n = 1;; ++n) {
    ASSERT_LT(n, 1000U);
    SCOPED_TRACE(n);
    std::optional<SyscallKill> kill;
    pid_t worker = -1;
    const auto arm = [&](int step) {
      if (step != GetParam()) return;
      worker = luod.worker();
      auto armed = SyscallKill::arm(worker, n);
      LUO_CHECK(armed.has_value());
      kill.emplace(std::move(*armed));
    };
    Play play{luod};
    arm(0);
    ASSERT_EQ(play.offer(), 0);
    arm(1);
    play.start_successor();
    arm(2);
    play.warm();
    arm(3);
    play.ask_to_take_over();
    ASSERT_TRUE(play.owner_is_asked());
    arm(4);
    ASSERT_EQ(play.verdict(), 0);
    ASSERT_EQ(play.successor->answer()->error(), 0) << luod.log();
    arm(5);
    ASSERT_EQ(play.complete(), 0) << luod.log();
    EXPECT_EQ(play.end_of_owner(), "handed over");
    EXPECT_EQ(play.outcome(), "done");
    const bool killed = died_rather_than_idled(worker);
    play.expect_successor_owns();
    if (HasFailure()) FAIL() << luod.log();
    if (!killed) break;
  }
}
INSTANTIATE_TEST_SUITE_P(Step, KilledHandover, testing::Range(0, 6));

}  // namespace
}  // namespace luo::test
