#include "kho/arena.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "kho/size_class.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"test", 1};

Arena make_arena(Bytes max = 64_MiB) {
  return Arena::create({.name = "test", .layout = kLayout, .max_size = max}).value();
}

std::uint64_t memory_in(const Arena& arena) {
  struct stat st {};
  EXPECT_EQ(::fstat(arena.fd().raw, &st), 0);
  return static_cast<std::uint64_t>(st.st_blocks) * 512;
}

Fd duplicate(FdRef fd) { return Fd::adopt(::fcntl(fd.raw, F_DUPFD_CLOEXEC, 0)); }

/// Runs `work` in a child that dies in the middle: without destructors.
template <class Work>
void in_a_process_that_dies(Work work) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  ASSERT_EQ(status, 0);
}

TEST(SizeClass, HoldsEverySmallRequestWithLittleWaste) {
  for (std::uint64_t bytes = 1; bytes <= kSmallLimit; ++bytes) {
    const unsigned n = class_for(bytes);
    ASSERT_LT(n, kClasses) << bytes;
    ASSERT_GE(kSizeClasses[n].bytes, bytes);
    if (n > 0) {
      ASSERT_LT(kSizeClasses[n - 1].bytes, bytes) << "a smaller class would do";
    }
  }
  for (const SizeClass& size : kSizeClasses) {
    EXPECT_EQ(size.bytes % 16, 0U);
    EXPECT_LE(std::uint64_t{size.bytes} * size.blocks, kChunkBytes);
    for (std::uint64_t offset = 0; offset < kChunkBytes; ++offset)
      ASSERT_EQ(offset * size.reciprocal >> 32, offset / size.bytes) << size.bytes;
  }
}

TEST(Arena, KeepsWhatWasCommittedWhenItIsReopened) {
  Arena arena = make_arena();
  Ref<std::uint64_t> number;
  {
    Tx tx{arena};
    number = tx.make<std::uint64_t>().value();
    *arena.get(number) = 42;
    tx.set_root(0, number.addr());
    tx.commit();
  }
  Arena again = Arena::open(arena.release(), kLayout).value();
  ASSERT_TRUE(again.check());
  EXPECT_EQ(again.root(0), number.addr());
  EXPECT_EQ(*again.checked(number), 42U);
  EXPECT_EQ(again.stats().blocks, 1U);
}

TEST(Arena, RollsBackWhatItsOwnerDiedIn) {
  Arena arena = make_arena();
  Ref<std::uint64_t> number;
  {
    Tx tx{arena};
    number = tx.make<std::uint64_t>().value();
    tx.set_root(0, number.addr());
    tx.commit();
  }
  EXPECT_FALSE(Arena::inspect(arena.fd())->open_transaction);
  in_a_process_that_dies([&] {
    Tx* tx = new Tx{arena};
    tx->set(*arena.get(number), 7);
    tx->release(number);
    if (!tx->allocate(100000)) ::_exit(1);
  });
  const ArenaInfo info = Arena::inspect(arena.fd()).value();
  EXPECT_TRUE(info.open_transaction);
  EXPECT_EQ(info.layout, kLayout);
  Arena again = Arena::open(arena.release(), kLayout).value();
  EXPECT_FALSE(Arena::inspect(again.fd())->open_transaction);
  EXPECT_EQ(*again.checked(number), 0U);
  EXPECT_EQ(again.stats().blocks, 1U);
  ASSERT_TRUE(again.check());
}

TEST(Arena, RefusesSizesOutOfRange) {
  for (const Bytes size : {Bytes{0}, Bytes{(1 << 20) - 1}, Bytes{(std::uint64_t{1} << 44) + 1}})
    EXPECT_EQ(Arena::create({.name = "test", .layout = kLayout, .max_size = size}).error().code, EINVAL);
  EXPECT_TRUE(Arena::create({.name = "test", .layout = kLayout, .max_size = 1_MiB}));
#if !defined(__SANITIZE_THREAD__)  // ThreadSanitizer takes most of the address space for itself
  EXPECT_TRUE(Arena::create({.name = "test", .layout = kLayout, .max_size = Bytes{std::uint64_t{1} << 44}}));
#endif
}

TEST(Arena, TakesMemoryOnlyAsItIsNeeded) {
  Arena arena = make_arena(64_GiB);
  EXPECT_LT(memory_in(arena), 8U << 20);
  Tx tx{arena};
  EXPECT_EQ(tx.allocate(0).error().code, EINVAL);
  ASSERT_TRUE(tx.allocate(1));
  tx.commit();
  EXPECT_LT(memory_in(arena), 12U << 20);
  EXPECT_GE(arena.stats().committed_bytes, arena.stats().used_bytes);
}

