// luoctl against a scripted luod.
#include "cli/commands.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>

#include "client/fake_luod.h"

namespace luo::cli {
namespace {

using client::FakeLuod;
using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;
using wire::Command;

Options asking(Action action, const FakeLuod& luod) {
  Options options;
  options.action = action;
  options.socket = luod.path();
  return options;
}

void report(FakeLuod& self, const FakeLuod::Request& to, const json& content, int error = 0) {
  self.report(to, content.dump(), error);
}

TEST(Luoctl, TellsAnUnreachableLuodFromARefusal) {
  Options options;
  options.socket = "/tmp/luo-no-such.sock";
  const auto outcome = run(options, {});
  EXPECT_EQ(outcome.status, kUnreachable);
  EXPECT_THAT(outcome.err, StartsWith("luoctl: reach luod at '/tmp/luo-no-such.sock'"));
  EXPECT_THAT(outcome.err, HasSubstr("is luod running?"));
  options.json = true;
  const auto as_json = json::parse(run(options, {}).out);
  EXPECT_EQ(as_json["ok"], false);
  EXPECT_EQ(as_json["errno"], "ENOENT");

  FakeLuod luod{
      [](FakeLuod& self) { self.refuse(self.expect(Command::Query), ENOENT, "no session 'x' (see luoctl list)"); }};
  Options show = asking(Action::Show, luod);
  show.session = "x";
  const auto refused = run(show, {});
  EXPECT_EQ(refused.status, kFailed);
  EXPECT_EQ(refused.err, "luoctl: no session 'x' (see luoctl list): No such file or directory [ENOENT]\n");
}

TEST(Luoctl, ALuodThatGoesAwayIsUnreachable) {
  FakeLuod luod{[](FakeLuod& self) { (void)self.expect(Command::Query); }};
  EXPECT_EQ(run(asking(Action::Status, luod), {}).status, kUnreachable);
}

TEST(Luoctl, PrintsAListAndItsJson) {
  const json list = {{"sessions", json::array()}};
  FakeLuod luod{[&](FakeLuod& self) {
    const auto request = self.expect(Command::Query);
    EXPECT_EQ(request.arg<wire::QueryArg>().kind, static_cast<std::uint32_t>(wire::QueryKind::List));
    report(self, request, list);
  }};
  EXPECT_EQ(run(asking(Action::List, luod), {}).out, "no sessions\n");

  FakeLuod other{[&](FakeLuod& self) { report(self, self.expect(Command::Query), list); }};
  Options options = asking(Action::List, other);
  options.json = true;
  EXPECT_EQ(json::parse(run(options, {}).out), list);
}

TEST(Luoctl, ReportThatIsNoneIsAFailure) {
  FakeLuod luod{[](FakeLuod& self) { self.answer(self.expect(Command::Query)); }};
  EXPECT_EQ(run(asking(Action::Status, luod), {}).status, kFailed);
}

TEST(Luoctl, UpdateLuodSendsTheImageAndPrintsTheLastWordsOfOneThatFailed) {
  FakeLuod luod{[](FakeLuod& self) {
    const auto request = self.expect(Command::UpdateLuod);
    EXPECT_EQ(request.fds.size(), 1U);
    EXPECT_EQ(request.arg<wire::UpdateArg>().timeout_ms, 1500U);
    report(self, request,
           {{"ok", false}, {"error", "it does not serve: Connection timed out [ETIMEDOUT]"}, {"last_words", "oops\n"}},
           ETIMEDOUT);
  }};
  Options options = asking(Action::UpdateLuod, luod);
  options.image = "/proc/self/exe";
  options.timeout_ms = 1500;
  const auto outcome = run(options, {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_EQ(outcome.err,
            "luoctl: update luod: it does not serve: Connection timed out [ETIMEDOUT]\n"
            "  its last words:\n"
            "  | oops\n");
}

TEST(Luoctl, UpdateLuodWithoutAnImageAsksNobody) {
  Options options;
  options.action = Action::UpdateLuod;
  options.socket = "/tmp/luo-no-such.sock";
  options.image = "/tmp/luo-no-such-image";
  const auto outcome = run(options, {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("open the new luod '/tmp/luo-no-such-image'"));
}

TEST(Luoctl, StopWaitsUntilLuodIsGone) {
  FakeLuod luod{[](FakeLuod& self) { self.answer(self.expect(Command::Stop)); }};
  const auto outcome = run(asking(Action::Stop, luod), {});
  EXPECT_EQ(outcome.status, kDone);
  EXPECT_EQ(outcome.out, "luod stopped\n");
  FakeLuod abrupt{[](FakeLuod& self) { (void)self.expect(Command::Stop); }};
  EXPECT_EQ(run(asking(Action::Stop, abrupt), {}).status, kDone);
  FakeLuod refusing{[](FakeLuod& self) { self.refuse(self.expect(Command::Stop), EACCES, "only root may"); }};
  EXPECT_EQ(run(asking(Action::Stop, refusing), {}).status, kFailed);
}

class UpdateServiceTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kId = 12, kTicket = 0xABCDEF;

  static void offer(FakeLuod& self) {
    const auto request = self.expect(Command::UpdateService);
    auto arg = request.arg<wire::UpdateArg>();
    EXPECT_EQ(wire::text_in(arg.name), "cache");
    arg.id = kId;
    arg.ticket = kTicket;
    self.answer(request, 0, arg);
  }
  static FakeLuod::Request expect_wait(FakeLuod& self) {
    auto request = self.expect(Command::UpdateWait);
    EXPECT_EQ(request.arg<wire::UpdateArg>().id, kId);
    return request;
  }
  /// A second connection that calls the update off; returns the reason.
  static std::string expect_cancel(FakeLuod& self, int error = 0) {
    Fd first = self.accept_another();
    self.greet();
    const auto request = self.expect(Command::UpdateCancel);
    const auto arg = request.arg<wire::UpdateArg>();
    EXPECT_EQ(arg.id, kId);
    self.answer(request, error, arg);
    self.use(std::move(first));
    return std::string{wire::text_in(arg.text)};
  }
  static Options service(const FakeLuod& luod, std::vector<std::string> command) {
    Options options = asking(Action::UpdateService, luod);
    options.session = "cache";
    options.command = std::move(command);
    return options;
  }
  static std::vector<std::string> shell(std::string script) { return {"sh", "-c", std::move(script)}; }
  static std::string log_of(const FakeLuod& luod) {
    return (std::filesystem::path{luod.path()}.parent_path() / "cache.log").string();
  }
};

TEST_F(UpdateServiceTest, LeavesTheSuccessorRunning) {
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    report(self, expect_wait(self),
           {{"ok", true},
            {"kind", "service"},
            {"session", "cache"},
            {"pause_ms", 1.5},
            {"successor_pid", 77},
            {"files", 3}});
  }};
  Options options = service(luod, shell("echo $LUO_TICKET $LUO_SOCKET; exec sleep 100"));
  options.json = true;
  const auto outcome = run(options, {});
  EXPECT_EQ(outcome.status, kDone) << outcome.err << outcome.out;
  const auto result = json::parse(outcome.out);
  EXPECT_EQ(result["pause_ms"], 1.5);
  EXPECT_EQ(result["log"], log_of(luod));
  const pid_t child = result["child_pid"];
  EXPECT_EQ(kill(child, 0), 0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  std::filesystem::remove(log_of(luod));
}

TEST_F(UpdateServiceTest, SuccessorThatExitsEndsTheUpdate) {
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    const auto waiting = expect_wait(self);
    EXPECT_EQ(expect_cancel(self), "the new process exited with status 7 before it had taken over");
    report(self, waiting,
           {{"ok", false},
            {"error", "the new process exited with status 7 before it had taken over: " + errno_text(ECANCELED)}},
           ECANCELED);
  }};
  const auto outcome = run(service(luod, shell("echo out of luck $LUO_TICKET; exit 7")), {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_EQ(outcome.err,
            "luoctl: update service 'cache': the new process exited with status 7 before it had taken over: "
            "Operation canceled [ECANCELED]\n"
            "  its last words:\n"
            "  | out of luck abcdef\n");
  std::filesystem::remove(log_of(luod));
}

TEST_F(UpdateServiceTest, CancelThatComesTooLateIsNoFailure) {
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    const auto waiting = expect_wait(self);
    (void)expect_cancel(self, ENOENT);
    report(self, waiting,
           {{"ok", true},
            {"kind", "service"},
            {"session", "cache"},
            {"pause_ms", 1.5},
            {"successor_pid", 77},
            {"files", 3}});
  }};
  const auto outcome = run(service(luod, {"true"}), {});
  EXPECT_EQ(outcome.status, kDone);
  EXPECT_THAT(outcome.out, StartsWith("service 'cache' updated: pause 1.5 ms, new pid 77, 3 files\n"));
  std::filesystem::remove(log_of(luod));
}

TEST_F(UpdateServiceTest, UpdateThatIsCalledOffEndsTheSuccessor) {
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    const auto waiting = expect_wait(self);
    while (!std::filesystem::exists(log_of(self)) || std::filesystem::file_size(log_of(self)) == 0) {}
    report(self, waiting, {{"ok", false}, {"error", "cache (pid 5) refused: busy: " + errno_text(EBUSY)}}, EBUSY);
  }};
  const auto outcome =
      run(service(luod, shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")), {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("cache (pid 5) refused: busy: Device or resource busy [EBUSY]"));
  EXPECT_THAT(outcome.err, HasSubstr("  | up\n  | bye\n"));
  std::filesystem::remove(log_of(luod));
}

TEST_F(UpdateServiceTest, SuccessorThatLuodSawDieIsNamedWithItsStatus) {
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    report(self, expect_wait(self), {{"ok", false}, {"error", "the successor is gone: " + errno_text(ECONNABORTED)}},
           ECONNABORTED);
    std::ofstream{log_of(self), std::ios::app} << "answered\n";
  }};
  // Not before luod's answer: luoctl would call the update off itself.
  const auto outcome =
      run(service(luod, {"sh", "-c", "until grep -q answered \"$0\"; do sleep 0.01; done; exit 9", log_of(luod)}), {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("the new process exited with status 9"));
  std::filesystem::remove(log_of(luod));
}

