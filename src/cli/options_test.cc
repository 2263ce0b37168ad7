#include "cli/options.h"

#include <gmock/gmock.h>

namespace luo::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Parsed parse(std::vector<const char*> words) {
  words.insert(words.begin(), "luoctl");
  return parse_options(static_cast<int>(words.size()), words.data());
}

TEST(Options, KnowsEachCommand) {
  EXPECT_EQ(parse({"status"}).options->action, Action::Status);
  EXPECT_EQ(parse({"list"}).options->action, Action::List);
  EXPECT_EQ(parse({"show", "vm-7"}).options->action, Action::Show);
  EXPECT_EQ(parse({"show", "vm-7"}).options->session, "vm-7");
  EXPECT_EQ(parse({"update", "luod"}).options->action, Action::UpdateLuod);
  EXPECT_EQ(parse({"update", "simulated"}).options->action, Action::UpdateSimulated);
  EXPECT_EQ(parse({"stop"}).options->action, Action::Stop);
  EXPECT_EQ(parse({"inspect", "--live"}).options->action, Action::Inspect);
  EXPECT_EQ(parse({"inspect", "--live"}).options->file, "");
  EXPECT_EQ(parse({"inspect", "--all", "--dts", "a.image"}).options->file, "a.image");
  EXPECT_TRUE(parse({"inspect", "--all", "--dts", "a.image"}).options->dts);
  for (const auto& [words, folder] : {std::pair{std::vector<const char*>{"inspect", "--kho"}, ""},
                                      std::pair{std::vector<const char*>{"inspect", "--kho=/d", "--json"}, "/d"}}) {
    const auto parsed = parse(words);
    ASSERT_TRUE(parsed.options) << parsed.text;
    EXPECT_TRUE(parsed.options->kho);
    EXPECT_EQ(parsed.options->kho_folder, folder);
  }
  for (const auto& words : {std::vector<const char*>{"inspect"}, std::vector<const char*>{"inspect", "--kho", "--live"},
                            std::vector<const char*>{"inspect", "--kho=/d", "a.image"},
                            std::vector<const char*>{"inspect", "--kho=/d", "--dts"},
                            std::vector<const char*>{"inspect", "--kho", "--all"}})
    EXPECT_EQ(parse(words).status, kUsage);
}

TEST(Options, UpdateKernelTakesAKernelAndOneCommandLine) {
  const auto whole = parse({"update", "kernel", "--kernel", "/b", "--initrd=/i", "--cmdline", "kho=on -- x",
                            "--dry-run", "--drop-unclaimed", "--timeout", "3"});
  ASSERT_TRUE(whole.options) << whole.text;
  EXPECT_EQ(whole.options->action, Action::UpdateKernel);
  EXPECT_EQ(whole.options->kernel.kernel, "/b");
  EXPECT_EQ(whole.options->kernel.initrd, "/i");
  EXPECT_EQ(whole.options->kernel.command_line, "kho=on -- x");
  EXPECT_TRUE(whole.options->kernel.dry_run);
  EXPECT_TRUE(whole.options->kernel.drop_unclaimed);
  EXPECT_EQ(whole.options->timeout_ms, 3000U);
  EXPECT_EQ(parse({"update", "kernel", "--kernel", "/b", "--cmdline", ""}).options->kernel.command_line, "");
  for (const auto& words : {std::vector<const char*>{"update", "kernel", "--kernel", "/b"},
                            std::vector<const char*>{"update", "kernel", "--kernel", "/b", "--reuse-cmdline"}})
    EXPECT_EQ(parse(words).options->kernel.command_line, std::nullopt);
}

TEST(Options, RunTakesACommandAndAPrivateLuod) {
  const auto parsed = parse({"--private=/d", "run", "--", "./test", "-s", "1"});
  ASSERT_TRUE(parsed.options) << parsed.text;
  EXPECT_EQ(parsed.options->action, Action::Run);
  EXPECT_EQ(parsed.options->private_folder, "/d");
  EXPECT_EQ(parsed.options->private_handlers, "memfd");
  EXPECT_THAT(parsed.options->command, ElementsAre("./test", "-s", "1"));
  EXPECT_EQ(parse({"run"}).status, kUsage);
  EXPECT_EQ(parse({"run", "--"}).status, kUsage);
  EXPECT_EQ(parse({"--private=/d", "--socket=/s", "status"}).status, kUsage);
  EXPECT_EQ(parse({"--handlers=all", "status"}).status, kUsage) << "of which luod?";
  EXPECT_TRUE(parse({"--handlers=all", "--private=/d", "status"}).options);
}

