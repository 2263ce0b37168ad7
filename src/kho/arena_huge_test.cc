// Arenas that ask for huge pages: the same arena, whether the kernel gives them or not; and that it does.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "kho/format.h"
#include "kho/image.h"
#include "kho/memfd.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"huge-test", 1};

Arena make_arena(Pages pages, Bytes size = 256_MiB) {
  auto arena = Arena::create({.name = "huge-test", .layout = kLayout, .max_size = size, .pages = pages});
  EXPECT_TRUE(arena) << to_string(arena.error());
  return std::move(*arena);
}

/// Bytes of the mapping around `inside` that the page table maps by huge pages.
std::uint64_t mapped_huge(const void* inside) {
  std::ifstream smaps{"/proc/self/smaps"};
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long begin = 0, end = 0, kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto at = reinterpret_cast<std::uintptr_t>(inside);
      here = begin <= at && at < end;
    } else if (here && std::sscanf(line.c_str(), "ShmemPmdMapped: %lu kB", &kib) == 1) {
      return std::uint64_t{kib} << 10;
    }
  }
  return 0;
}

/// Why there cannot be huge pages here; empty if there can.
std::string refusal() {
  auto fd = create_memfd("probe", kHugeBytes);
  if (!fd) return to_string(fd.error());
  if (auto given = give_memory(*fd, 0, kHugeBytes); !given) return to_string(given.error());
  auto mapping = Mapping::map(*fd, kHugeBytes, Mapping::Kind::SharedHuge);
  if (!mapping) return to_string(mapping.error());
  if (::madvise(mapping->at(), kHugeBytes, 25 /* MADV_COLLAPSE */) == 0) return {};
  return "this kernel refuses MADV_COLLAPSE for a memfd: " + errno_text(errno);
}

std::vector<PhysAddr> fill(Arena& arena, unsigned blocks, std::size_t bytes) {
  std::vector<PhysAddr> all;
  Tx tx{arena};
  for (unsigned i = 0; i < blocks; ++i) {
    all.push_back(tx.allocate(bytes).value());
    std::memset(arena.get(Ref<std::byte>{all.back().raw()}), static_cast<int>(i), bytes);
  }
  tx.commit();
  return all;
}

void expect_content(const Arena& arena, const std::vector<PhysAddr>& blocks, std::size_t bytes) {
  for (unsigned i = 0; i < blocks.size(); ++i) {
    const auto* at = arena.get(Ref<unsigned char>{blocks[i].raw()});
    for (std::size_t b = 0; b < bytes; b += 1009) ASSERT_EQ(at[b], static_cast<unsigned char>(i)) << i;
  }
}

TEST(HugeArena, IsMappedByHugePagesNowAndByTheNextOwner) {
  if (const auto why = refusal(); !why.empty()) GTEST_SKIP() << why;
  Arena arena = make_arena(Pages::Huge);
  const auto blocks = fill(arena, 1000, 60000);
  EXPECT_GE(mapped_huge(arena.control().data()), 40U << 20);
  auto next = Arena::open(arena.release(), kLayout);
  ASSERT_TRUE(next) << to_string(next.error());
  expect_content(*next, blocks, 60000);
  EXPECT_GE(mapped_huge(next->control().data()), 40U << 20);
  auto warm = Arena::warm(next->fd(), kLayout);
  ASSERT_TRUE(warm) << to_string(warm.error());
  auto last = Arena::open(next->release(), kLayout, std::move(*warm));
  ASSERT_TRUE(last) << to_string(last.error());
  EXPECT_GE(mapped_huge(last->control().data()), 40U << 20);
  EXPECT_TRUE(last->check());
}