TEST(Arena, CannotBeCutShortByWhoeverHoldsItsDescriptor) {
  Arena arena = make_arena();
  EXPECT_EQ(::ftruncate(arena.fd().raw, 4096), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST(Arena, SaysWhereBlocksAreForAnyAddress) {
  Arena arena = make_arena(4_MiB);
  Tx tx{arena};
  const std::uint64_t small = tx.allocate(100)->raw(), large = tx.allocate(200000)->raw();
  tx.commit();
  EXPECT_EQ(arena.usable_size(PhysAddr{small}), 112U);
  EXPECT_EQ(arena.usable_size(PhysAddr{large}), 4 * kChunkBytes);  // 200,000 bytes in whole chunks
  for (const auto& [at, size] : {std::pair{small, std::uint64_t{112}}, std::pair{large, 4 * kChunkBytes}}) {
    EXPECT_TRUE(arena.is_allocated(PhysAddr{at}, size));
    EXPECT_TRUE(arena.is_allocated(PhysAddr{at + size - 1}, 1));
    EXPECT_TRUE(arena.is_allocated(PhysAddr{at + size / 2}, size / 2));
    EXPECT_FALSE(arena.is_allocated(PhysAddr{at}, size + 1));
    EXPECT_FALSE(arena.is_allocated(PhysAddr{at + 1}, size));
    EXPECT_FALSE(arena.is_allocated(PhysAddr{at + size}, 1));
    EXPECT_FALSE(arena.is_allocated(PhysAddr{at + 16}, ~std::size_t{0}));
    EXPECT_EQ(arena.usable_size(PhysAddr{at + 16}), 0U) << "no block starts there";
  }
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{4096}, std::uint64_t{9000}, small - 1, large - 1,
                                 std::uint64_t{1} << 40, ~std::uint64_t{0}, ~std::uint64_t{0} - 8})
    EXPECT_FALSE(arena.is_allocated(PhysAddr{at}, 1)) << at;
  EXPECT_EQ(arena.checked(Ref<std::uint64_t>{small + 4}), nullptr) << "not aligned";
  EXPECT_EQ(arena.checked(Ref<std::uint64_t>{small + 112 - 4}), nullptr);
  EXPECT_EQ(arena.ref_of(arena.checked(Ref<std::uint64_t>{small + 8})).at, small + 8);
}

TEST(Arena, EveryByteOfItIsInExactlyTheBlocksThatAreAllocated) {
  Arena arena = make_arena(1_MiB);
  std::set<std::uint64_t> inside;
  Tx tx{arena};
  for (const std::size_t bytes : {16U, 16U, 48U, 1000U, 9000U, 21840U, 32768U, 100000U}) {
    const std::uint64_t at = tx.allocate(bytes)->raw();
    for (std::uint64_t b = 0; b < arena.usable_size(PhysAddr{at}); b += 16) inside.insert(at + b);
  }
  tx.commit();
  std::uint64_t found = 0;
  for (std::uint64_t at = 0; at < 12 << 20; at += 16) {
    ASSERT_EQ(arena.is_allocated(PhysAddr{at}, 1), inside.contains(at)) << at;
    found += inside.contains(at) ? 1 : 0;
  }
  EXPECT_EQ(found, inside.size());
}

TEST(Arena, IsFullWhenItIsAndUsableAfterwards) {
  for (const std::size_t bytes : {16U, 100U, 5000U, 32000U, 65536U, 200000U}) {
    Arena arena = make_arena(2_MiB);
    std::vector<PhysAddr> blocks;
    while (true) {
      Tx tx{arena};
      auto at = tx.allocate(bytes);
      if (!at) {
        EXPECT_EQ(at.error().code, ENOMEM);
        break;
      }
      blocks.push_back(*at);
      tx.commit();
    }
    ASSERT_TRUE(arena.check());
    EXPECT_GE(arena.stats().used_bytes, (2U << 20) * 3 / 4) << bytes;
    while (!blocks.empty()) {
      Tx tx{arena};
      for (; !blocks.empty() && tx.room() > 0; blocks.pop_back()) tx.release(blocks.back());
      tx.commit();
    }
    ASSERT_TRUE(arena.check());
    EXPECT_EQ(arena.stats().used_bytes, 0U);
    Tx tx{arena};
    EXPECT_TRUE(tx.allocate(2 << 20)) << "all of it is one block again, after blocks of " << bytes;
  }
}

/// From here on this process gets ENOMEM from fallocate, as if the machine were out of memory.
void let_fallocate_fail() {
  const std::array<sock_filter, 4> program{sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                                           sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 0, 1),
                                           sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
                                           sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog filter{program.size(), const_cast<sock_filter*>(program.data())};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
    ::_exit(9);
}

