#include "kexec/target.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <lz4hc.h>
#include <lzma.h>
#include <stdlib.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>

#include "kexec/decompress.h"
#include "kexec/image_testing.h"
#include "sys/memfd.h"

namespace luo::kexec {
namespace {

using testing::HasSubstr;

Result<Target> examine_bytes(const std::string& content) {
  const Fd file = sealed_memfd("image", content).value();
  return examine(file, "/nowhere/image");
}

std::string xz(std::string_view content) {
  std::string out(content.size() + 1000, '\0');
  std::size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, nullptr, reinterpret_cast<const std::uint8_t*>(content.data()),
                                    content.size(), reinterpret_cast<std::uint8_t*>(out.data()), &size, out.size()),
            LZMA_OK);
  out.resize(size);
  return out;
}

std::string lzma(std::string_view content) {
  lzma_options_lzma options;
  lzma_lzma_preset(&options, 6);
  lzma_stream stream = LZMA_STREAM_INIT;
  EXPECT_EQ(lzma_alone_encoder(&stream, &options), LZMA_OK);
  std::string out(content.size() + 1000, '\0');
  stream.next_in = reinterpret_cast<const std::uint8_t*>(content.data());
  stream.avail_in = content.size();
  stream.next_out = reinterpret_cast<std::uint8_t*>(out.data());
  stream.avail_out = out.size();
  EXPECT_EQ(lzma_code(&stream, LZMA_FINISH), LZMA_STREAM_END);
  out.resize(stream.total_out);
  lzma_end(&stream);
  return out;
}

std::string zstd_with_window(std::string_view content, int log) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0);
  ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, log);
  std::string out(ZSTD_compressBound(content.size()), '\0');
  out.resize(ZSTD_compress2(context, out.data(), out.size(), content.data(), content.size()));
  ZSTD_freeCCtx(context);
  return out;
}

std::string zstd(std::string_view content) { return zstd_with_window(content, 17); }
/// As a kernel's build does: 128 MiB.
std::string zstd_wide(std::string_view content) { return zstd_with_window(content, 27); }

std::string lz4(std::string_view content) {
  std::string out = "\x02\x21\x4c\x18";
  for (std::string_view rest = content; !rest.empty();) {
    const auto block = rest.substr(0, 8 << 20);
    std::string packed(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(block.size()))), '\0');
    packed.resize(static_cast<std::size_t>(LZ4_compress_HC(block.data(), packed.data(), static_cast<int>(block.size()),
                                                           static_cast<int>(packed.size()), 9)));
    out.resize(out.size() + 4);
    put_le(out, out.size() - 4, static_cast<std::uint32_t>(packed.size()));
    out += packed;
    rest.remove_prefix(block.size());
  }
  return out + std::string{"\x34\x12\0\0", 4};  // as a kernel's build adds it
}

TEST(Target, TellsWhatABzImageIs) {
  for (const auto& pack : {gzip, xz, lzma, zstd, zstd_wide, lz4}) {
    const std::string image = bzimage("7.3.4-luo (me@there) #1 SMP", pack(kernel_with(kGoodConfiguration)));
    const auto target = examine_bytes(image);
    ASSERT_TRUE(target) << to_string(target.error());
    EXPECT_EQ(target->format, Format::X86BzImage);
    EXPECT_EQ(target->machine, "x86_64");
    EXPECT_EQ(target->release, "7.3.4-luo");
    EXPECT_EQ(target->unloadable, "");
    EXPECT_EQ(target->unread, "");
    EXPECT_EQ(target->page_size, 4096U);
    EXPECT_EQ(target->longest_line, 2047U);
    EXPECT_EQ(target->size, image.size());
    EXPECT_EQ(target->has_luo_by_age, Verdict::Yes);
    EXPECT_EQ(target->configuration.found, "in the image");
    EXPECT_EQ(target->configuration.live_update, Verdict::Yes);
  }
}

TEST(Target, EveryPackerTakesALargeKernel) {
  std::string kernel = kernel_with("");
  for (std::uint32_t i = 0; kernel.size() < (20U << 20); ++i) kernel += fmt::format("{:x} ", i * 2654435761U);
  kernel += kernel_with(kGoodConfiguration);
  for (const auto& pack : {gzip, zstd_wide, lz4}) {
    const auto target = examine_bytes(bzimage("7.3.4", pack(kernel)));
    ASSERT_TRUE(target) << to_string(target.error());
    EXPECT_EQ(target->configuration.handover, Verdict::Yes);
  }
}

