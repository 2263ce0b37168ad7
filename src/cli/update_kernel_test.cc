// luoctl update kernel against a scripted luod and a slot that only remembers. The real one: tests/vm.
#include "cli/update_kernel.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "client/fake_luod.h"
#include "kexec/image_testing.h"

namespace luo::cli {
namespace {

using client::FakeLuod;
using nlohmann::json;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using wire::Command;

struct FakeSlot final : kexec::Slot {
  int error = 0;  ///< of load()
  int unload_error = 0;
  bool full = false, before = false;
  int loads = 0, unloads = 0;
  std::string line;
  bool had_initrd = false;

  Result<> load(FdRef, const Fd& initrd, const std::string& command_line) override {
    ++loads;
    had_initrd = initrd.valid();
    line = command_line;
    if (error != 0) return fail(error, "kexec_file_load");
    full = true;
    return {};
  }
  Result<> unload() override {
    ++unloads;
    if (unload_error != 0) return fail(unload_error, "unload");
    full = false;
    return {};
  }
  Result<bool> loaded() override { return before; }
};

json preflight(json checks = json::array(), bool ok = true) {
  return {{"ok", ok},
          {"medium", "kernel"},
          {"checks", std::move(checks)},
          {"sessions", 3},
          {"files", 7},
          {"will_not_cross", json::array()},
          {"unclaimed", json::array()}};
}

void report(FakeLuod& self, const FakeLuod::Request& to, const json& content, int error = 0) {
  self.report(to, content.dump(), error);
}

void expect_preflight(FakeLuod& self, const json& answer) {
  const auto request = self.expect(Command::Query);
  EXPECT_EQ(request.arg<wire::QueryArg>().kind, static_cast<std::uint32_t>(wire::QueryKind::Preflight));
  report(self, request, answer);
}

const json kDryReport = {
    {"ok", true},
    {"id", 5},
    {"kind", "kernel"},
    {"dry_run", true},
    {"sessions", 3},
    {"files", 7},
    {"image_bytes", 4096},
    {"phase", "done"},
    {"phases", {{"prepare_ms", 12.5}, {"preserve_ms", 3.0}, {"image_ms", 0.25}, {"freeze_ms", 1.0}}}};

class UpdateKernelTest : public testing::Test {
 protected:
  UpdateKernelTest() {
    char name[] = "/tmp/luo-kernel-XXXXXX";
    folder_ = mkdtemp(name);
    write("bzImage", kexec::bzimage("7.3.4-luo", kexec::gzip(kexec::kernel_with(kexec::kGoodConfiguration))));
    write("initrd", "0707");
  }
  ~UpdateKernelTest() override { std::filesystem::remove_all(folder_); }

  std::string path(const char* name) const { return (folder_ / name).string(); }
  void write(const char* name, std::string_view content) const { std::ofstream{folder_ / name} << content; }

  Options options_for(const FakeLuod& luod) const {
    Options options;
    options.action = Action::UpdateKernel;
    options.socket = luod.path();
    options.kernel.kernel = path("bzImage");
    options.kernel.command_line = "quiet kho=on liveupdate=on";
    return options;
  }
  /// What it says, and what it printed on the way.
  Outcome update(const Options& options) {
    testing::internal::CaptureStdout();
    Outcome outcome = update_kernel(options, {}, slot_);
    outcome.out.insert(0, testing::internal::GetCapturedStdout());
    return outcome;
  }