TEST(Arena, FailsWithoutMemoryAndStaysAsItWas) {
  Arena arena = make_arena(64_MiB);
  Ref<std::uint64_t> number;
  {
    Tx tx{arena};
    number = tx.make<std::uint64_t>().value();
    tx.commit();
  }
  const ArenaStats before = arena.stats();
  in_a_process_that_dies([&] {
    let_fallocate_fail();
    Tx tx{arena};
    const Tx::Mark mark = tx.mark();
    for (const std::size_t bytes : {std::size_t{3} << 20, std::size_t{40} << 20, std::size_t{128} << 20}) {
      const auto at = tx.allocate(bytes);
      if (at || at.error().code != ENOMEM || tx.mark().log_bytes != mark.log_bytes) ::_exit(1);
    }
    if (!tx.allocate(3000)) ::_exit(2);  // there is memory in reserve
    tx.set(*arena.get(number), 5);
    tx.commit();
    if (!arena.check()) ::_exit(3);
    while (true) {
      Tx until_full{arena};
      if (!until_full.allocate(65536)) break;
      until_full.commit();
    }
    if (!arena.check() || arena.stats().committed_bytes != before.committed_bytes) ::_exit(4);
    if (Arena::create({.name = "test", .layout = kLayout, .max_size = 1_MiB}).error().code != ENOMEM) ::_exit(5);
  });
  const Arena again = Arena::open(arena.release(), kLayout).value();
  EXPECT_EQ(*again.checked(number), 5U);
  EXPECT_TRUE(again.check());
}

TEST(Arena, GivesMemoryOfLargeBlocksBackAfterTheCommit) {
  Arena arena = make_arena(256_MiB);
  Ref<std::byte> block;
  {
    Tx tx{arena};
    block = Ref<std::byte>{tx.allocate(64 << 20)->raw()};
    tx.commit();
  }
  std::memset(arena.get(block), 1, 64 << 20);
  const std::uint64_t full = memory_in(arena);
  {
    Tx tx{arena};
    tx.release(block);
    EXPECT_EQ(memory_in(arena), full);
    tx.abort();
  }
  EXPECT_EQ(std::to_integer<int>(arena.get(block)[(64 << 20) - 1]), 1);
  {
    Tx tx{arena};
    tx.release(block);
    tx.commit();
  }
  EXPECT_LE(memory_in(arena), full - (64 << 20));
  EXPECT_LT(arena.stats().committed_bytes, 1U << 20);
  {  // and it gets it anew
    Tx tx{arena};
    ASSERT_TRUE(tx.allocate(64 << 20));
    tx.commit();
  }
  EXPECT_EQ(memory_in(arena), full);
  ASSERT_TRUE(arena.check());
}

TEST(Arena, GivesMemoryOfManySmallBlocksBackToo) {
  Arena arena = make_arena(512_MiB);
  std::vector<PhysAddr> blocks;
  while (blocks.size() < 20000) {
    Tx tx{arena};
    for (unsigned i = 0; i < 1000; ++i) blocks.push_back(tx.allocate(9000).value());
    tx.commit();
  }
  const std::uint64_t full = memory_in(arena);
  EXPECT_GT(full, 170U << 20);
  while (!blocks.empty()) {
    Tx tx{arena};
    for (unsigned i = 0; i < 500; ++i, blocks.pop_back()) tx.release(blocks.back());
    tx.commit();
  }
  // Half as much as was in use may stay, and 64 MiB: against going back and forth.
  EXPECT_LT(memory_in(arena), full - (90U << 20));
  EXPECT_LE(arena.stats().committed_bytes, 72U << 20);
  ASSERT_TRUE(arena.check());
  Tx tx{arena};
  EXPECT_TRUE(tx.allocate(200 << 20));
}

TEST(Tx, UndoesEverythingUnlessItIsCommitted) {
  Arena arena = make_arena();
  Ref<std::uint64_t> number;
  {
    Tx tx{arena};
    number = tx.make<std::uint64_t>().value();
    tx.commit();
  }
  {
    Tx tx{arena};
    tx.set(*arena.get(number), 1);
    tx.set_root(3, number.addr());
    ASSERT_TRUE(tx.make<std::uint64_t>());
    tx.release(number);
  }
  EXPECT_EQ(*arena.checked(number), 0U);
  EXPECT_EQ(arena.root(3), PhysAddr{});
  EXPECT_EQ(arena.stats().blocks, 1U);
}

TEST(Tx, GoesBackToAMarkAndOn) {
  Arena arena = make_arena();
  Tx tx{arena};
  const auto number = tx.make<std::uint64_t>().value();
  tx.set(*arena.get(number), 1);
  const Tx::Mark one = tx.mark();
  tx.set(*arena.get(number), 2);
  const Tx::Mark two = tx.mark();
  tx.set(*arena.get(number), 3);
  tx.release(number);
  tx.back_to(two);
  EXPECT_EQ(*arena.get(number), 2U);
  tx.back_to(two);
  tx.back_to(one);
  EXPECT_EQ(*arena.get(number), 1U);
  tx.set(*arena.get(number), 4);
  tx.commit();
  EXPECT_EQ(*arena.get(number), 4U);
  EXPECT_EQ(arena.stats().blocks, 1U) << "the release was taken back";
}