TEST(Target, WithoutAConfigurationNothingIsKnown) {
  const auto target = examine_bytes(bzimage("6.1.0-40-amd64 x", gzip(kernel_with(""))));
  ASSERT_TRUE(target) << to_string(target.error());
  EXPECT_EQ(target->configuration.found, "");
  EXPECT_EQ(target->configuration.live_update, Verdict::NotKnown);
  EXPECT_EQ(target->has_luo_by_age, Verdict::No);
}

TEST(Target, UnknownPackingLeavesItUnread) {
  const auto target = examine_bytes(bzimage("7.3.4", "BZh91AY&SY and so on"));
  ASSERT_TRUE(target) << to_string(target.error());
  EXPECT_THAT(target->unread, HasSubstr("bzip2"));
  EXPECT_EQ(target->configuration.handover, Verdict::NotKnown);
}

TEST(Target, EveryTruncationIsAnError) {
  const std::string whole = bzimage("7.3.4", gzip(kernel_with(kGoodConfiguration)));
  for (std::size_t n = 0; n < whole.size(); ++n)
    EXPECT_EQ(examine_bytes(whole.substr(0, n)).error().code, EBADMSG) << n;
  for (const auto& pack : {gzip, xz, lzma, zstd, lz4}) {
    const std::string packed = pack(kernel_with(kGoodConfiguration));
    for (std::size_t n = 8; n + 8 < packed.size(); ++n) {
      const auto target = examine_bytes(bzimage("7.3.4", packed.substr(0, n)));
      EXPECT_TRUE(!target || target->configuration.found.empty()) << n;
      if (pack == lz4 && target) continue;  // it has no end of its own
      ASSERT_FALSE(target) << n;
      EXPECT_EQ(target.error().code, EBADMSG) << n;
    }
  }
}

/// Calls `look` with each bit of [begin, end) of `whole` flipped in turn.
template <class Look>
void flip_bits(const std::string& whole, std::size_t begin, std::size_t end, Look look) {
  std::string bent = whole;
  for (std::size_t at = begin; at < end; ++at)
    for (int bit = 0; bit < 8; ++bit) {
      bent[at] = static_cast<char>(bent[at] ^ (1 << bit));
      look(bent, fmt::format("byte {} bit {}", at, bit));
      bent[at] = whole[at];
    }
}

TEST(Target, NoFlippedBitOfTheHeaderIsACrash) {
  flip_bits(bzimage("7.3.4", gzip(kernel_with(kGoodConfiguration))), 0x1f0, 0x308,
            [](const std::string& bent, const std::string& where) {
              const auto target = examine_bytes(bent);
              if (!target) {
                EXPECT_EQ(target.error().code, EBADMSG) << where;
              }
            });
}

TEST(Target, NoFlippedBitOfThePackedKernelIsOverlooked) {
  const std::string kernel = kernel_with(kGoodConfiguration);
  for (const auto& pack : {gzip, xz, zstd, lz4}) {
    const std::string packed = pack(kernel);
    flip_bits(packed, 0, packed.size(), [&](const std::string& bent, const std::string& where) {
      std::string out;
      const auto done = decompress(std::as_bytes(std::span{bent}), [&out](std::span<const std::byte> piece) {
        out.append(reinterpret_cast<const char*>(piece.data()), piece.size());
        return true;
      });
      if (pack == lz4 || !done) return;  // lz4 has no checksum
      EXPECT_TRUE(out == kernel) << where;
    });
  }
}

TEST(Target, KernelsThatCannotBeLoadedSayWhy) {
  std::string image = bzimage("7.3.4", gzip(kernel_with("")));
  put_le<std::uint16_t>(image, 0x236, 2);
  EXPECT_THAT(examine_bytes(image)->unloadable, HasSubstr("32-bit"));
  put_le<std::uint16_t>(image, 0x236, 1);
  EXPECT_THAT(examine_bytes(image)->unloadable, HasSubstr("not relocatable"));
  put_le<std::uint16_t>(image, 0x206, 0x0207);
  EXPECT_THAT(examine_bytes(image)->unloadable, HasSubstr("boot protocol 2.07"));
  const auto elf = examine(Fd::adopt(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), "/nowhere/self");
  ASSERT_TRUE(elf) << to_string(elf.error());
  EXPECT_EQ(elf->format, Format::Elf);
  EXPECT_THAT(elf->unloadable, HasSubstr("vmlinux"));
}

