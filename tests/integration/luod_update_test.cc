// `luoctl update luod`: nobody notices, and there is a way back from every bad image and every kill.
#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "scenario.h"
#include "support/kill_process.h"
#include "sys/pipe.h"
#include "sys/process.h"

namespace luo::test {
namespace {

class LuodUpdate : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(luod_.running()) << luod_.log();
    session_ = client_.create("s");
    ASSERT_EQ(luo_preserve_fd(client_, session_.raw(), file_.raw(), 1), 0) << luo_last_error();
    {
      const Fd crossing = client_.create("in"), content = memfd_with("incoming");
      ASSERT_EQ(luo_preserve_fd(client_, crossing.raw(), content.raw(), 2), 0);
      cross(luod_);
    }
    // Of what crossed, "s" is taken up again; "in" stays for whoever wants it.
    owner_ = std::make_unique<Client>(luod_);
    session_ = owner_->retrieve("s");
    ASSERT_EQ(luo_session_renew(*owner_, session_.raw()), 0) << luo_last_error();
    before_ = luod_.state();
  }
  nlohmann::json update(const std::string& image, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{"--json", "update", "luod", "--image", image};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Ran ran = luoctl(luod_, arguments);
    auto report = nlohmann::json::parse(ran.out, nullptr, false);
    if (!report.is_object()) report = nlohmann::json{{"nonsense", ran.out + ran.err}};
    report["status"] = ran.status;
    return report;
  }
  /// Everything is as before, and works.
  void expect_unchanged() {
    EXPECT_EQ(luod_.state(), before_) << luod_.log();
    const Fd more = memfd_with("more");
    EXPECT_EQ(luo_preserve_fd(*owner_, session_.raw(), more.raw(), 1), -EEXIST) << luo_last_error();
    EXPECT_EQ(luo_preserve_fd(*owner_, session_.raw(), file_.raw(), 9), -EBUSY) << luo_last_error();
    EXPECT_EQ(luo_preserve_fd(*owner_, session_.raw(), more.raw(), 9), 0) << luo_last_error();
    EXPECT_EQ(luo_unpreserve_fd(*owner_, session_.raw(), 9), 0) << luo_last_error();
  }
  void expect_refused(const nlohmann::json& report, const std::string& name_of_errno, const std::string& words) {
    EXPECT_EQ(report["status"], 1) << report;
    EXPECT_EQ(report.value("ok", true), false) << report;
    EXPECT_NE(report.value("error", "").find(name_of_errno), std::string::npos) << report;
    EXPECT_NE(report.dump().find(words), std::string::npos) << report;
    expect_unchanged();
    // And an update to a good one still works.
    const auto good = update(program("luod"));
    EXPECT_EQ(good["status"], 0) << good;
    expect_unchanged();
  }
  std::string image(const std::string& name) { return program("luod_image_" + name); }
  std::string copy_of(const std::string& from, mode_t mode) {
    const std::string to = luod_.dir() / "image";
    std::filesystem::copy_file(from, to);
    chmod(to.c_str(), mode);
    return to;
  }

  Luod luod_;
  Client client_{luod_};
  std::unique_ptr<Client> owner_;
  Fd session_;
  const Fd file_ = memfd_with("file");
  std::string before_;
};

TEST_F(LuodUpdate, ChangesNothingTwentyTimesInARow) {
  for (int i = 0; i < 20; ++i) {
    const auto report = update(program("luod"));
    ASSERT_EQ(report["status"], 0) << i << ": " << report << luod_.log();
    ASSERT_TRUE(report["ok"].get<bool>());
    expect_unchanged();
    if (HasFailure()) break;
  }
  EXPECT_EQ(luod_.status()["updates"], 20);
  EXPECT_EQ(luod_.status()["worker_restarts"], 20) << "one worker for each update, none that died\n" << luod_.log();
  const Client next{luod_};
  const Fd incoming = next.retrieve("in");
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(next, incoming.raw(), 2))), "incoming");
}

TEST_F(LuodUpdate, IsNotNoticedByABusyClient) {
  Pipe enough = *make_pipe();
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Client own{luod_};
    char c;
    int rounds = 0;
    while (::read(enough.read.raw(), &c, 1) < 0) {
      const Fd session = own.create("busy"), file = memfd_with("x");
      if (!session.valid() || luo_preserve_fd(own, session.raw(), file.raw(), 1) != 0 ||
          luo_unpreserve_fd(own, session.raw(), 1) != 0) {
        fmt::print(stderr, "round {}: {}\n", rounds, luo_last_error());
        _exit(1);
      }
      ++rounds;
    }
    _exit(rounds > 0 ? 0 : 2);
  }
  for (int i = 0; i < 10; ++i) EXPECT_EQ(update(program("luod"))["status"], 0);
  EXPECT_EQ(::write(enough.write.raw(), "e", 1), 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  expect_unchanged();
}

