// `luoctl run`: how a command starts, ends, is signalled, outlived and killed there. What the ioctls answer is
// tests/conformance's.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "support/luod_fixture.h"
#include "sys/process.h"

namespace luo::test {
namespace {

/// A `luoctl run` of which one keeps both ends.
class Running {
 public:
  Running(const std::string& socket, std::vector<std::string> command) {
    std::vector<std::string> argv{program("luoctl"), "--socket", socket, "run", "--"};
    argv.insert(argv.end(), command.begin(), command.end());
    int in[2], out[2];
    LUO_CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(out[1], 2);
      std::vector<char*> words;
      for (std::string& word : argv) words.push_back(word.data());
      words.push_back(nullptr);
      execv(words[0], words.data());
      _exit(99);
    }
    to_ = Fd::adopt(in[1]);
    from_ = Fd::adopt(out[0]);
    close(in[0]);
    close(out[1]);
  }
  ~Running() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      wait();
    }
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  std::string line() {
    std::string text;
    char c = 0;
    while (readable(from_.raw()) && read(from_.raw(), &c, 1) == 1 && c != '\n') text += c;
    return text;
  }
  std::string ask() {
    EXPECT_EQ(write(to_.raw(), "\n", 1), 1);
    return line();
  }
  std::string rest() {
    std::string text;
    char piece[256];
    for (ssize_t n; readable(from_.raw()) && (n = read(from_.raw(), piece, sizeof piece)) > 0;)
      text.append(piece, static_cast<std::size_t>(n));
    return text;
  }
  void hang_up() { to_.close(); }
  void signal(int number) const { kill(pid_, number); }
  int wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  Fd to_, from_;
};

class Run : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  Ran run(std::vector<std::string> command) {
    std::vector<std::string> argv{program("luoctl"), "--socket", luod_.socket(), "run", "--"};
    argv.insert(argv.end(), command.begin(), command.end());
    return run_program(argv);
  }
  Ran luoctl(std::vector<std::string> words) {
    std::vector<std::string> argv{program("luoctl"), "--socket", luod_.socket()};
    argv.insert(argv.end(), words.begin(), words.end());
    return run_program(argv);
  }
  /// The processes behind each luoctl run.
  std::vector<pid_t> supervisors() {
    std::vector<pid_t> found;
    const nlohmann::json status = luod_.status();
    for (const auto& client : status["clients"])
      if (client["name"] == "luoctl run") found.push_back(client["pid"]);
    return found;
  }
  static std::string target() { return program("luo_run_target"); }

  Luod luod_{{.arguments = {"--handlers", "memfd"}}};
};

TEST_F(Run, ExitStatusIsTheCommands) {
  EXPECT_EQ(run({"sh", "-c", "exit 7"}).status, 7);
  EXPECT_EQ(run({"sh", "-c", "kill -USR1 $$"}).status, 128 + SIGUSR1);
  EXPECT_EQ(run({"true"}).status, 0);
}

TEST_F(Run, WhatCannotBeRunIsSaid) {
  const Ran missing = run({"/no/such/program"});
  EXPECT_EQ(missing.status, 127);
  EXPECT_NE(missing.err.find("/no/such/program: No such file"), std::string::npos) << missing.err;
  EXPECT_EQ(run({"/etc/passwd"}).status, 126);
  const Ran no_luod = run_program({program("luoctl"), "--socket", "/no/such/socket", "run", "--", "true"});
  EXPECT_EQ(no_luod.status, 125);
  EXPECT_NE(no_luod.err.find("is luod running"), std::string::npos) << no_luod.err;
  EXPECT_EQ(run_program({program("luoctl"), "run"}).status, 2);
}

TEST_F(Run, InAnotherRunItIsRefused) {
  const Ran inner = run({program("luoctl"), "--socket", luod_.socket(), "run", "--", "true"});
  EXPECT_EQ(inner.status, 125);
  EXPECT_NE(inner.err.find("within another"), std::string::npos) << inner.err;
}

TEST_F(Run, StandardStreamsAreTheCommands) {
  Running cat{luod_.socket(), {"sh", "-c", "read line; echo got $line; echo and >&2"}};
  EXPECT_EQ(cat.ask(), "got");
  EXPECT_EQ(cat.rest(), "and\n");
  EXPECT_EQ(cat.wait(), 0);
}

TEST_F(Run, OtherFilesOpenAsEver) {
  const Ran ran = run({target(), "open", "50"});
  EXPECT_EQ(ran.status, 0) << ran.out;
}

TEST_F(Run, SignalsArePassedOn) {
  Running command{luod_.socket(), {"sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do read line; done"}};
  EXPECT_EQ(command.line(), "ready");
  command.signal(SIGTERM);
  EXPECT_EQ(command.wait(), 5);
}