TEST(HugeArena, IsOneAgainWhenItComesFromAnImage) {
  Arena arena = make_arena(Pages::Huge);
  const auto blocks = fill(arena, 500, 60000);
  const auto why = refusal();
  for (std::uint32_t format = kOldestImageFormat; format <= kImageFormat; ++format) {
    const auto image = seal(arena, "huge-image", {.format = format});
    ASSERT_TRUE(image) << to_string(image.error());
    auto again = populate(*image, kLayout, "huge-again");
    ASSERT_TRUE(again) << to_string(again.error());
    expect_content(*again, blocks, 60000);
    EXPECT_EQ(Arena::inspect(again->fd()).value().pages, Pages::Huge);
    const auto sound = again->check();
    EXPECT_TRUE(sound) << to_string(sound.error());
    if (why.empty()) {
      EXPECT_GE(mapped_huge(again->control().data()), 20U << 20) << format;
    }
  }
  if (!why.empty()) GTEST_SKIP() << why;
}

TEST(HugeArena, KeepsItsContentWhileSmallBlocksBecomeHugePages) {
  Arena arena = make_arena(Pages::Huge);
  std::vector<PhysAddr> all;
  for (unsigned round = 0; round < 200; ++round) {
    const auto some = fill(arena, 256, 500);
    all.insert(all.end(), some.begin(), some.end());
  }
  for (unsigned i = 0; i < all.size(); ++i) {
    const auto* at = arena.get(Ref<unsigned char>{all[i].raw()});
    ASSERT_EQ(at[0], static_cast<unsigned char>(i)) << i;
    ASSERT_EQ(at[499], static_cast<unsigned char>(i)) << i;
  }
  EXPECT_TRUE(arena.check());
}

TEST(HugeArena, GivesMemoryOfReleasedBlocksBack) {
  Arena arena = make_arena(Pages::Huge);
  const auto blocks = fill(arena, 6, 20 << 20);
  const auto full = Arena::inspect(arena.fd()).value().committed.raw();
  {
    Tx tx{arena};
    tx.release(blocks[1]);
    tx.release(blocks[4]);
    tx.commit();
  }
  // Of each, all but the huge pages at its ends.
  EXPECT_LE(Arena::inspect(arena.fd()).value().committed.raw(), full - 2 * (16U << 20));
  EXPECT_LE(arena.stats().committed_bytes, full - 2 * (16U << 20));
  const auto sound = arena.check();
  EXPECT_TRUE(sound) << to_string(sound.error());
  const auto again = fill(arena, 2, 20 << 20);
  expect_content(arena, again, 20 << 20);
  expect_content(arena, {blocks[0]}, 20 << 20);
  EXPECT_TRUE(arena.check());
}

TEST(HugeArena, IsFullWhenANormalOneIs) {
  Arena arena = make_arena(Pages::Huge, 5_MiB);  // no multiple of a huge page
  Tx tx{arena};
  unsigned blocks = 0;
  while (tx.allocate(65536)) ++blocks;
  EXPECT_EQ(blocks, 80U);
  tx.abort();
  EXPECT_TRUE(arena.check());
}

TEST(HugeArena, SaysSo) {
  EXPECT_EQ(Arena::inspect(make_arena(Pages::Huge).fd()).value().pages, Pages::Huge);
  EXPECT_EQ(Arena::inspect(make_arena(Pages::Normal).fd()).value().pages, Pages::Normal);
}

TEST(HugeArena, AKindThatIsNotKnownIsRefused) {
  const Fd fd = make_arena(Pages::Huge).release();
  HeaderConstants constants;
  ASSERT_EQ(::pread(fd.raw(), &constants, sizeof constants, 0), static_cast<ssize_t>(sizeof constants));
  constants.pages = Pages{3};
  constants.checksum = checksum_of(constants);
  ASSERT_EQ(::pwrite(fd.raw(), &constants, sizeof constants, 0), static_cast<ssize_t>(sizeof constants));
  const auto refused = Arena::inspect(fd);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EPROTO);
  EXPECT_NE(refused.error().what.find("header: pages of kind 3"), std::string::npos);
}

}  // namespace
}  // namespace luo::kho