TEST(Target, ReadsArm64Images) {
  std::string image(4096, '\0');
  put_le<std::uint32_t>(image, 56, 0x644d5241);
  put_le<std::uint64_t>(image, 24, 0b110);
  image += "Linux version %s Linux version 6.19.0-rc3-arm64 (x@y) " + kernel_with("CONFIG_LIVEUPDATE=y\n");
  const auto target = examine_bytes(image);
  ASSERT_TRUE(target) << to_string(target.error());
  EXPECT_EQ(target->format, Format::Arm64Image);
  EXPECT_EQ(target->machine, "aarch64");
  EXPECT_EQ(target->page_size, 65536U);
  EXPECT_EQ(target->release, "6.19.0-rc3-arm64");
  EXPECT_EQ(target->configuration.live_update, Verdict::Yes);
  EXPECT_EQ(target->configuration.handover, Verdict::No);
}

TEST(Target, WhatIsNoKernelIsToldApart) {
  EXPECT_THAT(examine_bytes("").error().what, HasSubstr("none that is known here"));
  EXPECT_THAT(examine_bytes("#!/bin/sh\n").error().what, HasSubstr("none that is known here"));
  EXPECT_THAT(examine_bytes(gzip("Image")).error().what, HasSubstr("Image.gz"));
  EXPECT_THAT(examine_bytes("MZ\0\0zimg" + std::string(100, 'x')).error().what, HasSubstr("none"));
  EXPECT_THAT(examine_bytes(std::string{"MZ\0\0zimg", 8} + std::string(100, 'x')).error().what, HasSubstr("zboot"));
  const Fd folder = Fd::adopt(open("/", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(examine(folder, "/").error().code, EINVAL);
}

TEST(Target, VersionsCompareAsNumbers) {
  for (const char* yes : {"6.19", "6.19.0-rc1", "6.20.3", "7.0", "7.3.4-1-bpo13", "10.0+"})
    EXPECT_EQ(has_luo_by_age(yes), Verdict::Yes) << yes;
  for (const char* no : {"6.18.44", "6.2.1", "5.19", "2.6.32"}) EXPECT_EQ(has_luo_by_age(no), Verdict::No) << no;
  for (const char* none : {"", "7", "7.", "x.y", ".3", "99999999999999999999.1"})
    EXPECT_EQ(has_luo_by_age(none), Verdict::NotKnown) << none;
}

TEST(Target, ABombDoesNotGetTheMemoryThatItAsksFor) {
  const std::string zeros(64 << 20, '\0');
  std::string bomb;
  for (int i = 0; i < 20; ++i)
    bomb += lz4(zeros).substr(i == 0 ? 0 : 4, std::string::npos);  // sizes in between: damage
  EXPECT_FALSE(examine_bytes(bzimage("7.3.4", bomb)));
  std::uint64_t seen = 0;
  std::string blocks = lz4(zeros);
  blocks.resize(blocks.size() - 4);
  const std::string body = blocks.substr(4);
  for (int i = 0; i < 20; ++i) blocks += body;
  const auto done = decompress(std::as_bytes(std::span{blocks}), [&seen](std::span<const std::byte> piece) {
    seen += piece.size();
    return true;
  });
  EXPECT_EQ(done.error().code, EFBIG);
  EXPECT_LE(seen, std::uint64_t{1} << 30);
}

/// The kernel of tests/vm, if it was built on this machine.
TEST(Target, ReadsARealKernel) {
  namespace fs = std::filesystem;
  const char* cache = getenv("XDG_CACHE_HOME");
  const char* home = getenv("HOME");
  const fs::path folder =
      (cache != nullptr ? fs::path{cache} : fs::path{home != nullptr ? home : "/"} / ".cache") / "luo/vm";
  fs::path kernel;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator{folder, none})
    if (fs::exists(entry.path() / "bzImage")) kernel = entry.path() / "bzImage";
  if (kernel.empty()) GTEST_SKIP() << "there is no kernel in " << folder;
  const auto target = examine(Fd::adopt(open(kernel.c_str(), O_RDONLY | O_CLOEXEC)), kernel.string());
  ASSERT_TRUE(target) << to_string(target.error());
  EXPECT_THAT(target->release, HasSubstr("-luo"));
  EXPECT_EQ(target->has_luo_by_age, Verdict::Yes);
  EXPECT_EQ(target->configuration.found, "in the image");
  EXPECT_EQ(target->configuration.handover, Verdict::Yes);
  EXPECT_EQ(target->configuration.live_update, Verdict::Yes);
  EXPECT_EQ(target->configuration.memfds, Verdict::Yes);
}

}  // namespace
}  // namespace luo::kexec
