// A luod with the kernel medium whose kernel is another luod: `luoctl run` gives it that one's device. What it asks of
// the kernel, and how an update of the kernel is undone, can be had so without a virtual machine. A kexec cannot.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include "scenario.h"
#include "support/kill_process.h"
#include "sys/pipe.h"

namespace luo::test {
namespace {

using nlohmann::json;

class OnLuod : public testing::Test {
 protected:
  OnLuod() {
    // Where systemd is the first process luod would ask it for the kexec, and be refused: it runs from a login here.
    std::ofstream{script_}
        << "#!/bin/sh\n[ \"$1\" = --medium ] && shift 2\n"
        << "set -- '" << program("luoctl") << "' --socket '" << below_.socket() << "' run -- '" << program("luod")
        << "' --medium kernel \"$@\"\n"
        << "[ -d /run/systemd/system ] || exec \"$@\"\n"
        << "exec unshare --mount sh -c 'mount -t tmpfs none /run/systemd && exec \"$@\"' sh \"$@\"\n";
    EXPECT_EQ(chmod(script_.c_str(), 0755), 0);
    if (possible_) luod_.emplace(LuodOptions{.program = script_});
  }
  void SetUp() override {
    if (!possible_) GTEST_SKIP() << "under systemd this takes root, to hide systemd from a luod";
    ASSERT_TRUE(below_.running()) << below_.log();
    ASSERT_TRUE(luod_->running()) << luod_->log();
  }
  void TearDown() override {
    if (!possible_) return;
    luod_->stop();
    expect_kernel_files(json::array());
  }