TEST(Tx, DoesNotReuseABlockThatItReleased) {
  Arena arena = make_arena(1_MiB);
  PhysAddr block;
  {
    Tx tx{arena};
    block = tx.allocate(512 << 10).value();
    std::memset(arena.get(Ref<std::byte>{block.raw()}), 5, 512 << 10);
    tx.commit();
  }
  {
    Tx tx{arena};
    tx.release(block);
    EXPECT_TRUE(arena.is_allocated(block, 1));
    while (const auto other = tx.allocate(60000)) std::memset(arena.get(Ref<std::byte>{other->raw()}), 6, 60000);
  }
  const auto* bytes = arena.get(Ref<unsigned char>{block.raw()});
  EXPECT_TRUE(std::all_of(bytes, bytes + (512 << 10), [](unsigned char b) { return b == 5; }));
}

TEST(Tx, IgnoresTheReleaseOfNothing) {
  Arena arena = make_arena();
  Tx tx{arena};
  tx.release(PhysAddr{});
  tx.release(Ref<int>{});
  tx.commit();
}

TEST(Tx, CountsItsRoomSoThatTheLogCanBeFilledSafely) {
  Arena arena = make_arena();
  std::byte* bytes = nullptr;
  {
    Tx tx{arena};
    bytes = arena.get(Ref<std::byte>{tx.allocate(8192)->raw()});
    std::memset(bytes, 1, 8192);
    tx.commit();
  }
  for (const std::size_t n : {1U, 7U, 8U, 100U, 8192U}) {
    Tx tx{arena};
    std::size_t saves = 0;
    while (tx.room() >= n + 32) {
      const std::size_t before = tx.room();
      tx.save(bytes, n);
      ASSERT_LE(before - tx.room(), n + 32);
      ++saves;
    }
    std::memset(bytes, 2, n);
    EXPECT_GT(saves, (3U << 20) / (n + 32));
    ASSERT_TRUE(tx.allocate(100000)) << "there is always room for one more allocation";
    tx.abort();
    EXPECT_EQ(bytes[0], std::byte{1});
    EXPECT_EQ(bytes[n - 1], std::byte{1});
  }
}

TEST(Tx, KeepsRoomForManyReleases) {
  Arena arena = make_arena(64_MiB);
  std::vector<PhysAddr> blocks;
  for (unsigned i = 0; i < 1000; ++i) {
    Tx tx{arena};
    blocks.push_back(tx.allocate(65536).value());
    tx.commit();
  }
  Tx tx{arena};
  auto* word = arena.get(Ref<std::uint64_t>{blocks[999].raw()});
  for (unsigned i = 0; i < 999; ++i) tx.release(blocks[i]);
  while (tx.room() >= 40) tx.set(*word, 1);
  tx.commit();
  EXPECT_EQ(arena.stats().blocks, 1U);
  const auto sound = arena.check();
  EXPECT_TRUE(sound) << to_string(sound.error());
}

using TxDeath = ::testing::Test;

TEST(TxDeath, AbortsOnBrokenInvariants) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Arena arena = make_arena();
  EXPECT_DEATH((Tx{arena}.release(PhysAddr{4096})), "is_block_start");
  EXPECT_DEATH(
      {
        Tx tx{arena};
        Tx second{arena};
      },
      "in_transaction");
  EXPECT_DEATH(
      {
        Tx tx{arena};
        const PhysAddr at = tx.allocate(10).value();
        tx.release(at);
        tx.release(at);
        tx.commit();
      },
      "place");
  EXPECT_DEATH(
      {
        Tx tx{arena};
        auto* bytes = arena.get(Ref<std::byte>{tx.allocate(1 << 20)->raw()});
        for (unsigned i = 0; i < 5; ++i) tx.save(bytes, 1 << 20);
      },
      "kLogCapacity");
  int outside = 0;
  EXPECT_DEATH((Tx{arena}.save(&outside, sizeof outside)), "heap_at");
  EXPECT_TRUE(arena.check());
}

TEST(Arena, ServesTheNextOwnerWhileTheDescriptorIsShared) {
  Arena arena = make_arena();
  std::memset(arena.control().data(), 3, Arena::kControlBytes);
  const Arena other = Arena::open(duplicate(arena.fd()), kLayout).value();
  EXPECT_EQ(other.control()[4095], std::byte{3});
  Arena moved = std::move(arena);
  EXPECT_TRUE(moved.check());
}

}  // namespace
}  // namespace luo::kho
