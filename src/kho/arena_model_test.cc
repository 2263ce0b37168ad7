// The allocator and transactions against a model: a map of what should be there, under random operations.
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <random>

#include "kho/arena.h"
#include "kho/hugetlb_testing.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"model", 1};

struct Block {
  std::size_t bytes;
  unsigned char fill;
};
using Model = std::map<std::uint64_t, Block>;

class Player {
 public:
  Player(Arena& arena, std::uint64_t seed) : arena_{arena}, random_{seed} {}

  /// One transaction of a few operations, committed or not, with steps inside taken back.
  void play() {
    const Model before = model_;
    {
      Tx tx{arena_};
      for (unsigned steps = pick(8) + 1; steps > 0; --steps) {
        if (pick(4) != 0) {
          step(tx);
          continue;
        }
        const Model here = model_;
        const Tx::Mark mark = tx.mark();
        for (unsigned inner = pick(4); inner > 0; --inner) step(tx);
        if (pick(2) == 0) {
          tx.back_to(mark);
          model_ = here;
        }
      }
      if (pick(3) != 0) {
        tx.commit();
        return;
      }
      if (pick(2) == 0) tx.abort();
    }
    model_ = before;
  }

  void verify() const {
    const auto sound = arena_.check();
    ASSERT_TRUE(sound) << to_string(sound.error());
    ASSERT_EQ(arena_.stats().blocks, model_.size());
    std::uint64_t used = 0, end = 0;
    for (const auto& [at, block] : model_) {
      ASSERT_GE(at, end) << "blocks overlap";
      const std::size_t usable = arena_.usable_size(PhysAddr{at});
      ASSERT_GE(usable, block.bytes);
      ASSERT_TRUE(arena_.is_allocated(PhysAddr{at}, usable));
      ASSERT_TRUE(arena_.is_allocated(PhysAddr{at + usable - 1}, 1));
      ASSERT_FALSE(arena_.is_allocated(PhysAddr{at}, usable + 1));
      const unsigned char* bytes = arena_.get(Ref<unsigned char>{at});
      ASSERT_EQ(bytes[0], block.fill) << at;
      ASSERT_EQ(bytes[block.bytes - 1], block.fill) << at;
      ASSERT_EQ(bytes[block.bytes / 2], block.fill) << at;
      used += usable;
      end = at + usable;
    }
    ASSERT_EQ(arena_.stats().used_bytes, used);
    ASSERT_LE(used, arena_.stats().committed_bytes);
  }

  Model& model() { return model_; }

 private:
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_() % n); }

  void step(Tx& tx) {
    const unsigned what = pick(100);
    if (what < 55 || model_.empty()) {
      const unsigned kind = pick(100);
      const std::size_t bytes = 1 + (kind < 70   ? pick(300)
                                     : kind < 92 ? pick(33000)
                                     : kind < 99 ? pick(600000)
                                                 : pick(3000000));
      const auto at = tx.allocate(bytes);
      if (!at) {
        EXPECT_EQ(at.error().code, ENOMEM) << to_string(at.error());
        return;
      }
      EXPECT_EQ(at->raw() % (bytes >= 32768 ? 65536 : 16), 0U);
      const Block block{bytes, static_cast<unsigned char>(random_())};
      std::memset(arena_.get(Ref<std::byte>{at->raw()}), block.fill, bytes);
      EXPECT_TRUE(model_.emplace(at->raw(), block).second);
      return;
    }
    auto it = model_.lower_bound(random_() % (model_.rbegin()->first + 1));
    if (what < 85) {
      // Released blocks leave the model at once; the arena gives their place out after the commit only.
      tx.release(PhysAddr{it->first});
      model_.erase(it);
    } else if (it->second.bytes <= 40000) {  // the log is bounded
      it->second.fill = static_cast<unsigned char>(random_());
      auto* bytes = arena_.get(Ref<std::byte>{it->first});
      tx.save(bytes, it->second.bytes);
      std::memset(bytes, it->second.fill, it->second.bytes);
    }
  }

  Arena& arena_;
  std::mt19937_64 random_;
  Model model_;
};

class ArenaModel : public ::testing::TestWithParam<unsigned> {};

TEST_P(ArenaModel, HoldsUnderRandomTransactionsAndTakeovers) {
  const Bytes size = GetParam() % 2 == 0 ? 4_MiB : 64_MiB;  // the small one is full much of the time
  const Pages pages{GetParam() % 3};
  std::optional<HugetlbPool> pool;
  if (pages == Pages::Hugetlb) {
    pool.emplace(40);
    if (!pool->why().empty()) GTEST_SKIP() << pool->why();
  }
  Arena arena = Arena::create({.name = "model", .layout = kLayout, .max_size = size, .pages = pages}).value();
  Player player{arena, GetParam()};
  for (unsigned round = 0; round < 2000; ++round) {
    player.play();
    if (HasFailure()) FAIL() << "round " << round;
    if (round % 50 != 0) continue;
    player.verify();
    if (HasFatalFailure()) FAIL() << "round " << round;
    if (round % 500 == 0) {
      auto again = Arena::open(arena.release(), kLayout);
      ASSERT_TRUE(again) << to_string(again.error());
      arena = *std::move(again);
    }
  }
  {
    Tx tx{arena};
    for (const auto& [at, block] : player.model()) tx.release(PhysAddr{at});
    tx.commit();
  }
  player.model().clear();
  player.verify();
}

INSTANTIATE_TEST_SUITE_P(Seeds, ArenaModel, ::testing::Range(1U, 13U));

}  // namespace
}  // namespace luo::kho