TEST_F(LuodUpdate, SurvivesKillsOfBothProcessesAfterwards) {
  ASSERT_EQ(update(program("luod"))["status"], 0);
  luod_.kill_worker();
  expect_unchanged();
  const pid_t keeper = luod_.keeper();
  luod_.kill_keeper();
  while (luod_.keeper() == keeper) sched_yield();
  expect_unchanged();
  ASSERT_EQ(update(program("luod"))["status"], 0);
  luod_.kill_worker();
  expect_unchanged();
}

TEST_F(LuodUpdate, ToAnImageThatIsMissing) {
  const auto report = update(luod_.dir() / "nothing");
  EXPECT_EQ(report["status"], 1);
  EXPECT_NE(report.value("error", "").find("ENOENT"), std::string::npos) << report;
  expect_unchanged();
}

TEST_F(LuodUpdate, ToOneThatIsNotExecutable) {
  expect_refused(update(copy_of(program("luod"), 0644)), "EACCES", "not executable");
}
TEST_F(LuodUpdate, ToOneThatAnybodyMayWrite) {
  expect_refused(update(copy_of(program("luod"), 0757)), "EACCES", "anybody may write");
}

TEST_F(LuodUpdate, ToOneOfAnotherUser) {
  const std::string path = copy_of(program("luod"), 0755);
  if (chown(path.c_str(), 65534, 65534) != 0) GTEST_SKIP() << "only root can make one";
  expect_refused(update(path), "EACCES", "belongs to uid 65534");
}

TEST_F(LuodUpdate, ToOneOfAnotherArchitecture) {
  const std::string path = copy_of(program("luod"), 0755);
  std::fstream file{path, std::ios::in | std::ios::out | std::ios::binary};
  const Elf64_Half machine = EM_S390;
  file.seekp(offsetof(Elf64_Ehdr, e_machine));
  file.write(reinterpret_cast<const char*>(&machine), sizeof machine);
  file.close();
  expect_refused(update(path), "ENOEXEC", "executed");
}

TEST_F(LuodUpdate, ToAScript) {
  const std::string path = luod_.dir() / "script";
  std::ofstream{path} << "#!/bin/sh\necho last words of a script >&2\nexit 3\n";
  chmod(path.c_str(), 0755);
  expect_refused(update(path), "EIO", "last words of a script");
}

TEST_F(LuodUpdate, ToAScriptThatAnswersTheProbe) {
  const std::string path = luod_.dir() / "script";
  std::ofstream{path} << "#!/bin/sh\n[ \"$1\" = --probe ] && exec " << program("luod") << " --probe\nexit 3\n";
  chmod(path.c_str(), 0755);
  expect_refused(update(path), "", "");
}

TEST_F(LuodUpdate, ToOneThatExitsWhenAsked) {
  expect_refused(update(image("probe_exits")), "EIO", "I will not be asked");
}
TEST_F(LuodUpdate, ToOneThatCrashesWhenAsked) { expect_refused(update(image("probe_crashes")), "EIO", ""); }
TEST_F(LuodUpdate, ToOneThatIsNoLuod) { expect_refused(update(image("probe_talks_nonsense")), "EPROTO", "not a luod"); }
TEST_F(LuodUpdate, ToOneThatDoesNotAnswer) {
  expect_refused(update(image("probe_hangs"), {"--timeout", "0.3"}), "ETIMEDOUT", "what was the question?");
  const std::string worker = std::to_string(luod_.worker());
  std::ifstream children{"/proc/" + worker + "/task/" + worker + "/children"};
  std::string left;
  EXPECT_FALSE(children >> left) << "process " << left << " was left behind";
}
TEST_F(LuodUpdate, ToOneThatReadsNoLayoutOfOurs) {
  expect_refused(update(image("other_layout")), "EPROTO", "reads neither version");
}
TEST_F(LuodUpdate, ToOneThatExitsAtItsStart) {
  expect_refused(update(image("start_exits")), "ECHILD", "I do not want to");
}
TEST_F(LuodUpdate, ToOneThatCrashesAtItsStart) { expect_refused(update(image("start_crashes")), "ECHILD", ""); }
TEST_F(LuodUpdate, ToOneThatCrashesAfterReadingTheArena) {
  expect_refused(update(image("after_reading")), "ECHILD", "read 2 sessions");
}
TEST_F(LuodUpdate, ToOneThatHangs) {
  expect_refused(update(image("hangs"), {"--timeout", "0.3"}), "ETIMEDOUT", "let me think");
}

TEST_F(LuodUpdate, ToOneThatHasLostADescriptorOnTheWay) {
  expect_refused(update(image("loses")), "ECHILD", "did not come over the exec");
}
TEST_F(LuodUpdate, ToOneThatHasBroughtADescriptorAlong) {
  ASSERT_EQ(update(image("brings"))["status"], 0) << luod_.log();
  expect_unchanged();  // it is closed: nobody names it
}

