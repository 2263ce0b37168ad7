// The barrier of an update: who comes late to it, who leaves it half-way, who does not listen, and what is
// left when it was called off in the middle.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include <thread>

#include "play.h"
#include "support/kill_process.h"
#include "sys/memfd.h"

namespace luo::test {
namespace {

using wire::Command;
using wire::Event;

class Barrier : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  static wire::VerdictArg verdict(std::uint64_t update, bool refused = false) {
    wire::VerdictArg arg{};
    arg.size = sizeof arg;
    arg.update = update;
    arg.refused = refused ? 1 : 0;
    return arg;
  }
  static std::uint64_t asked(RawClient& client) {
    for (;;) {
      const auto event = client.event();
      if (!event) return 0;
      if (event->header.command == static_cast<std::uint32_t>(Event::Prepare))
        return event->as<wire::PrepareEvent>().update;
      // The end of the one before, which a new worker may have told again.
    }
  }
  RawClient subscriber(const std::string& name) {
    RawClient client = raw_client(luod_, name);
    LUO_CHECK(client.call(Command::Subscribe, 0, plain_arg(1))->error() == 0);
    return client;
  }
  static bool is_answered(const RawClient& client) {
    pollfd one{client.socket().raw, POLLIN, 0};
    return poll(&one, 1, 0) > 0;
  }
  Luod luod_;
};

// --- an owner whose descriptors close one after another --------------------------------------------------

TEST_F(Barrier, AConnectionThatClosesBeforeTheSessionIsNotYetItsOwnersDeath) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  play.owner.close();
  luod_.status();
  luod_.status();  // it has seen that
  EXPECT_FALSE(is_answered(*play.successor)) << "the owner may still work on what it has";
  EXPECT_EQ(luod_.show("s")["state"], "preparing");
  play.session.fd.close();
  ASSERT_EQ(play.successor->answer()->error(), 0) << luod_.log();
  ASSERT_EQ(play.complete(), 0);
  EXPECT_EQ(play.outcome(), "done");
  EXPECT_EQ(luod_.status()["files"], 1);
}

TEST_F(Barrier, ASessionThatClosesBeforeTheConnectionPassesToItsSuccessor) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  play.session.fd.close();
  ASSERT_EQ(play.successor->answer()->error(), 0) << luod_.log();
  ASSERT_EQ(play.complete(), 0);
  EXPECT_EQ(play.outcome(), "done");
  // The former owner's connection lives; its handle is of no use.
  EXPECT_EQ(play.owner.call(Command::UnpreserveFd, play.session.handle, token_arg(1))->error(), EBADF);
  EXPECT_EQ(luod_.status()["files"], 1);
}

TEST_F(Barrier, ACloseThatANewNameMeetsOnItsWayIsTheOwnersDeathToo) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  // Stopped, luod finds the close and the request that meets it at the same time.
  const pid_t worker = luod_.worker();
  RawClient third = raw_client(luod_, "third");
  ASSERT_EQ(kill(worker, SIGSTOP), 0);
  play.session.fd.close();
  ASSERT_TRUE(third.post(Command::CreateSession, 0, name_arg("s")).has_value());
  ASSERT_EQ(kill(worker, SIGCONT), 0);
  EXPECT_EQ(third.answer()->error(), EEXIST) << "it is the successor's";
  ASSERT_EQ(play.successor->answer()->error(), 0) << luod_.log();
  ASSERT_EQ(play.complete(), 0);
  EXPECT_EQ(play.outcome(), "done");
}

// --- who comes late, who leaves -----------------------------------------------------------------------------

TEST_F(Barrier, WhoSubscribesLateIsAskedAndWaitedFor) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  // A second connection of the owner's, which gets hold of the session only now.
  RawClient late = subscriber("late");
  const int fd = play.session.fd.raw();
  ASSERT_EQ(late.call(Command::Present, 0, plain_arg(), {&fd, 1})->error(), 0);
  ASSERT_EQ(asked(late), play.update.id);
  ASSERT_EQ(play.verdict(), 0);
  luod_.status();
  EXPECT_FALSE(is_answered(*play.successor));
  ASSERT_EQ(late.call(Command::Prepared, 0, verdict(play.update.id))->error(), 0);
  EXPECT_EQ(play.successor->answer()->error(), 0);
  EXPECT_EQ(play.complete(), 0);
  EXPECT_EQ(play.outcome(), "done");
}