TEST_F(Run, DescendantsAreServedAfterItsEnd) {
  // The descendant waits at a fifo, holds no stream of ours, and then uses the device.
  const std::string fifo = luod_.dir() / "fifo", said = luod_.dir() / "said";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  const Ran ran = run({"sh", "-c",
                       "(read line <" + fifo + "; " + target() + " churn 3 >" + said + " 2>&1; echo $? >>" + said +
                           ") </dev/null >/dev/null 2>&1 &"});
  EXPECT_EQ(ran.status, 0);  // and its output had an end: the supervisor holds no pipe
  const auto behind = supervisors();
  ASSERT_EQ(behind.size(), 1U);
  std::error_code error;
  for (const auto& fd : std::filesystem::directory_iterator{"/proc/" + std::to_string(behind[0]) + "/fd"}) {
    const std::string what = std::filesystem::read_symlink(fd.path(), error).string();
    EXPECT_TRUE(what == "/dev/null" || !what.starts_with("/")) << what;
    EXPECT_FALSE(what.starts_with("pipe:")) << what;
  }
  EXPECT_EQ(std::filesystem::read_symlink("/proc/" + std::to_string(behind[0]) + "/cwd", error), "/");
  const Fd end = *open_pidfd(behind[0]);
  const Fd go = Fd::adopt(open(fifo.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(write(go.raw(), "\n", 1), 1);
  EXPECT_TRUE(readable(end.raw())) << "it ends with the last of them";
  const Fd file = Fd::adopt(open(said.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(content_of(file), "0\n");
}

TEST_F(Run, ThreadsAndChildrenAreCovered) {
  const Ran ran = run({target(), "threads", "8"});
  EXPECT_EQ(ran.status, 0) << ran.out;
  const Ran child = run({"sh", "-c", target() + " churn 3; exec " + target() + " churn 3"});
  EXPECT_EQ(child.status, 0) << child.out;
}

TEST_F(Run, TheDeviceIsExclusiveBetweenRuns) {
  Running holder{luod_.socket(), {"sh", "-c", "exec 9</dev/liveupdate && echo open; read line"}};
  EXPECT_EQ(holder.line(), "open");
  const Ran second = run({target(), "churn", "1"});
  EXPECT_EQ(second.out, "open: EBUSY\n");
  holder.hang_up();
  EXPECT_EQ(holder.wait(), 1);  // read's: end of file
  EXPECT_EQ(run({target(), "churn", "1"}).status, 0);
}

TEST_F(Run, ASimulatedUpdateKillsWhatRuns) {
  Running holder{luod_.socket(), {target(), "hold", "s"}};
  EXPECT_EQ(holder.line(), "ready");
  EXPECT_EQ(holder.ask(), "s");
  const Ran update = luoctl({"update", "simulated"});
  EXPECT_EQ(update.status, 0) << update.err;
  EXPECT_EQ(holder.rest(), "luoctl: run " + target() + ": killed, as by a kexec: everything has crossed an update\n");
  EXPECT_EQ(holder.wait(), 128 + SIGKILL);
  EXPECT_TRUE(supervisors().empty());
  const Client client{luod_};
  const Fd session = client.retrieve("s");
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(client, session.raw(), 1))), "kept");
}

TEST_F(Run, AnUpdateThatIsRefusedChangesNothing) {
  Running holder{luod_.socket(), {target(), "hold", "s"}};
  EXPECT_EQ(holder.line(), "ready");
  const Client other{luod_};
  struct Refuser {
    luo_connection* luod;
  } refuser{other};
  const luo_update_callbacks callbacks{.prepare =
                                           [](void* context, const luo_update* update) {
                                             luo_update_refuse(static_cast<Refuser*>(context)->luod, update->id,
                                                               "not now");
                                           },
                                       .resumed = nullptr,
                                       .handed_over = nullptr};
  ASSERT_EQ(luo_on_update(other, &callbacks, &refuser), 0);
  std::jthread answers{[&] {
    if (readable(luo_fd(other))) luo_dispatch(other);
  }};
  const Ran update = luoctl({"update", "simulated"});
  answers.join();
  EXPECT_EQ(update.status, 1);
  EXPECT_NE(update.err.find("not now"), std::string::npos) << update.err;
  EXPECT_EQ(holder.ask(), "s") << "its ioctls waited, and go on";
  holder.hang_up();
  EXPECT_EQ(holder.wait(), 0);
}

TEST(RunUnderAStubbornLuod, AFreezeThatFailsKillsNobodyAndSaysWho) {
  Luod luod{{.program = program("luod_stubborn")}};
  ASSERT_TRUE(luod.running()) << luod.log();
  Running holder{luod.socket(), {program("luo_run_target"), "hold", "s", "stubborn", "no"}};
  EXPECT_EQ(holder.line(), "ready");
  const Ran update = run_program({program("luoctl"), "--socket", luod.socket(), "update", "simulated"});
  EXPECT_EQ(update.status, 1);
  for (const char* part : {"token 1", "'s'", "stubborn-v1", "it does not want to"})
    EXPECT_NE(update.err.find(part), std::string::npos) << part << " in " << update.err;
  EXPECT_EQ(holder.ask(), "s");
  holder.hang_up();
  EXPECT_EQ(holder.wait(), 0);
}

TEST_F(Run, AServiceUpdateOfItsSessionIsRefusedWithTheReason) {
  Running holder{luod_.socket(), {target(), "hold", "s"}};
  EXPECT_EQ(holder.line(), "ready");
  const Ran update = luoctl({"update", "service", "--log", luod_.dir() / "log", "s", "--", target(), "succeed", "s"});
  EXPECT_EQ(update.status, 1);
  EXPECT_NE(update.err.find("it knows only /dev/liveupdate"), std::string::npos) << update.err;
  EXPECT_EQ(holder.ask(), "s");
  holder.hang_up();
  EXPECT_EQ(holder.wait(), 0);
}

TEST_F(Run, KilledAndUpdatedLuodsAreNotNoticed) {
  Running holder{luod_.socket(), {target(), "hold", "s"}};
  EXPECT_EQ(holder.line(), "ready");
  luod_.kill_worker();
  EXPECT_EQ(holder.ask(), "s");
  luod_.kill_keeper();
  EXPECT_EQ(holder.ask(), "s");
  EXPECT_EQ(luoctl({"update", "luod", "--image", program("luod")}).status, 0);
  EXPECT_EQ(holder.ask(), "s");
}

TEST_F(Run, ALuodThatHasEndedIsAnError) {
  Running holder{luod_.socket(), {target(), "hold", "s"}};
  EXPECT_EQ(holder.line(), "ready");
  EXPECT_EQ(luoctl({"stop"}).status, 0);
  EXPECT_EQ(holder.ask(), "EIO");
  holder.hang_up();
  EXPECT_EQ(holder.wait(), 0);
}

TEST_F(Run, ASupervisorThatDiesLeavesNobodyHanging) {
  Running holder{luod_.socket(), {target(), "hold", "s"}};
  EXPECT_EQ(holder.line(), "ready");
  const auto behind = supervisors();
  ASSERT_EQ(behind.size(), 1U);
  kill_and_wait(behind[0]);
  EXPECT_EQ(holder.line(),
            "luoctl: run: the supervisor has died; the command's opens and ioctls get ENOSYS from now on: "
            "No child processes [ECHILD]");
  EXPECT_EQ(holder.ask(), "ENOSYS");
  holder.hang_up();
  EXPECT_EQ(holder.wait(), 125);
}

TEST_F(Run, TargetsThatLieGetAnErrnoAndNobodyElseNotices) {
  Running honest{luod_.socket(), {target(), "hold", "s"}};
  EXPECT_EQ(honest.line(), "ready");
  const Ran ran = run({target(), "lie", "300"});
  EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
  EXPECT_EQ(honest.ask(), "s");
  EXPECT_EQ(luod_.status()["worker_restarts"], 0);
}

TEST(PrivateLuod, IsStartedWhenNeededAndStopped) {
  const TempDir dir;
  const std::string own = "--private=" + dir / "d";
  const Ran none = run_program({program("luoctl"), own, "stop"});
  EXPECT_EQ(none.status, 3) << "to stop it, none is started";
  EXPECT_FALSE(std::filesystem::exists(dir / "d"));
  const Ran status = run_program({program("luoctl"), own, "--json", "status"});
  ASSERT_EQ(status.status, 0) << status.err;
  const auto report = nlohmann::json::parse(status.out);
  EXPECT_EQ(report["handlers"].size(), 1U) << "the kernel's set";
  const Ran again = run_program({program("luoctl"), own, "--json", "status"});
  EXPECT_EQ(nlohmann::json::parse(again.out)["keeper_pid"], report["keeper_pid"]) << "the same one";
  EXPECT_EQ(run_program({program("luoctl"), own, "run", "--", program("luo_run_target"), "churn", "3"}).status, 0);
  EXPECT_EQ(run_program({program("luoctl"), own, "stop"}).status, 0);
}

TEST(PrivateLuod, OneThatCannotStartSaysWhy) {
  const TempDir dir;
  const Ran ran = run_program({program("luoctl"), "--private=" + dir / "d", "--handlers", "no-such-handler", "status"});
  EXPECT_EQ(ran.status, 3);
  EXPECT_NE(ran.err.find("no-such-handler"), std::string::npos) << ran.err;
}

}  // namespace
}  // namespace luo::test
