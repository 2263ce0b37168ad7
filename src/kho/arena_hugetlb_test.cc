// Arenas of hugetlb pages: what is there is there whatever the pool has left, and an empty pool is an error.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <optional>

#include "kho/hugetlb_testing.h"
#include "kho/image.h"
#include "kho/memfd.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"hugetlb-test", 1};
constexpr std::uint64_t kMetadataPages = 3;  ///< with 64 MiB of heap

class HugetlbArena : public ::testing::Test {
 protected:
  void need(std::uint64_t pages) {
    pool_.emplace(pages);
    if (!pool_->why().empty()) GTEST_SKIP() << pool_->why();
  }
  static Result<Arena> make(Bytes size = 64_MiB) {
    return Arena::create({.name = "hugetlb-test", .layout = kLayout, .max_size = size, .pages = Pages::Hugetlb});
  }
  static std::uint64_t committed_pages(const Arena& arena) {
    return Arena::inspect(arena.fd()).value().committed.raw() / kHugeBytes;
  }
  static Result<PhysAddr> add(Arena& arena, std::size_t bytes, int value) {
    Tx tx{arena};
    const PhysAddr at = LUO_TRY(tx.allocate(bytes));
    std::memset(arena.get(Ref<std::byte>{at.raw()}), value, bytes);
    tx.commit();
    return at;
  }
  static void release(Arena& arena, PhysAddr at) {
    Tx tx{arena};
    tx.release(at);
    tx.commit();
  }
  static bool holds(const Arena& arena, PhysAddr at, std::size_t bytes, int value) {
    const auto* block = arena.checked(Ref<std::byte>{at.raw()}, bytes);
    for (std::size_t i = 0; block != nullptr && i < bytes; ++i)
      if (block[i] != static_cast<std::byte>(value)) return false;
    return block != nullptr;
  }
  /// A child ends in the middle of a transaction that has changed all kinds of things.
  static void die_inside(Arena& arena, const std::function<void(Tx&)>& change) {
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      Tx tx{arena};
      change(tx);
      ::_exit(7);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
  }
  /// Writes into the file: hugetlb memory knows no write(2).
  static void change_header(FdRef fd, const std::function<void(Header&)>& change) {
    const Mapping map = Mapping::map(fd, kHugeBytes, Mapping::Kind::Shared).value();
    change(*reinterpret_cast<Header*>(map.at()));
  }

  std::optional<HugetlbPool> pool_;
};

TEST_F(HugetlbArena, IsOfHugePagesAndPassedOn) {
  need(20);
  if (IsSkipped()) return;
  const std::uint64_t before = HugetlbPool::in_use();
  Arena arena = make().value();
  EXPECT_EQ(committed_pages(arena), kMetadataPages);
  const PhysAddr small = add(arena, 100, 1).value(), large = add(arena, 5'000'000, 2).value();
  EXPECT_EQ(HugetlbPool::in_use() - before, committed_pages(arena));
  EXPECT_EQ(Arena::inspect(arena.fd()).value().pages, Pages::Hugetlb);
  const auto expect_whole = [&](const Arena& next) {
    EXPECT_TRUE(holds(next, small, 100, 1));
    EXPECT_TRUE(holds(next, large, 5'000'000, 2));
    const auto sound = next.check();
    EXPECT_TRUE(sound) << to_string(sound.error());
  };
  auto next = Arena::open(arena.release(), kLayout);
  ASSERT_TRUE(next) << to_string(next.error());
  expect_whole(*next);
  auto warm = Arena::warm(next->fd(), kLayout);
  ASSERT_TRUE(warm) << to_string(warm.error());
  auto last = Arena::open(next->release(), kLayout, std::move(*warm));
  ASSERT_TRUE(last) << to_string(last.error());
  expect_whole(*last);
  ::close(last->release().release());
  EXPECT_EQ(HugetlbPool::in_use(), before);
}

TEST_F(HugetlbArena, SizesAreRoundedUpToHugePages) {
  need(8);
  if (IsSkipped()) return;
  EXPECT_EQ(make(1_MiB).value().stats().max_bytes, 2U << 20);
  EXPECT_EQ(make(Bytes{(4U << 20) + 1}).value().stats().max_bytes, 6U << 20);
}