  std::filesystem::path folder_;
  FakeSlot slot_;
};

TEST_F(UpdateKernelTest, DryRunLoadsAsksAndUnloads) {
  FakeLuod luod{[](FakeLuod& self) {
    expect_preflight(self, preflight({{{"name", "subscribers"}, {"level", "ok"}, {"text", "2 will be asked"}}}));
    const auto request = self.expect(Command::UpdateKernel);
    const auto arg = request.arg<wire::UpdateKernelArg>();
    EXPECT_EQ(arg.flags, wire::kUpdateDryRun);
    EXPECT_EQ(arg.timeout_ms, 2500U);
    report(self, request, kDryReport);
  }};
  Options options = options_for(luod);
  options.kernel.dry_run = true;
  options.kernel.initrd = path("initrd");
  options.timeout_ms = 2500;
  const auto outcome = update(options);
  EXPECT_EQ(outcome.status, kDone) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(outcome.out, HasSubstr("3 sessions with 7 files"));
  EXPECT_THAT(outcome.out, HasSubstr("Linux 7.3.4-luo"));
  EXPECT_THAT(outcome.out, HasSubstr("has KEXEC_HANDOVER and LIVEUPDATE (in the image)"));
  EXPECT_THAT(outcome.out, HasSubstr("2 will be asked"));
  EXPECT_THAT(outcome.out, HasSubstr("prepare 12.5 ms, preserve 3.0 ms, image 0.250 ms, freeze 1.0 ms"));
  EXPECT_EQ(slot_.line, "quiet kho=on liveupdate=on");
  EXPECT_TRUE(slot_.had_initrd);
  EXPECT_EQ(slot_.unloads, 1);
  EXPECT_FALSE(slot_.full);
}

TEST_F(UpdateKernelTest, RebootThatIsUnderWayKeepsTheKernelLoaded) {
  FakeLuod luod{[](FakeLuod& self) {
    expect_preflight(self, preflight());
    const auto request = self.expect(Command::UpdateKernel);
    EXPECT_EQ(request.arg<wire::UpdateKernelArg>().flags, 0U);
    report(self, request, {{"ok", true}, {"kind", "kernel"}, {"dry_run", false}, {"sessions", 1}, {"files", 1}});
  }};
  const auto outcome = update(options_for(luod));
  EXPECT_EQ(outcome.status, kDone) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("1 session with 1 file cross into Linux 7.3.4-luo: the machine restarts"));
  EXPECT_TRUE(slot_.full);
  EXPECT_FALSE(slot_.had_initrd);
}

TEST_F(UpdateKernelTest, ErrorOfLuodsPreflightStopsBeforeAnythingIsLoaded) {
  const json checks = {{{"name", "device"}, {"level", "ok"}, {"text", "/dev/liveupdate is luod's"}, {"fix", ""}},
                       {{"name", "files"}, {"level", "error"}, {"text", "2 files cannot cross"}, {"fix", "drop 'vm'"}}};
  json answer = preflight(checks, false);
  answer["will_not_cross"] = {{{"session", "vm"}, {"token", 9}, {"handler", "socket-v1"}, {"why", "only exec can"}}};
  const auto script = [&answer](FakeLuod& self) {
    expect_preflight(self, answer);
    self.expect_end();
  };
  FakeLuod luod{script};
  const auto outcome = update(options_for(luod));
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.out, HasSubstr("  error    files"));
  EXPECT_THAT(outcome.out, HasSubstr("-> drop 'vm'"));
  EXPECT_THAT(outcome.out, HasSubstr("will not cross: token 9 of session 'vm' (socket-v1): only exec can"));
  EXPECT_THAT(outcome.err,
              StartsWith("luoctl: update kernel: 1 of these checks says no; nothing was loaded or changed"));
  EXPECT_EQ(slot_.loads, 0);

  FakeLuod other{script};
  Options options = options_for(other);
  options.json = true;
  const auto as_json = json::parse(update(options).out);
  EXPECT_EQ(as_json["ok"], false);
  EXPECT_EQ(as_json["errno"], "ECANCELED");
  EXPECT_EQ(as_json["kernel"]["release"], "7.3.4-luo");
  EXPECT_EQ(as_json["kernel"]["configuration"]["LIVEUPDATE"], "yes");
  EXPECT_EQ(as_json["checks"][0]["name"], "image");
  EXPECT_EQ(as_json["luod"]["checks"][1]["level"], "error");
  EXPECT_EQ(as_json["luod"]["will_not_cross"][0]["token"], 9);
  EXPECT_EQ(slot_.loads, 0);
}

TEST_F(UpdateKernelTest, UnclaimedSessionsStopItUnlessTheyMayBeDropped) {
  json answer =
      preflight({{{"name", "unclaimed"}, {"level", "error"}, {"text", "2 sessions"}, {"fix", "claim"}}}, false);
  answer["unclaimed"] = {"a", "b\x1b"};
  FakeLuod luod{[&answer](FakeLuod& self) {
    expect_preflight(self, answer);
    self.expect_end();
  }};
  const auto refused = update(options_for(luod));
  EXPECT_EQ(refused.status, kFailed);
  EXPECT_THAT(refused.out, HasSubstr("nobody has claimed session 'b?'"));

  FakeLuod willing{[&answer](FakeLuod& self) {
    expect_preflight(self, answer);
    const auto request = self.expect(Command::UpdateKernel);
    EXPECT_EQ(request.arg<wire::UpdateKernelArg>().flags, wire::kUpdateDryRun | wire::kUpdateDropUnclaimed);
    report(self, request, kDryReport);
  }};
  Options options = options_for(willing);
  options.kernel.drop_unclaimed = options.kernel.dry_run = true;
  const auto outcome = update(options);
  EXPECT_EQ(outcome.status, kDone) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("they will be lost"));
}

