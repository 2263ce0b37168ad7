// A successor maps the arena while its owner still writes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "kho/arena.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"warm-test", 1};

Arena make_arena() {
  auto arena = Arena::create({.name = "warm-test", .layout = kLayout, .max_size = 64_MiB});
  EXPECT_TRUE(arena) << to_string(arena.error());
  return std::move(*arena);
}

Fd dup_of(const Arena& arena) { return Fd::adopt(::dup(arena.fd().raw)); }

// Sets root 0 to a block that holds `value`.
void write_value(Arena& arena, std::uint64_t value) {
  Tx tx{arena};
  const auto block = tx.make<std::uint64_t>();
  ASSERT_TRUE(block);
  *arena.get(*block) = value;
  tx.set_root(0, block->addr());
  tx.commit();
}

TEST(WarmArena, SeesWhatItsOwnerWroteAfterwards) {
  Arena owner = make_arena();
  write_value(owner, 1);
  auto warm = Arena::warm(owner.fd(), kLayout);
  ASSERT_TRUE(warm) << to_string(warm.error());
  for (std::uint64_t i = 2; i <= 10'000; ++i) write_value(owner, i);
  const auto used = owner.stats().used_bytes;
  auto next = Arena::open(dup_of(owner), kLayout, std::move(*warm));
  ASSERT_TRUE(next) << to_string(next.error());
  const auto* value = next->checked(Ref<std::uint64_t>{next->root(0).raw()});
  ASSERT_NE(value, nullptr);
  EXPECT_EQ(*value, 10'000U);
  EXPECT_EQ(next->stats().used_bytes, used);
  EXPECT_TRUE(next->check());
  write_value(*next, 7);
}

TEST(WarmArena, RollsBackOnlyWhenItIsOpened) {
  Arena owner = make_arena();
  write_value(owner, 1);
  std::uint64_t& value = *owner.get(Ref<std::uint64_t>{owner.root(0).raw()});
  auto* open_for_ever = new Tx{owner};  // as if its owner had been killed in the middle
  open_for_ever->set(value, 2);
  auto warm = Arena::warm(owner.fd(), kLayout);
  ASSERT_TRUE(warm) << to_string(warm.error());
  EXPECT_EQ(value, 2U);
  auto next = Arena::open(dup_of(owner), kLayout, std::move(*warm));
  ASSERT_TRUE(next) << to_string(next.error());
  EXPECT_EQ(value, 1U);
  open_for_ever->~Tx();
  ::operator delete(open_for_ever);
}

TEST(WarmArena, IsOfOneFileAndLayout) {
  Arena one = make_arena();
  Arena other = make_arena();
  auto warm = Arena::warm(one.fd(), kLayout);
  ASSERT_TRUE(warm) << to_string(warm.error());
  EXPECT_EQ(Arena::open(dup_of(other), kLayout, std::move(*warm)).error().code, EINVAL);
  EXPECT_EQ(Arena::warm(one.fd(), Layout{"warm-test", 2}).error().code, EPROTO);
  const Fd null = Fd::adopt(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(Arena::warm(null, kLayout).error().code, EINVAL);
}

}  // namespace
}  // namespace luo::kho
