// `luoctl update simulated`: what a kexec does to everyone, with subscribers that agree, refuse, or do not
// answer, and luod's worker killed on the way.
#include <poll.h>
#include <signal.h>

#include "scenario.h"
#include "support/kill_process.h"

namespace luo::test {
namespace {

using wire::Command;

/// A subscriber that the test plays itself.
struct Subscriber {
  explicit Subscriber(const Luod& luod, const std::string& name) : client{raw_client(luod, name)} {
    LUO_CHECK(client.call(Command::Subscribe, 0, plain_arg(1))->error() == 0);
  }
  std::uint64_t prepare() {
    const auto event = client.event();
    if (!event || event->header.command != static_cast<std::uint32_t>(wire::Event::Prepare)) return 0;
    return event->as<wire::PrepareEvent>().update;
  }
  int verdict(std::uint64_t update, const std::string& refusal = "") {
    wire::VerdictArg arg{};
    arg.size = sizeof arg;
    arg.update = update;
    arg.refused = refusal.empty() ? 0 : 1;
    wire::put_text(arg.reason, refusal);
    const auto answer = client.call(Command::Prepared, 0, arg);
    return answer ? answer->error() : -answer.error().code;
  }
  /// The text of a Resumed event.
  std::string resumed() {
    const auto event = client.event();
    if (!event) return "no event: " + event.error().what;
    if (event->header.command != static_cast<std::uint32_t>(wire::Event::Resumed)) return "another event";
    const auto end = event->as<wire::EndEvent>();
    return std::string{wire::text_in(end.text)};
  }
  RawClient client;
};

class Simulated : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(luod_.running()) << luod_.log();
    for (int i = 0; i < 3; ++i) {
      sessions_.push_back(client_.create(fmt::format("s{}", i)));
      for (int j = 0; j < 3; ++j) {
        const Fd file = memfd_with(fmt::format("{}.{}", i, j));
        ASSERT_EQ(luo_preserve_fd(client_, sessions_.back().raw(), file.raw(), static_cast<std::uint64_t>(j)), 0)
            << luo_last_error();
      }
    }
  }
  Result<RawAnswer> begin(RawClient& admin, std::uint32_t timeout_ms = 20'000) {
    LUO_TRY(admin.post(Command::UpdateSimulated, 0, update_arg("", timeout_ms)));
    return RawAnswer{};
  }
  void expect_all_incoming() {
    const Client after{luod_};
    for (int i = 0; i < 3; ++i) {
      const Fd session = after.retrieve(fmt::format("s{}", i));
      ASSERT_TRUE(session.valid()) << luo_last_error() << luod_.log();
      for (int j = 0; j < 3; ++j)
        EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(after, session.raw(), static_cast<std::uint64_t>(j)))),
                  fmt::format("{}.{}", i, j));
      EXPECT_EQ(luo_session_finish(after, session.raw()), 0) << luo_last_error();
    }
    EXPECT_EQ(luod_.status()["files"], 0);
  }
  void expect_all_outgoing() {
    const Fd file = memfd_with("x");
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(luod_.show(fmt::format("s{}", i)).value("state", ""), "outgoing");
      EXPECT_EQ(luo_preserve_fd(client_, sessions_[static_cast<std::size_t>(i)].raw(), file.raw(), 77), 0)
          << luo_last_error();
      EXPECT_EQ(luo_unpreserve_fd(client_, sessions_[static_cast<std::size_t>(i)].raw(), 77), 0) << luo_last_error();
    }
    EXPECT_EQ(luod_.status()["files"], 9);
  }
  Luod luod_;
  Client client_{luod_};
  std::vector<Fd> sessions_;
};

TEST_F(Simulated, EverythingBecomesIncomingAndHoldersHangUp) {
  cross(luod_);
  for (const Fd& session : sessions_) EXPECT_TRUE(hung_up(session.raw()));
  EXPECT_EQ(luod_.status()["sessions"]["incoming"], 3);
  EXPECT_EQ(luod_.status()["generation"], 1);
  expect_all_incoming();
}