  struct Outcome {
    int error = -1;
    std::string text;
    json report;
  };
  Outcome dry_run() {
    RawClient admin = raw_client(*luod_);
    const wire::UpdateKernelArg arg{sizeof(wire::UpdateKernelArg), 20'000, wire::kUpdateDryRun, 0};
    const auto answer = admin.call(wire::Command::UpdateKernel, 0, arg);
    if (!answer) return {-1, to_string(answer.error()), {}};
    Outcome outcome{answer->error(), answer->text(), {}};
    if (!answer->fds.empty()) outcome.report = json::parse(content_of(answer->fds[0]), nullptr, false);
    return outcome;
  }
  /// How many files each kernel session has, sorted; their names change. Closes are noticed there a moment later.
  void expect_kernel_files(const json& expected) {
    json counts;
    for (int tries = 0; tries < 20'000; ++tries) {
      counts = json::array();
      const json list = below_.list();
      for (const auto& session : list["sessions"]) counts.push_back(session["files"]);
      std::sort(counts.begin(), counts.end());
      if (counts == expected) return;
      sched_yield();
    }
    ADD_FAILURE() << "the kernel has " << counts << ", not " << expected << '\n' << luod_->log();
  }
  void expect_rehearsed(const Outcome& outcome, std::uint64_t sessions, std::uint64_t files) {
    EXPECT_EQ(outcome.error, 0) << outcome.text;
    EXPECT_EQ(outcome.report["ok"], true) << outcome.report;
    EXPECT_EQ(outcome.report["phase"], "rehearsed");
    EXPECT_EQ(outcome.report["sessions"], sessions);
    EXPECT_EQ(outcome.report["files"], files);
  }

  const bool possible_ = geteuid() == 0 || access("/run/systemd/system", F_OK) != 0;
  Luod below_;
  const std::string script_ = below_.dir() / "on-luod";
  std::optional<Luod> luod_;
};

/// A session of which the kernel has three files from the start, and one with a file that it is to have at an update.
class WithSessions : public OnLuod {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(OnLuod::SetUp());
    if (IsSkipped()) return;
    client.emplace(*luod_);
    fixed = client->create("fixed");
    growing = client->create("growing");
    ASSERT_EQ(luo_session_set_option(*client, growing.raw(), "grow", "allow"), 0) << luo_last_error();
    for (std::uint64_t token = 0; token < 4; ++token) {
      files.push_back(memfd_with(std::to_string(token)));
      ASSERT_EQ(preserve(token < 3 ? fixed : growing, files.back(), token), 0) << luo_last_error();
    }
    expect_kernel_files({3});
    before = luod_->state();
  }
  int preserve(const Fd& session, const Fd& file, std::uint64_t token) {
    return luo_preserve_fd(*client, session.raw(), file.raw(), token);
  }
  void expect_as_before() {
    expect_kernel_files({3});
    EXPECT_EQ(luod_->state(), before);
  }
  std::optional<Client> client;
  Fd fixed, growing;
  std::vector<Fd> files;
  std::string before;
};

TEST_F(WithSessions, ADryRunPlacesLateFilesAndTakesThemBack) {
  expect_rehearsed(dry_run(), 2, 4);
  expect_as_before();
  ASSERT_EQ(luo_unpreserve_fd(*client, fixed.raw(), 1), 0) << luo_last_error();
  expect_kernel_files({2});
  expect_rehearsed(dry_run(), 2, 3);
  expect_kernel_files({2});
}

TEST_F(WithSessions, TheWorkerKilledAtEachSystemCallOfADryRun) {
  unsigned n = 1;
  for (bool killed = true; killed; ++n) {
    ASSERT_LT(n, 3000U) << "it never ends";
    const pid_t worker = luod_->worker();
    auto kill = SyscallKill::arm(worker, n);
    ASSERT_TRUE(kill.has_value()) << kill.error().what;
    const Outcome outcome = dry_run();
    killed = died_rather_than_idled(worker);
    SCOPED_TRACE(n);
    expect_rehearsed(outcome, 2, 4);
    expect_as_before();
    if (HasFailure()) return;
  }
  EXPECT_GT(n, 50U) << "so few system calls?";
  RecordProperty("kills", static_cast<int>(n) - 2);
}

/// The kernel is left for another as soon as luod's state is stored in it, or some system calls later: all that ran on
/// it is killed, and a new luod finds what the old one had there.
class LeftFor : public WithSessions, public testing::WithParamInterface<unsigned> {
 protected:
  /// What is stored last, is: the length, at the end of the state's room.
  bool state_is_stored() {
    const std::string fds = "/proc/" + std::to_string(below_.worker()) + "/fd";
    for (const auto& entry : std::filesystem::directory_iterator{fds}) {
      std::error_code gone;
      if (!std::filesystem::read_symlink(entry.path(), gone).string().starts_with("/memfd:luod-image")) continue;
      const Fd image = Fd::adopt(open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
      std::uint64_t length = 0;
      const off_t at = lseek(image.raw(), 0, SEEK_END) - static_cast<off_t>(sizeof length);
      EXPECT_EQ(pread(image.raw(), &length, sizeof length, at), static_cast<ssize_t>(sizeof length));
      return length != 0;
    }
    return false;
  }
  /// Stops the worker in a dry run, `calls` stops after the first at which its state is stored.
  void stop_and_leave(unsigned calls) {
    for (unsigned n = 1, later = 0; n < 3000; ++n) {
      RawClient admin = raw_client(*luod_);
      const pid_t worker = luod_->worker();
      auto stop = SyscallKill::arm_with_signal(worker, n, SIGSTOP);
      ASSERT_TRUE(stop.has_value()) << to_string(stop.error());
      const wire::UpdateKernelArg arg{sizeof(wire::UpdateKernelArg), 20'000, wire::kUpdateDryRun, 0};
      ASSERT_TRUE(admin.post(wire::Command::UpdateKernel, 0, arg));
      const auto outcome = stop->wait(std::chrono::seconds{20});
      ASSERT_TRUE(outcome.has_value()) << to_string(outcome.error());
      ASSERT_TRUE(outcome->killed) << "after " << outcome->stops << " of " << n << " stops";
      if (state_is_stored() && later++ == calls) return;
      kill(worker, SIGCONT);
      const auto answer = admin.answer();
      ASSERT_TRUE(answer.has_value() && answer->error() == 0) << (answer ? answer->text() : to_string(answer.error()));
    }
    FAIL() << "it is never stored";
  }
  /// A luod that cannot serve, until it has saved what came; then its keeper is told to end.
  void start_and_end(const std::string& how, const std::string& options, const std::vector<std::string>& where,
                     const std::string& reason) {
    std::string command = how + " '" + script_ + "' --medium kernel " + options;
    for (const std::string& word : where) command += " '" + word + "'";
    Pipe log = *make_pipe();
    const pid_t child = fork();
    if (child == 0) {
      dup2(log.write.raw(), STDOUT_FILENO);
      dup2(log.write.raw(), STDERR_FILENO);
      execl("/bin/sh", "sh", "-c", (command + " </dev/null").c_str(), nullptr);
      _exit(127);
    }
    log.write.close();
    std::string said;
    const auto read_until = [&](std::string_view words) {
      char piece[4096];
      while (said.find(words) == std::string::npos && readable(log.read.raw())) {
        const ssize_t n = ::read(log.read.raw(), piece, sizeof piece);
        if (n <= 0) break;
        said.append(piece, static_cast<std::size_t>(n));
      }
      return said.find(words) != std::string::npos;
    };
    EXPECT_TRUE(read_until("was saved in")) << said;
    constexpr std::string_view kKeeper = "luod keeper[";
    EXPECT_TRUE(read_until(kKeeper) && read_until(reason)) << said;  // its worker's end is told
    const auto at = said.find(kKeeper);
    ASSERT_NE(at, std::string::npos);
    const int keeper = std::atoi(said.c_str() + at + kKeeper.size());
    ASSERT_GT(keeper, 1) << said;
    EXPECT_EQ(kill(keeper, SIGTERM), 0);
    EXPECT_TRUE(wait_for_death(keeper)) << said;
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
  }
  void expect_all(int count = 4);
  /// Somebody corrects what was wrong and starts luod again: that must not be the end of what is still in the kernel.
  void one_saves_it_for_another(const std::string& how, const std::string& options, const std::string& reason,
                                int count = 4) {
    ASSERT_NO_FATAL_FAILURE(stop_and_leave(GetParam())) << luod_->log();
    cross(below_);
    client.reset();
    luod_.reset();
    const TempDir dir;
    const std::vector<std::string> where{"--state-dir", dir / "state", "--socket", dir / "socket"};
    ASSERT_NO_FATAL_FAILURE(start_and_end(how, options, where, reason));
    luod_.emplace(LuodOptions{.arguments = where,
                              .environment = {{"LUO_SOCKET", dir / "socket"}},
                              .program = script_,
                              .own_directory = false});
    ASSERT_NO_FATAL_FAILURE(expect_all(count));
    for (const auto& entry : std::filesystem::directory_iterator{dir / "state"})
      EXPECT_NE(entry.path().extension(), ".image") << "not needed any more";
  }
};

TEST_P(LeftFor, AllIsThereAgain) {
  ASSERT_NO_FATAL_FAILURE(stop_and_leave(GetParam())) << luod_->log();
  cross(below_);
  client.reset();
  luod_.emplace(LuodOptions{.program = script_});
  ASSERT_NO_FATAL_FAILURE(expect_all());
}

TEST_P(LeftFor, OneWithoutTheHandlerSavesItForOneThatHasIt) {
  one_saves_it_for_another("exec", "--handlers pipe", "needs the handler memfd");
}

class LeftWithManyFiles : public LeftFor {};

TEST_P(LeftWithManyFiles, OneWithoutDescriptorsSavesItForOneThatHasThem) {
  for (std::uint64_t token = 4; token < 50; ++token) {
    files.push_back(memfd_with(std::to_string(token)));
    ASSERT_EQ(preserve(fixed, files.back(), token), 0) << luo_last_error();
  }
  const std::string cannot_raise_it = geteuid() == 0 ? "exec setpriv --bounding-set -sys_resource" : "exec";
  // The files alone would fit.
  one_saves_it_for_another("ulimit -n 56; " + cannot_raise_it, "",
                           "kernel sessions are to be brought, and RLIMIT_NOFILE is 56", 50);
}

INSTANTIATE_TEST_SUITE_P(After, LeftWithManyFiles, testing::Values(0U));

void LeftFor::expect_all(int count) {
  ASSERT_TRUE(luod_->running()) << luod_->log();
  EXPECT_NE(luod_->log().find("arrived: 2 sessions, " + std::to_string(count) + " files"), std::string::npos)
      << luod_->log();
  expect_kernel_files(json::array());
  client.emplace(*luod_);
  fixed = client->retrieve("fixed");
  growing = client->retrieve("growing");
  ASSERT_TRUE(fixed.valid() && growing.valid()) << luod_->list();
  for (std::uint64_t token = 0; token < 4; ++token) {
    const Fd& from = token < 3 ? fixed : growing;
    const Fd file = Fd::adopt(luo_retrieve_fd(*client, from.raw(), token));
    ASSERT_TRUE(file.valid()) << luo_last_error();
    EXPECT_EQ(content_of(file), std::to_string(token));
  }
  for (const Fd* session : {&fixed, &growing})
    EXPECT_EQ(luo_session_finish(*client, session->raw()), 0) << luo_last_error();
  // And all goes on.
  const Fd again = client->create("again");
  ASSERT_EQ(preserve(again, files[0], 9), 0) << luo_last_error();
  expect_kernel_files({1});
  const Outcome rehearsed = dry_run();
  EXPECT_EQ(rehearsed.error, 0) << rehearsed.text;
  EXPECT_EQ(rehearsed.report["files"], 1) << rehearsed.report;
  expect_kernel_files({1});
}

INSTANTIATE_TEST_SUITE_P(After, LeftFor, testing::Values(0U, 1U, 2U));

TEST_F(WithSessions, HolesThatThereIsNoMemoryForStopItBeforeAnythingIsPlaced) {
  const Fd sparse = memfd_with("much of nothing");
  ASSERT_EQ(ftruncate(sparse.raw(), off_t{UINT32_MAX} << 12), 0) << "the most that the kernel takes";
  ASSERT_EQ(preserve(growing, sparse, 4), 0) << luo_last_error();
  before = luod_->state();
  for (int again = 0; again < 2; ++again) {
    const Outcome refused = dry_run();
    EXPECT_EQ(refused.error, ENOMEM) << refused.text;
    EXPECT_NE(refused.text.find("holes"), std::string::npos) << refused.text;
    EXPECT_NE(refused.text.find(std::to_string(UINT32_MAX >> 8)), std::string::npos) << "MiB: " << refused.text;
    expect_as_before();
  }
  ASSERT_EQ(ftruncate(sparse.raw(), 100'000), 0) << "it can be made smaller again";
  expect_rehearsed(dry_run(), 2, 5);
  expect_as_before();
}

TEST_F(WithSessions, WhatTheKernelRefusesInTheMiddleIsUndone) {
  const Client other{below_};
  const Fd others = other.create("others"), contested = memfd_with("contested");
  ASSERT_EQ(preserve(growing, contested, 4), 0) << luo_last_error();
  before = luod_->state();
  ASSERT_EQ(luo_preserve_fd(other, others.raw(), contested.raw(), 1), 0) << luo_last_error();
  const Outcome refused = dry_run();
  EXPECT_EQ(refused.error, EBUSY) << refused.text;
  EXPECT_NE(refused.text.find("token 4 of session 'growing'"), std::string::npos) << refused.text;
  expect_kernel_files({1, 3});
  EXPECT_EQ(luod_->state(), before);
  ASSERT_EQ(luo_unpreserve_fd(other, others.raw(), 1), 0) << luo_last_error();
  expect_rehearsed(dry_run(), 2, 5);
  expect_kernel_files({0, 3});
  EXPECT_EQ(luod_->state(), before);
}

TEST_F(WithSessions, WhatTheKernelRefusesReachesTheClientAtOnce) {
  const Client other{below_};
  const Fd others = other.create("others"), contested = memfd_with("contested");
  ASSERT_EQ(luo_preserve_fd(other, others.raw(), contested.raw(), 1), 0) << luo_last_error();
  EXPECT_EQ(preserve(fixed, contested, 4), -EBUSY);
  EXPECT_NE(std::string{luo_last_error()}.find("the kernel has it preserved already"), std::string::npos)
      << luo_last_error();
  expect_kernel_files({1, 3});
  EXPECT_EQ(luod_->state(), before);
  ASSERT_EQ(luo_unpreserve_fd(other, others.raw(), 1), 0) << luo_last_error();
  EXPECT_EQ(preserve(fixed, contested, 4), 0) << luo_last_error();
  expect_kernel_files({0, 4});
}

}  // namespace
}  // namespace luo::test
