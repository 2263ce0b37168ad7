#include "kho/arena.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

namespace luo::kho {
namespace {

constexpr Layout kLayout{"test", 1};

Arena make_arena(Bytes max = 64_MiB) { return Arena::create({.name = "test", .layout = kLayout, .max_size = max}).value(); }

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
}

}  // namespace
}  // namespace luo::kho
