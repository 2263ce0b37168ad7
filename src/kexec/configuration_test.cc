#include "kexec/configuration.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "kexec/image_testing.h"

namespace luo::kexec {
namespace {

TEST(Configuration, TellsNotSetFromNotMentioned) {
  const auto good = parse_configuration(kGoodConfiguration).value();
  EXPECT_EQ(good.handover, Verdict::Yes);
  EXPECT_EQ(good.handover_by_default, Verdict::Yes);
  EXPECT_EQ(good.live_update, Verdict::Yes);
  EXPECT_EQ(good.memfds, Verdict::Yes);
  const auto bare = parse_configuration("# CONFIG_LIVEUPDATE is not set\nCONFIG_KEXEC_HANDOVER=y").value();
  EXPECT_EQ(bare.handover, Verdict::Yes);
  EXPECT_EQ(bare.live_update, Verdict::No);
  EXPECT_EQ(bare.handover_by_default, Verdict::No) << "no word of it: it cannot be chosen there";
  EXPECT_EQ(bare.memfds, Verdict::NotKnown) << "the first kernels with LUO have no such option";
  EXPECT_EQ(parse_configuration("CONFIG_LIVEUPDATE=y\n# CONFIG_LIVEUPDATE_MEMFD is not set\n")->memfds, Verdict::No);
  for (const char* none : {"", "hello", "#CONFIG_X=y", "\n\n"})
    EXPECT_EQ(parse_configuration(none).error().code, EBADMSG) << none;
}

TEST(Configuration, HasTheBuiltInCommandLine) {
  const auto parsed = parse_configuration(
      "CONFIG_CMDLINE_BOOL=y\nCONFIG_CMDLINE=\"kho=on a=\\\"b c\\\"\"\nCONFIG_CMDLINE_OVERRIDE=y\n");
  EXPECT_EQ(parsed->line, "kho=on a=\"b c\"");
  EXPECT_TRUE(parsed->line_overrides);
  EXPECT_EQ(parse_configuration("CONFIG_CMDLINE=\"open")->line, "open");
}

TEST(Configuration, IsFoundInAKernelInPiecesOfAnySize) {
  const std::string kernel = kernel_with(kGoodConfiguration);
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{64}, std::size_t{4096}, kernel.size()}) {
    EmbeddedConfiguration embedded;
    for (std::size_t at = 0; at < kernel.size(); at += piece)
      embedded.feed(std::as_bytes(std::span{kernel}.subspan(at, std::min(piece, kernel.size() - at))));
    EXPECT_EQ(embedded.text(), kGoodConfiguration) << piece;
  }
}

TEST(Configuration, MarksThatHaveNoneBetweenThemAreNone) {
  std::string marks;
  for (int i = 0; i < 100'000; ++i) marks += "IKCFG_ST";
  EmbeddedConfiguration embedded;
  for (int i = 0; i < 10; ++i) embedded.feed(std::as_bytes(std::span{marks}));
  const std::string kernel = kernel_with(kGoodConfiguration);
  embedded.feed(std::as_bytes(std::span{kernel}));
  EXPECT_EQ(embedded.text(), std::nullopt);
}

TEST(Configuration, LiesBesideTheKernelUnderItsName) {
  namespace fs = std::filesystem;
  char name[] = "/tmp/luo-configuration-XXXXXX";
  const fs::path folder = mkdtemp(name);
  const auto put = [&](const char* file, std::string_view content) { std::ofstream{folder / file} << content; };
  const std::string kernel = (folder / "vmlinuz-7.3.4-luo").string();
  put("vmlinuz-7.3.4-luo", "");
  EXPECT_EQ(find_beside(kernel, "7.3.4-luo").found, "");
  put("config-7.3.4-luo", "not what its name says");
  EXPECT_EQ(find_beside(kernel, "").found, "");
  put("config-7.3.4-luo", kGoodConfiguration);
  EXPECT_EQ(find_beside(kernel, "").found, (folder / "config-7.3.4-luo").string());
  EXPECT_EQ(find_beside(kernel, "").live_update, Verdict::Yes);
  fs::create_symlink("vmlinuz-7.3.4-luo", folder / "vmlinuz");
  EXPECT_EQ(find_beside((folder / "vmlinuz").string(), "").found, (folder / "config-7.3.4-luo").string());
  EXPECT_EQ(find_beside((folder / "bzImage").string(), "7.3.4-luo").found, (folder / "config-7.3.4-luo").string());
  EXPECT_EQ(find_beside((folder / "bzImage").string(), "../x").found, "");
  put("bzImage.config", "CONFIG_LIVEUPDATE=y\n");
  EXPECT_EQ(find_beside((folder / "bzImage").string(), "7.3.4-luo").found, (folder / "bzImage.config").string());
  fs::remove_all(folder);
}

}  // namespace
}  // namespace luo::kexec
