// What luoctl says of a kernel before anything is disturbed, each check by itself.
#include "cli/kernel_checks.h"

#include <gmock/gmock.h>

#include "kexec/image_testing.h"

namespace luo::cli {
namespace {

using testing::HasSubstr;

kexec::Target good_target() {
  kexec::Target target;
  target.format = kexec::Format::X86BzImage;
  target.machine = "x86_64";
  target.release = "7.3.4";
  target.page_size = 4096;
  target.longest_line = 60;
  target.size = 1 << 20;
  target.configuration = kexec::parse_configuration(kexec::kGoodConfiguration).value();
  target.configuration.found = "in the image";
  target.formats = {"kho-v4", "luo-v5", "memfd-v2"};
  target.has_luo_by_age = kexec::Verdict::Yes;
  return target;
}
const Host kHost{"x86_64", 4096, false, false, 64 << 20, kexec::StateFormats{"kho-v4", "luo-v5", "memfd-v2"}};
const Chosen kChosen{"/boot/k", "liveupdate=on", false, true, 5};

Check check_named(std::string_view name, const kexec::Target& target, const Chosen& chosen = kChosen,
                  const Host& host = kHost) {
  for (const Check& check : check_kernel(chosen, target, host))
    if (check.name == name) return check;
  return {};
}

TEST(KernelChecks, AreFineForAGoodKernel) {
  for (const Check& check : check_kernel(kChosen, good_target(), kHost)) {
    EXPECT_EQ(check.level, Level::Ok) << check.name << ": " << check.text;
    EXPECT_EQ(check.fix, "") << check.name;
  }
}

TEST(KernelChecks, SayWhatIsWrongAndWhatToDo) {
  const auto bad = [](auto&& change) {
    kexec::Target target = good_target();
    change(target);
    return target;
  };
  EXPECT_EQ(check_named("image", bad([](auto& t) { t.machine = "aarch64"; })).level, Level::Error);
  EXPECT_EQ(check_named("image", bad([](auto& t) { t.unloadable = "it is a zImage"; })).level, Level::Error);
  EXPECT_EQ(check_named("version", bad([](auto& t) { t.has_luo_by_age = kexec::Verdict::No; })).level, Level::Error);
  EXPECT_EQ(check_named("version", bad([](auto& t) { t.has_luo_by_age = kexec::Verdict::NotKnown; })).level,
            Level::Warning);
  EXPECT_EQ(check_named("page-size", bad([](auto& t) { t.page_size = 16384; })).level, Level::Error);
  EXPECT_EQ(check_named("page-size", bad([](auto& t) { t.page_size = 0; })).level, Level::Warning);
  const Check off =
      check_named("configuration", bad([](auto& t) { t.configuration.live_update = kexec::Verdict::No; }));
  EXPECT_EQ(off.level, Level::Error);
  EXPECT_EQ(off.text, "without CONFIG_LIVEUPDATE (in the image)");
  EXPECT_EQ(check_named("configuration", bad([](auto& t) { t.configuration.memfds = kexec::Verdict::No; })).level,
            Level::Error);
  const Check unknown = check_named("configuration", bad([](auto& t) { t.configuration = {}; }));
  EXPECT_EQ(unknown.level, Level::Warning);
  EXPECT_THAT(unknown.fix, HasSubstr("config-7.3.4"));
  EXPECT_EQ(check_named("initrd", good_target(), {"/k", "", false, false, 0}, {"x86_64", 4096, true, false, 0}).level,
            Level::Warning);
  EXPECT_EQ(check_named("loaded", good_target(), kChosen, {"x86_64", 4096, false, true, 0}).level, Level::Warning);
}

TEST(KernelChecks, TheNextKernelReadsWhatThisOneWrites) {
  Host host = kHost;
  const auto check = [&](kexec::StateFormats reads) {
    kexec::Target target = good_target();
    target.formats = std::move(reads);
    return check_named("formats", target, kChosen, host);
  };
  EXPECT_EQ(check({"kho-v4", "luo-v4", "luo-v5", "memfd-v2"}).text,
            "reads kho-v4, luo-v4, luo-v5, memfd-v2, as the running kernel writes them");
  const Check older = check({"kho-v4", "luo-v4", "memfd-v1"});
  EXPECT_EQ(older.level, Level::Error);
  EXPECT_THAT(older.text, HasSubstr("reads kho-v4, luo-v4, memfd-v1; the running kernel writes luo-v5, memfd-v2"));
  EXPECT_NE(older.fix, "");
  EXPECT_EQ(check({}).level, Level::Warning);
  host.formats = fail(EACCES, "open('/proc/kcore')");
  EXPECT_EQ(check({"luo-v4"}).level, Level::Ok);
  EXPECT_THAT(check({"luo-v4"}).text, HasSubstr("reads luo-v4; not known what the running kernel writes: open("));
}

TEST(KernelChecks, KernelAndInitrdNeedTwiceTheirSize) {
  const auto level = [](std::uint64_t room, std::uint64_t initrd) {
    return check_named("memory", good_target(), {"/k", "", false, true, initrd}, {"x86_64", 4096, false, false, room})
        .level;
  };
  EXPECT_EQ(level(4 << 20, 1 << 20), Level::Ok);
  EXPECT_EQ(level((4 << 20) - 1, 1 << 20), Level::Error);
  EXPECT_EQ(level(0, 1 << 20), Level::Warning);
  EXPECT_GT(this_host().room, 0U);
  EXPECT_GT(this_host().page_size, 0U);
}

TEST(KernelChecks, CommandLineHasToTurnBothOn) {
  const auto check = [](const char* line, bool running, bool known) {
    kexec::Target target = good_target();
    if (!known) target.configuration = {};
    return check_named("command-line", target, {"/k", line, running, true, 5});
  };
  EXPECT_EQ(check("quiet", false, true).fix, "add to --cmdline: liveupdate=on");
  EXPECT_EQ(check("kho=off", true, true).fix, "--cmdline \"$(cat /proc/cmdline) kho=on liveupdate=on\"");
  EXPECT_EQ(check("liveupdate=on", false, false).fix, "add to --cmdline: kho=on");
  EXPECT_THAT(check("liveupdate=on", false, false).text, HasSubstr("not known"));
  EXPECT_EQ(check("kho=1 liveupdate=y", false, false).level, Level::Ok);
  const Check long_one = check(std::string(61, 'x').c_str(), false, true);
  EXPECT_EQ(long_one.level, Level::Error);
  EXPECT_EQ(long_one.text, "61 bytes; this kernel takes 60");
}

TEST(KernelChecks, AreColouredOnATerminalOnly) {
  const std::vector<Check> checks{{"a", Level::Ok, "fine", "not shown"},
                                  {"long-name", Level::Error, "bad\x1b", "mend"}};
  EXPECT_EQ(render_checks(checks, {}),
            "  ok       a          fine\n"
            "  error    long-name  bad?\n"
            "                      -> mend\n");
  EXPECT_THAT(render_checks(checks, {true}), HasSubstr("\033[31merror"));
}

}  // namespace
}  // namespace luo::cli
