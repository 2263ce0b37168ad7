#include "kexec/command_line.h"

#include <gtest/gtest.h>

namespace luo::kexec {
namespace {

TEST(CommandLine, TheLastWordThatMeansSomethingWins) {
  EXPECT_EQ(switches_in("").handover, std::nullopt);
  EXPECT_EQ(switches_in("console=ttyS0 quiet").live_update, std::nullopt);
  const Switches both = switches_in("root=/dev/vda kho=on liveupdate=1");
  EXPECT_EQ(both.handover, true);
  EXPECT_EQ(both.live_update, true);
  EXPECT_EQ(switches_in("kho=on kho=off").handover, false);
  EXPECT_EQ(switches_in("kho=off kho=y kho=maybe kho").handover, true) << "what it does not understand changes nothing";
  EXPECT_EQ(switches_in("xkho=on nokho=on kho_scratch=1").handover, std::nullopt);
}

TEST(CommandLine, BoolsAreReadAsTheKernelReadsThem) {
  for (const char* yes : {"1", "y", "Y", "yes", "t", "T", "on", "ON", "oNe", "e", "enable", "\"on\""})
    EXPECT_EQ(switches_in(std::string{"liveupdate="} + yes).live_update, true) << yes;
  for (const char* no : {"0", "n", "no", "f", "off", "Off", "d", "disable"})
    EXPECT_EQ(switches_in(std::string{"liveupdate="} + no).live_update, false) << no;
  for (const char* neither : {"", "o", "2", "-1", "\"\"", "=on", "ok"})
    EXPECT_EQ(switches_in(std::string{"liveupdate="} + neither).live_update, std::nullopt) << neither;
}

TEST(CommandLine, QuotesKeepBlanksTogetherAndWhatFollowsTheDashesIsInits) {
  EXPECT_EQ(switches_in("dyndbg=\"file x +p kho=on\" quiet").handover, std::nullopt);
  EXPECT_EQ(switches_in("dyndbg=\"file x +p\" kho=on").handover, true);
  EXPECT_EQ(switches_in("\"kho=on\"").handover, true);
  EXPECT_EQ(switches_in("quiet -- kho=on").handover, std::nullopt);
  EXPECT_EQ(switches_in("kho=on -- kho=off").handover, true);
  EXPECT_EQ(switches_in("kho=on --x kho=off").handover, false);
  EXPECT_EQ(switches_in("\tkho=on\nliveupdate=on\n").live_update, true);
  EXPECT_EQ(switches_in("a=\"kho=on").handover, std::nullopt) << "a quote that is never closed";
}

TEST(CommandLine, DefaultsAndBuiltInLinesCount) {
  Configuration target;
  EXPECT_EQ(turned_on("liveupdate=on", target, "x86_64").handover, Verdict::NotKnown);
  EXPECT_EQ(turned_on("liveupdate=on", target, "x86_64").live_update, Verdict::Yes);
  EXPECT_EQ(turned_on("", target, "x86_64").live_update, Verdict::No);
  target.handover_by_default = Verdict::Yes;
  EXPECT_EQ(turned_on("liveupdate=on", target, "x86_64").handover, Verdict::Yes);
  EXPECT_EQ(turned_on("kho=0", target, "x86_64").handover, Verdict::No);

  target.line = "kho=off liveupdate=on";
  EXPECT_EQ(turned_on("", target, "x86_64").live_update, Verdict::Yes);
  EXPECT_EQ(turned_on("kho=on", target, "x86_64").handover, Verdict::Yes) << "ours comes last";
  EXPECT_EQ(turned_on("quiet", target, "aarch64").live_update, Verdict::No) << "there ours is instead of it";
  EXPECT_EQ(turned_on("", target, "aarch64").live_update, Verdict::Yes);
  target.line_overrides = true;
  EXPECT_EQ(turned_on("kho=on", target, "x86_64").handover, Verdict::No);
}

}  // namespace
}  // namespace luo::kexec