TEST(Options, GlobalOnesStandAnywhere) {
  for (const auto& words : {std::vector<const char*>{"--socket", "/s", "--json", "update", "luod"},
                            std::vector<const char*>{"update", "luod", "--json", "--socket", "/s"},
                            std::vector<const char*>{"update", "--socket=/s", "luod", "--json"}}) {
    const auto parsed = parse(words);
    ASSERT_TRUE(parsed.options) << parsed.text;
    EXPECT_EQ(parsed.options->socket, "/s");
    EXPECT_TRUE(parsed.options->json);
    EXPECT_EQ(parsed.options->action, Action::UpdateLuod);
  }
}

TEST(Options, WhatFollowsTheDashesIsTheCommandWhateverItLooksLike) {
  const auto parsed =
      parse({"update", "service", "cache", "--timeout", "2.5", "--log", "/l", "--", "prog", "--json", "--", "-x"});
  ASSERT_TRUE(parsed.options) << parsed.text;
  EXPECT_EQ(parsed.options->session, "cache");
  EXPECT_EQ(parsed.options->timeout_ms, 2500U);
  EXPECT_EQ(parsed.options->log, "/l");
  EXPECT_FALSE(parsed.options->json);
  EXPECT_THAT(parsed.options->command, ElementsAre("prog", "--json", "--", "-x"));
}

TEST(Options, TimeoutIsLuodsUnlessGiven) {
  EXPECT_EQ(parse({"update", "luod"}).options->timeout_ms, 0U);
  EXPECT_EQ(parse({"update", "luod", "--timeout", "0.001"}).options->timeout_ms, 1U);
}

TEST(Options, WrongUsageIsToldApart) {
  const std::vector<std::vector<const char*>> wrong = {
      {},
      {"bogus"},
      {"status", "extra"},
      {"show"},
      {"show", ""},
      {"inspect"},
      {"inspect", ""},
      {"inspect", "--live", "a.image"},
      {"inspect", "--dts", "--json", "a.image"},
      {"update"},
      {"update", "bogus"},
      {"update", "service"},
      {"update", "service", "cache"},
      {"update", "service", "cache", "--"},
      {"update", "service", "--", "cache"},
      {"update", "luod", "--", "x"},
      {"update", "kernel"},
      {"update", "kernel", "--kernel"},
      {"update", "kernel", "--kernel", ""},
      {"update", "kernel", "/b"},
      {"update", "kernel", "--kernel", "/b", "--cmdline", "x", "--reuse-cmdline"},
      {"update", "kernel", "--kernel", "/b", "--", "kho=on"},
      {"update", "luod", "--timeout", "0"},
      {"update", "luod", "--timeout", "-1"},
      {"update", "luod", "--timeout", "nan"},
      {"update", "luod", "--timeout", "1e9"},
      {"update", "luod", "--timeout", "soon"},
      {"status", "--timeout", "1"},
      {"--bogus", "status"},
  };
  for (const auto& words : wrong) {
    const auto parsed = parse(words);
    EXPECT_FALSE(parsed.options) << testing::PrintToString(words);
    EXPECT_EQ(parsed.status, kUsage);
    EXPECT_THAT(parsed.text, testing::StartsWith("luoctl: "));
  }
  EXPECT_THAT(parse({"bogus"}).text, HasSubstr("bogus"));
  EXPECT_THAT(parse({"update", "bogus"}).text, HasSubstr("bogus"));
}

TEST(Options, EveryHelpTeachesByExample) {
  for (const auto& words : std::vector<std::vector<const char*>>{{"--help"},
                                                                 {"status", "--help"},
                                                                 {"list", "--help"},
                                                                 {"show", "--help"},
                                                                 {"stop", "--help"},
                                                                 {"run", "--help"},
                                                                 {"update", "--help"},
                                                                 {"update", "luod", "--help"},
                                                                 {"update", "service", "--help"},
                                                                 {"update", "kernel", "--help"},
                                                                 {"update", "simulated", "--help"}}) {
    const auto parsed = parse(words);
    EXPECT_FALSE(parsed.options);
    EXPECT_EQ(parsed.status, kDone);
    EXPECT_THAT(parsed.text, HasSubstr("Examples:\n  luoctl "));
  }
  EXPECT_THAT(parse({"--help"}).text, HasSubstr("Exit status: 0 done, 1 refused"));
}

}  // namespace
}  // namespace luo::cli