TEST_F(Simulated, WhatNobodyClaimsIsDroppedAtTheNext) {
  cross(luod_);
  const Client after{luod_};
  const Fd claimed = after.retrieve("s1");
  ASSERT_EQ(luo_session_renew(after, claimed.raw()), 0);
  cross(luod_);
  EXPECT_EQ(luod_.list()["sessions"].size(), 1U);
  EXPECT_EQ(luod_.status()["files"], 3);
  const Client next{luod_};
  EXPECT_TRUE(next.retrieve("s1").valid());
  EXPECT_EQ(luo_session_retrieve(next, "s0"), -ENOENT);
}

TEST_F(Simulated, WaitsForAllSubscribers) {
  Subscriber a{luod_, "a"}, b{luod_, "b"};
  RawClient admin = raw_client(luod_, "admin");
  ASSERT_TRUE(begin(admin).has_value());
  const std::uint64_t update = a.prepare();
  ASSERT_NE(update, 0U);
  ASSERT_EQ(b.prepare(), update);
  EXPECT_EQ(a.verdict(update), 0);
  EXPECT_EQ(luod_.status()["sessions"]["outgoing"], 3);
  // The other's answer may be lost with its connection: it is dropped with everything that crosses.
  wire::VerdictArg ready{};
  ready.size = sizeof ready;
  ready.update = update;
  ASSERT_TRUE(b.client.post(Command::Prepared, 0, ready).has_value());
  EXPECT_EQ(admin.answer()->error(), 0);
  expect_all_incoming();
}

TEST_F(Simulated, ARefusalCallsItOffAndItsReasonIsTold) {
  Subscriber a{luod_, "agrees"}, b{luod_, "refuses"};
  RawClient admin = raw_client(luod_, "admin");
  ASSERT_TRUE(begin(admin).has_value());
  const std::uint64_t update = a.prepare();
  EXPECT_EQ(a.verdict(update), 0);
  ASSERT_EQ(b.prepare(), update);
  EXPECT_EQ(b.verdict(update, "in the middle of a transaction"), 0);
  const auto answer = admin.answer();
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->error(), EBUSY);
  ASSERT_EQ(answer->fds.size(), 1U);
  const std::string report = content_of(answer->fds[0]);
  EXPECT_NE(report.find("in the middle of a transaction"), std::string::npos) << report;
  EXPECT_NE(report.find("refuses"), std::string::npos) << report;
  EXPECT_NE(a.resumed().find("in the middle of a transaction"), std::string::npos);
  EXPECT_NE(b.resumed().find("in the middle of a transaction"), std::string::npos);
  expect_all_outgoing();
  EXPECT_EQ(a.verdict(update), ECANCELED) << "too late";
}

TEST_F(Simulated, TheDeadlineNamesWhoWasNotReady) {
  Subscriber a{luod_, "punctual"}, b{luod_, "dawdler"};
  RawClient admin = raw_client(luod_, "admin");
  ASSERT_TRUE(begin(admin, 100).has_value());
  const std::uint64_t update = a.prepare();
  EXPECT_EQ(a.verdict(update), 0);
  const auto answer = admin.answer();
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->error(), ETIMEDOUT);
  const std::string report = content_of(answer->fds.at(0));
  EXPECT_NE(report.find("dawdler"), std::string::npos) << report;
  EXPECT_EQ(report.find("punctual"), std::string::npos) << report;
  EXPECT_NE(a.resumed().find("dawdler"), std::string::npos);
  expect_all_outgoing();
}

TEST_F(Simulated, TheDeathOfASubscriberIsNoRefusal) {
  Subscriber a{luod_, "a"};
  auto b = std::make_unique<Subscriber>(luod_, "dies");
  RawClient admin = raw_client(luod_, "admin");
  ASSERT_TRUE(begin(admin).has_value());
  const std::uint64_t update = a.prepare();
  ASSERT_EQ(b->prepare(), update);
  b.reset();
  wire::VerdictArg ready{};
  ready.size = sizeof ready;
  ready.update = update;
  ASSERT_TRUE(a.client.post(Command::Prepared, 0, ready).has_value());
  EXPECT_EQ(admin.answer()->error(), 0);
  expect_all_incoming();
}

