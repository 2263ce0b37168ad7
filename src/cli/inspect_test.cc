// luoctl inspect, of files and of a scripted luod.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

#include "cli/commands.h"
#include "client/fake_luod.h"
#include "kho/image.h"

namespace luo::cli {
namespace {

using client::FakeLuod;
using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;
using wire::Command;

kho::Arena filled() {
  kho::Arena arena = kho::Arena::create({.name = "kv", .layout = {"kho-kv", 1}, .max_size = 4_MiB}).value();
  kho::Tx tx{arena};
  for (unsigned slot = 0; slot < 3; ++slot) tx.set_root(slot, tx.allocate(1000U << (slot * 3)).value());
  tx.commit();
  return arena;
}

Options of_file(const std::string& path) {
  Options options;
  options.action = Action::Inspect;
  options.file = path;
  return options;
}

/// How this process's descriptor is named by others.
std::string path_of(FdRef fd) { return fmt::format("/proc/self/fd/{}", fd.raw); }

TEST(InspectCommand, ShowsAnArenasFile) {
  const kho::Arena arena = filled();
  const Outcome text = run(of_file(path_of(arena.fd())), {});
  EXPECT_EQ(text.status, kDone) << text.err;
  EXPECT_EQ(text.err, "");
  EXPECT_THAT(text.out, StartsWith("arena, format 1: sound\n"));
  for (const char* there :
       {"kho-kv version 1", "transaction  none open", "chunk table", "BLOCKS OF", "63.0 KiB", "the application's"})
    EXPECT_THAT(text.out, HasSubstr(there));
  EXPECT_EQ(text.out.find("CHECKSUM"), std::string::npos);

  Options options = of_file(path_of(arena.fd()));
  options.json = options.all = true;
  const json report = json::parse(run(options, {}).out);
  EXPECT_EQ(report["sound"], true);
  EXPECT_EQ(report["heap"]["blocks"], 3);
  EXPECT_GT(report["heap"]["chunk_list"].size(), 2U);
  options.json = false;
  EXPECT_THAT(run(options, {}).out, HasSubstr("blocks of 1024 bytes"));
  options.dts = true;
  EXPECT_THAT(run(options, {}).out, StartsWith("/dts-v1/;"));
}

TEST(InspectCommand, AFileThatIsDamagedIsNamedAndShownAsFarAsItIsSound) {
  const Fd image = Fd::adopt(memfd_create("image", MFD_CLOEXEC));
  const std::uint64_t size = kho::write_image(filled(), image).value();
  ASSERT_EQ(pwrite(image.raw(), "x", 1, static_cast<off_t>(size - 4096)), 1);
  Options options = of_file(path_of(image));
  const Outcome text = run(options, {});
  EXPECT_EQ(text.status, kFailed);
  EXPECT_THAT(text.err, StartsWith("luoctl: inspect '" + options.file + "': segment "));
  EXPECT_THAT(text.err, HasSubstr("[EBADMSG]\n  an image is never repaired"));
  EXPECT_THAT(text.out, HasSubstr(": damaged\n"));
  EXPECT_THAT(text.out, HasSubstr("BLOCKS OF"));
  options.json = true;
  const Outcome as_json = run(options, {});
  EXPECT_EQ(as_json.status, kFailed);
  EXPECT_EQ(as_json.err, "");
  const json report = json::parse(as_json.out);
  EXPECT_EQ(report["ok"], false);
  EXPECT_EQ(report["sound"], false);
  EXPECT_EQ(report["faults"].size(), 1U);
  EXPECT_EQ(report["heap"]["blocks"], 3);
}

TEST(InspectCommand, WhatIsNoneOfOursIsRefused) {
  const Outcome missing = run(of_file("/tmp/luo-no-such-file"), {});
  EXPECT_EQ(missing.status, kFailed);
  EXPECT_THAT(missing.err, HasSubstr("open '/tmp/luo-no-such-file'"));
  for (const char* other : {"/", "/dev/null", "/proc/self/exe"}) {
    const Outcome refused = run(of_file(other), {});
    EXPECT_EQ(refused.status, kFailed) << other;
    EXPECT_EQ(refused.out, "") << other;
    EXPECT_THAT(refused.err, HasSubstr("it takes the file of an arena"));
    Options options = of_file(other);
    options.json = true;
    EXPECT_EQ(json::parse(run(options, {}).out)["ok"], false);
  }
}

TEST(InspectCommand, AsksLuodForAnImage) {
  const Fd image = kho::seal(filled(), "luod-inspect").value();
  FakeLuod luod{[&](FakeLuod& self) {
    const auto request = self.expect(Command::Inspect);
    EXPECT_EQ(request.arg<wire::PlainArg>().reserved, 0U);
    const int number = image.raw();
    self.answer(request, 0, wire::PlainArg{}, {&number, 1});
  }};
  Options options;
  options.action = Action::Inspect;
  options.socket = luod.path();
  const Outcome shown = run(options, {});
  EXPECT_EQ(shown.status, kDone) << shown.err;
  EXPECT_THAT(shown.out, StartsWith("image of an arena, format 2, sealed: sound\n"));

  FakeLuod refusing{[](FakeLuod& self) { self.refuse(self.expect(Command::Inspect), EACCES, "only root may"); }};
  options.socket = refusing.path();
  const Outcome refused = run(options, {});
  EXPECT_EQ(refused.status, kFailed);
  EXPECT_THAT(refused.err, HasSubstr("only root may"));

  FakeLuod empty{[](FakeLuod& self) { self.answer(self.expect(Command::Inspect)); }};
  options.socket = empty.path();
  EXPECT_EQ(run(options, {}).status, kFailed);
  options.socket = "/tmp/luo-no-such.sock";
  EXPECT_EQ(run(options, {}).status, kUnreachable);
}

}  // namespace
}  // namespace luo::cli