TEST_F(Barrier, WhoSubscribesLateToACrossingIsAskedToo) {
  RawClient first = subscriber("first"), admin = raw_client(luod_, "admin");
  ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
  const std::uint64_t update = asked(first);
  ASSERT_NE(update, 0U);
  RawClient late = subscriber("late");
  ASSERT_EQ(asked(late), update);
  ASSERT_EQ(first.call(Command::Prepared, 0, verdict(update))->error(), 0);
  luod_.status();
  EXPECT_FALSE(is_answered(admin));
  ASSERT_TRUE(late.post(Command::Prepared, 0, verdict(update)).has_value());
  EXPECT_EQ(admin.answer()->error(), 0);
}

TEST_F(Barrier, WhoUnsubscribesIsWaitedForNoLonger) {
  RawClient first = subscriber("first"), second = subscriber("second"), admin = raw_client(luod_, "admin");
  ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
  const std::uint64_t update = asked(first);
  ASSERT_TRUE(first.post(Command::Prepared, 0, verdict(update)).has_value());
  ASSERT_EQ(asked(second), update);
  ASSERT_TRUE(second.post(Command::Subscribe, 0, plain_arg(0)).has_value());
  EXPECT_EQ(admin.answer()->error(), 0);
}

// --- one at a time --------------------------------------------------------------------------------------------