TEST_F(Simulated, TwoAtOnceAreOneTooMany) {
  Subscriber a{luod_, "a"};
  RawClient admin = raw_client(luod_, "admin"), other = raw_client(luod_, "other");
  ASSERT_TRUE(begin(admin).has_value());
  const std::uint64_t update = a.prepare();
  EXPECT_EQ(other.call(Command::UpdateSimulated, 0, update_arg())->error(), EBUSY);
  EXPECT_EQ(a.verdict(update, "no"), 0);
  EXPECT_EQ(admin.answer()->error(), EBUSY);
  a.resumed();
}

TEST_F(Simulated, AKilledWorkerTellsAgainAndGoesOn) {
  Subscriber a{luod_, "a"};
  RawClient admin = raw_client(luod_, "admin");
  ASSERT_TRUE(begin(admin).has_value());
  const std::uint64_t update = a.prepare();
  luod_.kill_worker();
  EXPECT_EQ(a.prepare(), update) << "told again, in case the first got lost";
  wire::VerdictArg ready{};
  ready.size = sizeof ready;
  ready.update = update;
  ASSERT_TRUE(a.client.post(Command::Prepared, 0, ready).has_value());
  EXPECT_EQ(admin.answer()->error(), 0);
  expect_all_incoming();
}

TEST(SimulatedKills, AllCrossesOrNothingAtEachSystemCall) {
  int crossed = 0;
  for (unsigned n = 1;; ++n) {
    ASSERT_LT(n, 1000U);
    SCOPED_TRACE(n);
    Luod luod;
    ASSERT_TRUE(luod.running()) << luod.log();
    const Client client{luod};
    std::vector<Fd> sessions;
    for (int i = 0; i < 3; ++i) {
      sessions.push_back(client.create(fmt::format("s{}", i)));
      const Fd file = memfd_with(std::to_string(i));
      ASSERT_EQ(luo_preserve_fd(client, sessions.back().raw(), file.raw(), 1), 0);
    }
    Subscriber subscriber{luod, "subscriber"};
    RawClient admin = raw_client(luod, "admin");
    ASSERT_TRUE(admin.post(Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
    const std::uint64_t update = subscriber.prepare();
    const pid_t worker = luod.worker();
    auto kill = SyscallKill::arm(worker, n);
    ASSERT_TRUE(kill.has_value());
    wire::VerdictArg ready{};
    ready.size = sizeof ready;
    ready.update = update;
    ASSERT_TRUE(subscriber.client.post(Command::Prepared, 0, ready).has_value());
    const auto answer = admin.answer();
    ASSERT_TRUE(answer.has_value()) << answer.error().what << luod.log();
    const bool killed = died_rather_than_idled(worker);
    const auto status = luod.status();
    if (answer->error() == 0) {
      ++crossed;
      EXPECT_EQ(status["sessions"]["incoming"], 3) << luod.log();
      EXPECT_EQ(status["sessions"]["outgoing"], 0);
      EXPECT_EQ(status["generation"], 1);
      for (const Fd& session : sessions) EXPECT_TRUE(hung_up(session.raw()));
      bool closed = false;  // after an answer, and perhaps a second Prepare
      for (int i = 0; i < 4 && !closed; ++i) closed = subscriber.client.closed_by_luod();
      EXPECT_TRUE(closed);
      const Client after{luod};
      for (int i = 0; i < 3; ++i) {
        const Fd session = after.retrieve(fmt::format("s{}", i));
        ASSERT_TRUE(session.valid()) << luo_last_error();
        EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(after, session.raw(), 1))), std::to_string(i));
      }
    } else {
      EXPECT_EQ(status["sessions"]["outgoing"], 3) << luod.log();
      EXPECT_EQ(status["sessions"]["incoming"], 0);
    }
    EXPECT_EQ(status["files"], 3);
    if (HasFailure()) FAIL() << luod.log();
    if (!killed) break;
  }
  EXPECT_GT(crossed, 0);
}

}  // namespace
}  // namespace luo::test