TEST_F(UpdateServiceTest, ProgramThatCannotBeStartedIsReportedAndTheUpdateCalledOff) {
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    EXPECT_THAT(expect_cancel(self), HasSubstr("start '/no/such/program': No such file or directory"));
    self.expect_end();
  }};
  const auto outcome = run(service(luod, {"/no/such/program"}), {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_EQ(outcome.err,
            "luoctl: update service 'cache': start '/no/such/program': No such file or directory [ENOENT]\n");
  std::filesystem::remove(log_of(luod));
}

TEST_F(UpdateServiceTest, RefusedOfferStartsNothing) {
  FakeLuod luod{
      [](FakeLuod& self) { self.refuse(self.expect(Command::UpdateService), ENOENT, "no session of that name"); }};
  const auto outcome = run(service(luod, shell("exit 0")), {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_FALSE(std::filesystem::exists(log_of(luod)));
}

TEST_F(UpdateServiceTest, SignalCallsItOff) {
  sigset_t term, before;  // no other thread of this test may get it
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, &before);
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    const auto waiting = expect_wait(self);
    kill(getpid(), SIGTERM);  // luoctl has it blocked, and reads it from a descriptor
    EXPECT_EQ(expect_cancel(self), "called off by the operator");
    report(self, waiting, {{"ok", false}, {"error", "called off by the operator: " + errno_text(ECANCELED)}},
           ECANCELED);
  }};
  const auto outcome = run(service(luod, shell("exec sleep 100")), {});
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("called off by the operator"));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  std::filesystem::remove(log_of(luod));
}

TEST_F(UpdateServiceTest, LuodThatGoesAwayEndsTheSuccessor) {
  FakeLuod luod{[](FakeLuod& self) {
    offer(self);
    (void)expect_wait(self);
  }};
  const auto outcome = run(service(luod, shell("exec sleep 100")), {});
  EXPECT_EQ(outcome.status, kUnreachable);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  std::filesystem::remove(log_of(luod));
}

}  // namespace
}  // namespace luo::cli