TEST_F(Barrier, ACrossingAndAHandoverExcludeEachOther) {
  Play play{luod_};
  RawClient other = raw_client(luod_, "other");
  ASSERT_EQ(play.offer(), 0);
  const auto crossing = other.call(Command::UpdateSimulated, 0, update_arg("", 20'000));
  EXPECT_EQ(crossing->error(), EBUSY);
  EXPECT_NE(crossing->text().find("'s'"), std::string::npos) << crossing->text();
  wire::UpdateArg off = play.wait_for();
  ASSERT_EQ(other.call(Command::UpdateCancel, 0, off)->error(), 0);
  EXPECT_EQ(play.outcome().substr(0, 9), "ECANCELED");

  ASSERT_TRUE(other.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
  const std::uint64_t update = asked(play.owner);
  ASSERT_NE(update, 0U);
  const auto handover = play.admin.call(Command::UpdateService, 0, update_arg("s"));
  EXPECT_EQ(handover->error(), EBUSY);
  EXPECT_NE(handover->text().find("simulated"), std::string::npos) << handover->text();
  ASSERT_EQ(play.owner.call(Command::Prepared, 0, verdict(update, true))->error(), 0);
  EXPECT_EQ(other.answer()->error(), EBUSY) << "the owner refused";
  play.expect_owner_serves();
}

// --- the new image is asked -----------------------------------------------------------------------------------

TEST_F(Barrier, AProbeWhoseRequesterLeavesIsInNobodysWay) {
  const auto open_image = [](const std::string& name) {
    return Fd::adopt(open(program(name).c_str(), O_RDONLY | O_CLOEXEC));
  };
  const Fd hangs = open_image("luod_image_probe_hangs"), good = open_image("luod");
  RawClient first = raw_client(luod_, "first"), second = raw_client(luod_, "second");
  const int bad_fd = hangs.raw(), good_fd = good.raw();
  ASSERT_TRUE(first.post(Command::UpdateLuod, 0, update_arg("", 20'000), {&bad_fd, 1}).has_value());
  luod_.status();
  EXPECT_EQ(second.call(Command::UpdateLuod, 0, update_arg("", 20'000), {&good_fd, 1})->error(), EBUSY);
  first.close();
  EXPECT_EQ(second.call(Command::UpdateLuod, 0, update_arg("", 20'000), {&good_fd, 1})->error(), 0) << luod_.log();
}

// --- who does not listen ----------------------------------------------------------------------------------------

/// A subscriber that has not read for so long that luod keeps what it has to say for it.
TEST_F(Barrier, WhatIsQueuedForADeafSubscriberIsToldByTheNextWorkerToo) {
  RawClient session_owner = raw_client(luod_, "owner"), admin = raw_client(luod_, "admin"),
            refuses = subscriber("refuses");
  // Its own requests fill its queue first: answers that it does not read.
  RawClient deaf = subscriber("deaf");
  wire::QueryArg query{};
  query.size = sizeof query;
  query.kind = static_cast<std::uint32_t>(wire::QueryKind::Status);
  const auto off = [&] {
    ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
    const std::uint64_t update = asked(refuses);
    ASSERT_NE(update, 0U);
    ASSERT_EQ(refuses.call(Command::Prepared, 0, verdict(update, true))->error(), 0);
    ASSERT_EQ(admin.answer()->error(), EBUSY);
  };
  // The kernel's queue takes some hundred events; luod's own, some more.
  int rounds = 0;
  int room = 0;
  socklen_t size = sizeof room;
  ASSERT_EQ(getsockopt(deaf.socket().raw, SOL_SOCKET, SO_SNDBUF, &room, &size), 0);
  const int enough = room / 768 / 2 + 20;  // two events each, of less than 768 bytes with what the kernel adds
  for (; rounds < enough; ++rounds) off();
  if (HasFatalFailure()) return;
  luod_.kill_worker();
  off();
  luod_.kill_worker();
  luod_.status();
  // Now it listens: of every update that it was asked about it hears the end, the last one's included.
  std::uint64_t last_asked = 0, last_resumed = 0;
  for (;;) {
    pollfd one{deaf.socket().raw, POLLIN, 0};
    if (poll(&one, 1, 300) <= 0) break;
    const auto event = deaf.event();
    if (!event) break;  // luod gave it up: it had not read for too long. It will find its connection closed.
    if (event->header.command == static_cast<std::uint32_t>(Event::Prepare))
      last_asked = std::max(last_asked, event->as<wire::PrepareEvent>().update);
    if (event->header.command == static_cast<std::uint32_t>(Event::Resumed))
      last_resumed = std::max(last_resumed, event->as<wire::EndEvent>().update);
  }
  EXPECT_GT(last_asked, 0U);
  EXPECT_EQ(last_resumed, static_cast<std::uint64_t>(rounds) + 1) << "asked last about " << last_asked << "\n"
                                                                  << luod_.log();
}

TEST_F(Barrier, WhoWaitsForASessionAndDoesNotReadEventsGetsItsAnswer) {
  RawClient admin = raw_client(luod_, "admin"), refuses = subscriber("refuses"), waits = subscriber("waits");
  wire::WaitArg wait = wait_arg(3'000);
  wire::put_text(wait.name, "later");
  ASSERT_TRUE(waits.post(Command::RetrieveWait, 0, wait).has_value());
  int room = 0;
  socklen_t size = sizeof room;
  ASSERT_EQ(getsockopt(waits.socket().raw, SOL_SOCKET, SO_SNDBUF, &room, &size), 0);
  for (int i = 0; i < room / 768 / 2 + 10; ++i) {
    ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
    const std::uint64_t update = asked(refuses);
    ASSERT_EQ(refuses.call(Command::Prepared, 0, verdict(update, true))->error(), 0);
    ASSERT_EQ(admin.answer()->error(), EBUSY);
  }
  // It reads again, and in the end it is told that nothing came.
  const auto answer = waits.answer();
  ASSERT_TRUE(answer.has_value()) << answer.error().what;
  EXPECT_EQ(answer->error(), ETIMEDOUT);
}

// --- what is left when it was called off --------------------------------------------------------------------------

TEST(BarrierKills, ARefusedCrossingLeavesNothingFrozenWhereverTheWorkerIsKilled) {
  for (unsigned n = 1;; n += 2) {
    ASSERT_LT(n, 1000U);
    SCOPED_TRACE(n);
    Luod luod{LuodOptions{.program = program("luod_stubborn")}};
    ASSERT_TRUE(luod.running()) << luod.log();
    const Client client{luod};
    std::vector<Fd> sessions;
    for (const char* answer : {"yes", "yes", "no"}) {
      sessions.push_back(client.create(fmt::format("s{}", sessions.size())));
      const Fd file = *make_memfd("stubborn", 0);
      ASSERT_TRUE(write_all(file, answer).has_value());
      ASSERT_EQ(luo_preserve_fd(client, sessions.back().raw(), file.raw(), 1), 0) << luo_last_error();
    }
    RawClient admin = raw_client(luod, "admin");
    const pid_t worker = luod.worker();
    auto kill = SyscallKill::arm(worker, n);
    ASSERT_TRUE(kill.has_value());
    ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
    const auto answer = admin.answer();
    ASSERT_TRUE(answer.has_value()) << answer.error().what << luod.log();
    EXPECT_EQ(answer->error(), EREMOTEIO);
    const bool killed = died_rather_than_idled(worker);
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      EXPECT_EQ(luod.show(fmt::format("s{}", i))["state"], "outgoing");
      const Fd more = memfd_with("more");
      EXPECT_EQ(luo_preserve_fd(client, sessions[i].raw(), more.raw(), 2), 0) << luo_last_error();
    }
    if (HasFailure()) FAIL() << luod.log();
    if (!killed) break;
  }
}

// --- the keeper ---------------------------------------------------------------------------------------------------

class KeeperDies : public testing::TestWithParam<int> {};

TEST_P(KeeperDies, InAStepOfAHandover) {
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  const auto at = [&](int step) {
    if (step != GetParam()) return;
    const pid_t keeper = luod.keeper();
    luod.kill_keeper();
    while (luod.keeper() == keeper) sched_yield();
  };
  Play play{luod};
  at(0);
  ASSERT_EQ(play.offer(), 0);
  at(1);
  play.start_successor();
  at(2);
  play.warm();
  at(3);
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  at(4);
  ASSERT_EQ(play.verdict(), 0);
  ASSERT_EQ(play.successor->answer()->error(), 0) << luod.log();
  at(5);
  ASSERT_EQ(play.complete(), 0) << luod.log();
  at(6);
  EXPECT_EQ(play.end_of_owner(), "handed over");
  EXPECT_EQ(play.outcome(), "done");
  play.expect_successor_owns();
  // And the one that took its place keeps watch.
  luod.kill_worker();
  play.expect_successor_owns();
}
INSTANTIATE_TEST_SUITE_P(Step, KeeperDies, testing::Range(0, 7));

TEST_F(Barrier, TheKeeperDiesBeforeACrossing) {
  RawClient first = subscriber("first"), admin = raw_client(luod_, "admin");
  const Client client{luod_};
  const Fd session = client.create("s");
  ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
  const std::uint64_t update = asked(first);
  luod_.kill_keeper();
  ASSERT_TRUE(first.post(Command::Prepared, 0, verdict(update)).has_value());
  EXPECT_EQ(admin.answer()->error(), 0);
  EXPECT_EQ(luod_.show("s")["state"], "incoming");
}

TEST_F(Barrier, ToldToEndTheKeeperDoesSoWhateverBecomesOfTheWorker) {
  const pid_t keeper = luod_.keeper(), worker = luod_.worker();
  ASSERT_EQ(kill(worker, SIGSTOP), 0);  // it will not hear of it
  ASSERT_EQ(kill(keeper, SIGTERM), 0);
  ASSERT_EQ(kill(worker, SIGKILL), 0);
  EXPECT_TRUE(wait_for_death(keeper));
  EXPECT_FALSE(Client{luod_}.error() == 0) << "somebody goes on serving";
}

TEST_F(Barrier, ToldToEndDuringAHandoverItEnds) {
  Play play{luod_};
  ASSERT_EQ(play.offer(), 0);
  play.start_successor();
  play.warm();
  play.ask_to_take_over();
  ASSERT_TRUE(play.owner_is_asked());
  EXPECT_EQ(luod_.stop(), 0);
}

}  // namespace
}  // namespace luo::test