TEST_F(HugetlbArena, AnEmptyPoolIsAnErrorAndNothingStaysTaken) {
  need(kMetadataPages + 8);
  if (IsSkipped()) return;
  if (HugetlbPool::has_more()) GTEST_SKIP() << "this system has huge pages of its own";
  Arena arena = make().value();
  const PhysAddr first = add(arena, 4'000'000, 1).value();
  const std::uint64_t pages = committed_pages(arena);
  const auto refused = add(arena, 30'000'000, 2);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ENOMEM);
  EXPECT_EQ(committed_pages(arena), pages) << "what the kernel had given before there was no more";
  std::vector<PhysAddr> all;
  while (auto at = add(arena, 1'000'000, 3)) all.push_back(*at);
  EXPECT_GE(all.size(), 8U);
  EXPECT_EQ(committed_pages(arena), kMetadataPages + 8) << "all that there are";
  for (const PhysAddr at : all) EXPECT_TRUE(holds(arena, at, 1'000'000, 3));
  EXPECT_TRUE(holds(arena, first, 4'000'000, 1));
  const auto sound = arena.check();
  EXPECT_TRUE(sound) << to_string(sound.error());
  const auto none = make();
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ENOSPC);
  EXPECT_NE(none.error().what.find("vm.nr_hugepages"), std::string::npos) << none.error().what;
}