TEST_F(UpdateKernelTest, LuodOfTheExecMediumIsToldApart) {
  json answer = preflight();
  answer["medium"] = "exec";
  FakeLuod luod{[&answer](FakeLuod& self) {
    expect_preflight(self, answer);
    self.expect_end();
  }};
  const auto outcome = update(options_for(luod));
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.out, HasSubstr("luod with --medium kernel"));
  EXPECT_EQ(slot_.loads, 0);
}

TEST_F(UpdateKernelTest, LuodThatSaysNoWithoutAReasonIsBelieved) {
  FakeLuod luod{[](FakeLuod& self) {
    expect_preflight(self, preflight(json::array(), false));
    self.expect_end();
  }};
  EXPECT_EQ(update(options_for(luod)).status, kFailed);
  EXPECT_EQ(slot_.loads, 0);
}

TEST_F(UpdateKernelTest, PreflightThatIsNoneIsAFailure) {
  for (const json& strange : {json{{"ok", true}}, json{{"checks", 3}}, json{{"checks", {1, 2}}, {"ok", true}}}) {
    FakeLuod luod{[&strange](FakeLuod& self) {
      expect_preflight(self, strange);
      self.expect_end();
    }};
    const auto outcome = update(options_for(luod));
    EXPECT_EQ(outcome.status, kFailed);
    EXPECT_THAT(outcome.err, HasSubstr("not what this luoctl understands"));
  }
  FakeLuod luod{[](FakeLuod& self) { self.refuse(self.expect(Command::Query), EINVAL, "unknown query 5"); }};
  EXPECT_THAT(update(options_for(luod)).err, HasSubstr("unknown query 5"));
  EXPECT_EQ(slot_.loads, 0);
}

TEST_F(UpdateKernelTest, WhatTheKernelRefusesIsSaidWithAdviceAndLuodIsNotAsked) {
  FakeLuod luod{[](FakeLuod& self) {
    expect_preflight(self, preflight());
    self.expect_end();
  }};
  slot_.error = EADDRNOTAVAIL;
  const auto outcome = update(options_for(luod));
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("bzImage': kexec_file_load: Cannot assign requested address [EADDRNOTAVAIL]"));
  EXPECT_THAT(outcome.err, HasSubstr("kho_scratch="));
  EXPECT_EQ(slot_.unloads, 0) << "what was loaded before is not ours";
}

TEST_F(UpdateKernelTest, RefusedUpdateIsReportedAndTheKernelUnloaded) {
  const auto script = [](FakeLuod& self) {
    expect_preflight(self, preflight());
    report(self, self.expect(Command::UpdateKernel),
           {{"ok", false}, {"kind", "kernel"}, {"error", "cache (pid 5) refused: busy: " + errno_text(EBUSY)}}, EBUSY);
  };
  FakeLuod luod{script};
  const auto outcome = update(options_for(luod));
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_EQ(outcome.err, "luoctl: update kernel: cache (pid 5) refused: busy: Device or resource busy [EBUSY]\n");
  EXPECT_FALSE(slot_.full);
  EXPECT_EQ(slot_.unloads, 1);

  FakeLuod other{script};
  Options options = options_for(other);
  options.json = true;
  const auto as_json = json::parse(update(options).out);
  EXPECT_EQ(as_json["errno"], "EBUSY");
  EXPECT_EQ(as_json["report"]["kind"], "kernel");
  EXPECT_EQ(slot_.unloads, 2);
}

TEST_F(UpdateKernelTest, JsonOfOneThatWorkedIsOneObject) {
  FakeLuod luod{[](FakeLuod& self) {
    expect_preflight(self, preflight());
    report(self, self.expect(Command::UpdateKernel), kDryReport);
  }};
  Options options = options_for(luod);
  options.json = options.kernel.dry_run = true;
  const auto as_json = json::parse(update(options).out);
  EXPECT_EQ(as_json["ok"], true);
  EXPECT_EQ(as_json["report"], kDryReport);
  EXPECT_EQ(as_json["kernel"]["path"], path("bzImage"));
}

