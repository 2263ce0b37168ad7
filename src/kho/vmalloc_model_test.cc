#include <map>
#include <random>

#include "kho/vmalloc_testing.h"

namespace luo::kho {
namespace {

class VmallocModel : public PreservedMemoryTest, public ::testing::WithParamInterface<unsigned> {};

// Blocks of some subtrees over many epochs, with transactions taken back and takeovers between.
TEST_P(VmallocModel, AgreesWithAMap) {
  struct Tree {
    std::uint64_t epoch, claimer;
    std::map<std::uint64_t, std::pair<std::uint64_t, unsigned char>> items;  // epoch, fill
  };
  std::map<std::uint64_t, Tree> model;
  std::mt19937_64 random{GetParam()};
  const auto pick = [&](std::uint64_t n) { return random() % n; };
  std::uint64_t epoch = memory->epoch();
  for (unsigned round = 0; round < 1500; ++round) {
    const auto before = model;
    const std::uint64_t epoch_before = epoch;
    Tx tx{arena};
    for (std::uint64_t steps = 1 + pick(5); steps > 0; --steps) {
      const std::uint64_t kind = pick(100);
      if (kind < 8 || model.empty()) {
        model[memory->make_subtree(tx).value().at] = {epoch, 0, {}};
        continue;
      }
      if (kind < 14) {
        ASSERT_TRUE(memory->advance(tx));
        ++epoch;
        std::erase_if(model, [&](const auto& tree) { return tree.second.epoch + 1 < epoch; });
        continue;
      }
      auto it = std::next(model.begin(), static_cast<std::ptrdiff_t>(pick(model.size())));
      const Subtree subtree{it->first};
      Tree& tree = it->second;
      const bool ours = tree.epoch == epoch;
      if (kind < 30) {
        const std::uint64_t who = 1 + pick(2);
        const auto done = memory->claim(tx, subtree, who);
        const int code = !ours ? 0 : tree.claimer == 0 ? EINVAL : tree.claimer == who ? EALREADY : EBUSY;
        ASSERT_EQ(done ? 0 : done.error().code, code);
        if (done) tree.epoch = epoch, tree.claimer = who;
      } else if (kind < 33) {
        ASSERT_TRUE(memory->drop(tx, subtree));
        model.erase(it);
      } else if (kind < 70) {
        const auto done = memory->alloc_preserve(tx, subtree, Bytes{1 + pick(3000)});
        ASSERT_EQ(done ? 0 : done.error().code, ours ? 0 : EBUSY);
        if (!done) continue;
        const auto fill = static_cast<unsigned char>(random());
        bytes(memory->address(*done))[0] = fill;
        tree.items[done->at] = {epoch, fill};
      } else if (!tree.items.empty()) {
        auto item = tree.items.lower_bound(pick(tree.items.rbegin()->first + 1));
        const bool earlier = item->second.first < epoch;
        ASSERT_EQ(bytes(memory->address(Item{item->first}))[0], item->second.second);
        const auto done =
            pick(2) == 0 ? memory->unpreserve_free(tx, Item{item->first}) : memory->restore_free(tx, Item{item->first});
        if (!ours) {
          ASSERT_EQ(done.error().code, EBUSY);
        } else if (done) {
          tree.items.erase(item);
        } else {
          ASSERT_EQ(done.error().code, EINVAL) << earlier;
        }
      }
    }
    if (pick(4) != 0) {
      tx.commit();
    } else {
      tx.abort();
      model = before;
      epoch = epoch_before;
    }
    if (pick(10) == 0) in_tx([&](Tx& more) { ASSERT_TRUE(memory->tidy(more)); });
    if (pick(50) == 0) reopen();
    if (round % 10 == 0) expect_sound();
    ASSERT_EQ(memory->epoch(), epoch);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
  tidy();
  std::uint64_t blocks = 1;
  for (const auto& [at, tree] : model) blocks += 1 + 2 * tree.items.size();
  EXPECT_EQ(arena.stats().blocks, blocks);
}

INSTANTIATE_TEST_SUITE_P(Seeds, VmallocModel, ::testing::Range(1U, 7U));

}  // namespace
}  // namespace luo::kho