/// Nobody watches then: the old worker waits for the new luod, which does not exist yet.
TEST_F(LuodUpdate, SessionsThatAreClosedMeanwhileAreGoneForWhoeverAsksAfterwards) {
  const auto before = luod_.status()["sessions"];
  std::vector<Fd> closed;
  for (int i = 0; i < 300; ++i) {
    closed.push_back(owner_->create(fmt::format("closed-{}", i)));
    ASSERT_TRUE(closed.back().valid()) << luo_last_error();
  }
  const Fd image = Fd::adopt(open(program("luod").c_str(), O_RDONLY | O_CLOEXEC));
  const int fd = image.raw();
  RawClient admin = raw_client(luod_, "admin"), other = raw_client(luod_, "other");
  const pid_t keeper = luod_.keeper();
  ASSERT_EQ(kill(keeper, SIGSTOP), 0);
  ASSERT_TRUE(admin.post(wire::Command::UpdateLuod, 0, update_arg("", 20'000), {&fd, 1}).has_value());
  const auto asked_to_exec = [keeper] {
    std::ifstream status{fmt::format("/proc/{}/status", keeper)};
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("ShdPnd:")) return (std::stoull(line.substr(7), nullptr, 16) >> (SIGUSR2 - 1) & 1) != 0;
    return false;
  };
  while (!asked_to_exec()) sched_yield();
  closed.clear();
  // The first that is asked afterwards.
  ASSERT_TRUE(other.post(wire::Command::UpdateSimulated, 0, update_arg("", 20'000)).has_value());
  ASSERT_EQ(kill(keeper, SIGCONT), 0);
  const auto crossed = other.answer();
  ASSERT_TRUE(crossed.has_value() && crossed->error() == 0) << luod_.log();
  EXPECT_EQ(luod_.status()["sessions"]["incoming"], before["outgoing"]) << "nothing that was closed has crossed";
  const auto answer = admin.answer();
  EXPECT_TRUE(answer.has_value() && answer->error() == 0) << luod_.log();
}

// --- kills in the middle ------------------------------------------------------------------------------

class KilledUpdate : public LuodUpdate {
 protected:
  void SetUp() override {
    LuodUpdate::SetUp();
    image_ = Fd::adopt(open(program("luod").c_str(), O_RDONLY | O_CLOEXEC));
  }
  /// Starts an update, lets `kill` do its work, and expects an answer, and everything as it was.
  template <class Kill>
  void update_and(Kill kill) {
    RawClient admin = raw_client(luod_, "admin");
    const int fd = image_.raw();
    ASSERT_TRUE(admin.post(wire::Command::UpdateLuod, 0, update_arg("", 20'000), {&fd, 1}).has_value());
    kill();
    const auto answer = admin.answer();
    ASSERT_TRUE(answer.has_value()) << answer.error().what << "\n" << luod_.log();
    (answer->error() == 0 ? done_ : refused_)++;
    admin.close();
    expect_unchanged();
  }
  Fd image_;
  int done_ = 0, refused_ = 0;
};

TEST_F(KilledUpdate, OfTheWorkerAtManySystemCalls) {
  for (unsigned n = 1; n < 160 && !HasFailure(); n += n < 40 ? 3 : 7) {
    SCOPED_TRACE(n);
    auto kill = SyscallKill::arm(luod_.worker(), n);
    ASSERT_TRUE(kill.has_value());
    update_and([] {});
  }
  EXPECT_GT(done_, 0);
}

TEST_F(KilledUpdate, OfTheKeeperAtManySystemCalls) {
  // It is the process that becomes the new luod: most of its calls are the start of that.
  for (unsigned n = 1; n < 500 && !HasFailure(); n += n < 20 ? 1 : 13) {
    SCOPED_TRACE(n);
    const pid_t keeper = luod_.keeper();
    auto kill = SyscallKill::arm(keeper, n);
    ASSERT_TRUE(kill.has_value());
    update_and([] {});
    // If it was killed late, the worker makes a new one.
    const auto outcome = kill->wait(std::chrono::milliseconds{0});
    if (outcome && outcome->killed)
      while (luod_.keeper() == keeper) sched_yield();
  }
  EXPECT_GT(refused_, 0);
}

TEST_F(KilledUpdate, OfTheNewWorkerAtManySystemCalls) {
  int kills = 0;
  for (unsigned n = 1; n < 120 && !HasFailure(); n += 4) {
    SCOPED_TRACE(n);
    const pid_t keeper = luod_.keeper(), old_worker = luod_.worker();
    update_and([&] {
      // The keeper's next child that calls itself a worker.
      const auto old = open_pidfd(old_worker);
      for (;;) {
        std::ifstream children{fmt::format("/proc/{0}/task/{0}/children", keeper)};
        pid_t child = 0;
        bool tried = false;
        while (children >> child) {
          std::ifstream comm{fmt::format("/proc/{}/comm", child)};
          std::string name;
          std::getline(comm, name);
          if (child == old_worker || name != "luod-worker") continue;
          tried = true;
          auto kill = SyscallKill::arm(child, n);
          if (!kill) break;
          const auto outcome = kill->wait(std::chrono::milliseconds{200});
          kills += outcome && outcome->killed ? 1 : 0;
        }
        // Over, one way or the other.
        if (tried || open_descriptors(keeper) < 0) return;
      }
    });
  }
  EXPECT_GT(kills, 0);
}

}  // namespace
}  // namespace luo::test