TEST_F(UpdateKernelTest, AKernelThatStaysLoadedIsSaidWhateverCameOfTheUpdate) {
  slot_.unload_error = EBUSY;
  for (const bool refused : {false, true}) {
    for (const bool as_json : {false, true}) {
      FakeLuod luod{[refused](FakeLuod& self) {
        expect_preflight(self, preflight());
        report(self, self.expect(Command::UpdateKernel), kDryReport, refused ? EBUSY : 0);
      }};
      Options options = options_for(luod);
      options.kernel.dry_run = true;
      options.json = as_json;
      const auto outcome = update(options);
      EXPECT_EQ(outcome.status, refused ? kFailed : kDone);
      const std::string said = as_json ? json::parse(outcome.out).value("advice", "") : outcome.err;
      EXPECT_THAT(said, HasSubstr("the kernel is still loaded for kexec: unload: " + errno_text(EBUSY)));
      EXPECT_THAT(said, HasSubstr("kexec -u"));
    }
  }
  EXPECT_EQ(slot_.unloads, 4);
}

TEST_F(UpdateKernelTest, WithoutAWordOfLuodTheKernelStaysLoadedButForADryRun) {
  for (const bool dry : {false, true}) {
    FakeLuod luod{[](FakeLuod& self) {
      expect_preflight(self, preflight());
      (void)self.expect(Command::UpdateKernel);
    }};
    Options options = options_for(luod);
    options.kernel.dry_run = dry;
    const auto outcome = update(options);
    EXPECT_EQ(outcome.status, kUnreachable);
    EXPECT_EQ(slot_.full, !dry);
    EXPECT_EQ(outcome.err.contains("the kernel stays loaded"), !dry);
  }
}

TEST_F(UpdateKernelTest, InterruptCallsItOffAndUnloads) {
  if (std::filesystem::exists("/run/systemd/system")) GTEST_SKIP() << "under systemd it stays loaded";
  sigset_t interrupt, before;  // no other thread of this test may get it
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, &before);
  FakeLuod luod{[](FakeLuod& self) {
    expect_preflight(self, preflight());
    (void)self.expect(Command::UpdateKernel);
    kill(getpid(), SIGINT);
    self.expect_end();
  }};
  const auto outcome = update(options_for(luod));
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("called off by the operator"));
  EXPECT_FALSE(slot_.full);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_F(UpdateKernelTest, KernelThatIsNoneAsksNoLuodForAnything) {
  Options options;
  options.socket = "/tmp/luo-no-such.sock";
  options.kernel.kernel = path("no-such");
  EXPECT_THAT(update(options).err, HasSubstr("open the kernel '" + path("no-such") + "'"));
  options.kernel.kernel = folder_.string();
  EXPECT_THAT(update(options).err, HasSubstr("no regular file"));
  options.kernel.kernel = path("bzImage");
  options.kernel.initrd = path("no-such");
  EXPECT_THAT(update(options).err, HasSubstr("open the initrd"));
  options.kernel.initrd.clear();
  EXPECT_EQ(update(options).status, kUnreachable);

  FakeLuod luod{[](FakeLuod& self) { self.expect_end(); }};
  Options garbage = options_for(luod);
  write("garbage", "#!/bin/sh\n");
  garbage.kernel.kernel = path("garbage");
  const auto outcome = update(garbage);
  EXPECT_EQ(outcome.status, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("garbage': it is none that is known here"));
}

TEST_F(UpdateKernelTest, CommandLineOfTheRunningKernelIsTheDefault) {
  std::ifstream file{"/proc/cmdline"};
  std::string running;
  std::getline(file, running);
  FakeLuod luod{[](FakeLuod& self) {
    expect_preflight(self, preflight());
    self.expect_end();
  }};
  Options options = options_for(luod);
  options.kernel.command_line.reset();
  slot_.error = EPERM;  // in case that line turns LUO on: then it is loaded
  EXPECT_THAT(update(options).out, HasSubstr("that of the running kernel"));
  EXPECT_EQ(slot_.line, slot_.loads != 0 ? running : "");
}

}  // namespace
}  // namespace luo::cli