TEST_F(HugetlbArena, IsRolledBackWhenThePoolIsEmpty) {
  need(kMetadataPages + 8);
  if (IsSkipped()) return;
  if (HugetlbPool::has_more()) GTEST_SKIP() << "this system has huge pages of its own";
  Arena arena = make().value();
  const PhysAddr kept = add(arena, 100, 1).value(), large = add(arena, 3'000'000, 2).value();
  die_inside(arena, [&](Tx& tx) {
    while (tx.allocate(60'000)) continue;  // the rest of the pool
    auto* bytes = arena.get(Ref<std::byte>{kept.raw()});
    tx.save(bytes, 100);
    std::memset(bytes, 9, 100);
    tx.set_root(0, kept);
  });
  EXPECT_TRUE(Arena::inspect(arena.fd()).value().open_transaction);
  EXPECT_FALSE(make()) << "the pool is not empty";
  auto next = Arena::open(arena.release(), kLayout);
  ASSERT_TRUE(next) << to_string(next.error());
  EXPECT_TRUE(holds(*next, kept, 100, 1));
  EXPECT_TRUE(holds(*next, large, 3'000'000, 2));
  EXPECT_EQ(next->root(0), PhysAddr{});
  EXPECT_EQ(next->stats().blocks, 2U);
  const auto sound = next->check();
  EXPECT_TRUE(sound) << to_string(sound.error());
  EXPECT_TRUE(add(*next, 6'000'000, 3)) << "what the dead had taken is used";
}

TEST_F(HugetlbArena, ReleasedBlocksGiveWholeHugePagesBack) {
  need(40);
  if (IsSkipped()) return;
  Arena arena = make().value();
  std::vector<PhysAddr> all;
  for (int i = 0; i < 6; ++i) all.push_back(add(arena, 7'000'000, i).value());
  const std::uint64_t pages = committed_pages(arena);
  release(arena, all[1]);
  release(arena, all[4]);
  EXPECT_EQ(committed_pages(arena), pages - 8) << "four pages each: the last one is nobody else's";
  for (const int i : {0, 2, 3, 5}) EXPECT_TRUE(holds(arena, all[static_cast<unsigned>(i)], 7'000'000, i));
  const auto sound = arena.check();
  EXPECT_TRUE(sound) << to_string(sound.error());
  EXPECT_TRUE(holds(arena, add(arena, 7'000'000, 9).value(), 7'000'000, 9));
}

TEST_F(HugetlbArena, IsOneAgainWhenItComesFromAnImage) {
  need(40);
  if (IsSkipped()) return;
  Arena arena = make().value();
  std::vector<PhysAddr> all;
  for (int i = 0; i < 200; ++i) all.push_back(add(arena, i % 10 == 0 ? 300'000 : 5'000, i).value());
  for (std::uint32_t format = kOldestImageFormat; format <= kImageFormat; ++format) {
    const Fd image = seal(arena, "hugetlb-image", {.format = format}).value();
    auto again = populate(image, kLayout, "hugetlb-again");
    ASSERT_TRUE(again) << to_string(again.error());
    EXPECT_EQ(Arena::inspect(again->fd()).value().pages, Pages::Hugetlb);
    for (int i = 0; i < 200; ++i)
      EXPECT_TRUE(holds(*again, all[static_cast<unsigned>(i)], i % 10 == 0 ? 300'000 : 5'000, i)) << i;
    const auto sound = again->check();
    EXPECT_TRUE(sound) << to_string(sound.error());
    EXPECT_TRUE(add(*again, 3'000'000, 1));
  }
}

TEST_F(HugetlbArena, AnImageOfOneNeedsThePool) {
  std::optional<Fd> image;
  {
    need(8);
    if (IsSkipped()) return;
    Arena arena = make().value();
    ASSERT_TRUE(add(arena, 100, 1));
    image = seal(arena, "hugetlb-image").value();
  }
  pool_.reset();
  pool_.emplace(0);
  if (HugetlbPool::has_more()) GTEST_SKIP() << "this system has huge pages of its own";
  const auto refused = populate(*image, kLayout, "hugetlb-again");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ENOSPC) << to_string(refused.error());
}

// The header is believed only as far as the file agrees: the rules for the two kinds differ.
TEST_F(HugetlbArena, AHeaderThatSaysAnotherKindIsRefused) {
  need(8);
  if (IsSkipped()) return;
  const auto refusal = [](FdRef fd) {
    auto refused = Arena::inspect(fd);
    EXPECT_FALSE(refused);
    return refused ? Error{} : refused.error();
  };
  const Fd hugetlb = make(2_MiB).value().release();
  change_header(hugetlb, [](Header& header) {
    header.constants.pages = Pages::Huge;
    header.constants.checksum = checksum_of(header.constants);
  });
  EXPECT_EQ(refusal(hugetlb).code, EBADMSG);
  // One of ordinary pages in which all the sections are where hugetlb ones have them.
  const Geometry geometry = geometry_of(2U << 20, Pages::Hugetlb);
  const Fd normal = create_memfd("normal", geometry.file_bytes).value();
  change_header(normal, [&](Header& header) {
    const Fd fd = make(2_MiB).value().release();
    change_header(fd, [&](Header& from) { header = from; });
  });
  const Error error = refusal(normal);
  EXPECT_EQ(error.code, EBADMSG);
  EXPECT_NE(error.what.find("the file has no hugetlb pages"), std::string::npos) << error.what;
}

// Notes and memory that do not match are no SIGBUS: memory is asked for before it is touched.
TEST_F(HugetlbArena, LacksNoPageAfterOpenHoweverDamaged) {
  need(20);
  if (IsSkipped()) return;
  Arena arena = make().value();
  const PhysAddr large = add(arena, 5'000'000, 1).value();
  const Geometry geometry = geometry_of(64U << 20, Pages::Hugetlb);
  Fd fd = arena.release();
  ASSERT_TRUE(take_memory(fd, geometry.heap_at, geometry.heap_bytes));
  {
    auto opened = Arena::open(Fd::adopt(::fcntl(fd.raw(), F_DUPFD_CLOEXEC, 0)), kLayout);
    ASSERT_TRUE(opened) << to_string(opened.error());
    EXPECT_GE(committed_pages(*opened), kMetadataPages + 3);
    EXPECT_TRUE(holds(*opened, large, 5'000'000, 0));
  }
  ASSERT_TRUE(take_memory(fd, geometry.heap_at, geometry.heap_bytes));
  pool_.reset();
  pool_.emplace(0);
  if (HugetlbPool::has_more()) GTEST_SKIP() << "this system has huge pages of its own";
  const auto refused = Arena::open(std::move(fd), kLayout);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ENOSPC) << to_string(refused.error());
}

}  // namespace
}  // namespace luo::kho
