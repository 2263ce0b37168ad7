#include "kho/vmalloc.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <vector>

#include "kho/image.h"
#include "kho/vmalloc_testing.h"

namespace luo::kho {
namespace {

class Vmalloc : public PreservedMemoryTest {};

TEST_F(Vmalloc, ABlockIsHandedOverAndBelongsToWhoRestoresIt) {
  const Subtree tree = make_subtree();
  const Item item = alloc(tree, 5000);
  const PhysAddr at = memory->address(item);
  for (std::size_t i = 0; i < 5000; ++i) ASSERT_EQ(bytes(at)[i], 0) << i;
  std::memset(bytes(at), 7, 5000);
  advance();
  reopen();
  EXPECT_EQ(claim(tree, 1), 0);
  const PhysAddr restored = in_tx([&](Tx& tx) { return memory->restore(tx, item).value(); });
  EXPECT_EQ(restored, at);
  EXPECT_EQ(bytes(at)[4999], 7);
  EXPECT_EQ(in_tx([&](Tx& tx) { return memory->restore(tx, item).error().code; }), ENOENT) << "once";
  expect_sound();
  in_tx([&](Tx& tx) {
    tx.release(restored);
    ASSERT_TRUE(memory->drop(tx, tree));
  });
  tidy();
  EXPECT_EQ(arena.stats().blocks, 1U);
}

TEST_F(Vmalloc, EachVerbBelongsToItsSideAndKind) {
  const Subtree tree = make_subtree();
  const Item item = alloc(tree, 100), list = scattered(tree, 3, 0);
  Tx tx{arena};
  EXPECT_EQ(memory->alloc_preserve(tx, tree, Bytes{0}).error().code, EINVAL);
  EXPECT_EQ(memory->alloc_preserve(tx, tree, 1_GiB).error().code, ENOMEM);
  EXPECT_EQ(memory->alloc_preserve_scattered(tx, tree, 0, 0).error().code, EINVAL);
  EXPECT_EQ(memory->alloc_preserve_scattered(tx, tree, 1, 21).error().code, E2BIG);
  EXPECT_EQ(memory->restore(tx, item).error().code, EINVAL) << "it is of this epoch";
  EXPECT_EQ(memory->restore_free(tx, item).error().code, EINVAL);
  EXPECT_EQ(memory->restore_scattered(tx, list).error().code, EINVAL);
  EXPECT_EQ(memory->restore_free_scattered(tx, list).error().code, EINVAL);
  EXPECT_EQ(memory->unpreserve_free(tx, list).error().code, EINVAL) << "the other kind";
  EXPECT_EQ(memory->unpreserve_free_scattered(tx, item).error().code, EINVAL);
  EXPECT_EQ(memory->unpreserve_free(tx, Item{tree.at}).error().code, ENOENT);
  EXPECT_EQ(memory->alloc_preserve(tx, Subtree{item.at}, Bytes{1}).error().code, ENOENT);
  EXPECT_EQ(memory->claim(tx, tree, 1).error().code, EINVAL) << "it was made here";
  EXPECT_EQ(memory->claim(tx, tree, 0).error().code, EINVAL);
  ASSERT_TRUE(memory->advance(tx));
  EXPECT_EQ(memory->restore(tx, item).error().code, EBUSY) << "not claimed";
  EXPECT_EQ(memory->unpreserve_free(tx, item).error().code, EBUSY);
  EXPECT_EQ(memory->alloc_preserve(tx, tree, Bytes{1}).error().code, EBUSY);
  ASSERT_TRUE(memory->claim(tx, tree, 1));
  EXPECT_EQ(memory->unpreserve_free(tx, item).error().code, EINVAL) << "it is of an earlier epoch";
  EXPECT_EQ(memory->fill(tx, list).error().code, EINVAL);
  ASSERT_TRUE(memory->restore_free(tx, item));
  ASSERT_TRUE(memory->restore_free_scattered(tx, list));
  const Item added = memory->alloc_preserve(tx, tree, Bytes{9}).value();
  ASSERT_TRUE(memory->unpreserve_free(tx, added));
  tx.commit();
  tidy();
  EXPECT_EQ(arena.stats().blocks, 2U);
  expect_sound();
}

TEST_F(Vmalloc, AClaimHappensOnceInAnEpoch) {
  const Subtree tree = make_subtree();
  advance();
  EXPECT_EQ(claim(tree, 11), 0);
  EXPECT_EQ(claim(tree, 11), EALREADY);
  EXPECT_EQ(claim(tree, 12), EBUSY);
  advance();
  EXPECT_EQ(claim(tree, 12), 0);
  EXPECT_EQ(claim(tree, 11), EBUSY);
  expect_sound();
}

TEST_F(Vmalloc, WhatNobodyClaimedIsGivenUpAtTheNextAdvance) {
  const Subtree wanted = make_subtree(), unwanted = make_subtree(), empty = make_subtree();
  alloc(wanted, 10);
  const Item lost = alloc(unwanted, 10);
  scattered(unwanted, 5, 1);
  advance();
  EXPECT_EQ(claim(wanted, 1), 0);
  advance();
  EXPECT_EQ(claim(unwanted, 1), ENOENT);
  EXPECT_EQ(claim(empty, 1), ENOENT);
  EXPECT_EQ(in_tx([&](Tx& tx) { return memory->restore(tx, lost).error().code; }), ENOENT);
  EXPECT_EQ(memory->address(lost), PhysAddr{});
  EXPECT_EQ(memory->for_each_item(unwanted, [](Item) {}).error().code, ENOENT);
  expect_sound();
  tidy();
  EXPECT_EQ(arena.stats().blocks, 4U) << "root, subtree, item, block";
  EXPECT_EQ(claim(wanted, 2), 0);
  expect_sound();
}

TEST_F(Vmalloc, AClaimedSubtreeSurvivesItsClaimer) {
  const Subtree tree = make_subtree();
  const Item item = alloc(tree, 64);
  advance();
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    {
      Tx tx{arena};
      if (!memory->claim(tx, tree, 77)) ::_exit(1);
      tx.commit();
    }
    Tx open{arena};  // and dies in the middle of the next thing
    if (!memory->restore_free(open, item)) ::_exit(1);
    (void)!::write(ready[1], "x", 1);
    for (;;) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::kill(pid, SIGKILL);
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  ASSERT_TRUE(WIFSIGNALED(status));
  ::close(ready[0]);
  ::close(ready[1]);
  reopen();
  EXPECT_EQ(claim(tree, 77), EALREADY);
  EXPECT_EQ(claim(tree, 78), EBUSY);
  EXPECT_NE(memory->address(item), PhysAddr{});
  advance();  // is of the epoch in which it was claimed, and so not given up
  EXPECT_EQ(claim(tree, 78), 0);
  in_tx([&](Tx& tx) { ASSERT_TRUE(memory->restore_free(tx, item)); });
  expect_sound();
}

TEST_F(Vmalloc, ClaimingDoesNotDependOnTheSize) {
  const Subtree small = make_subtree(), large = make_subtree();
  alloc(small, 16);
  for (unsigned i = 0; i < 20000;)
    in_tx([&](Tx& tx) {
      for (unsigned n = 0; n < 500; ++n, ++i) ASSERT_TRUE(memory->alloc_preserve(tx, large, Bytes{16}));
    });
  in_tx([&](Tx& tx) {
    const std::size_t before = tx.room();
    ASSERT_TRUE(memory->advance(tx));
    EXPECT_LT(before - tx.room(), 400U);
  });
  in_tx([&](Tx& tx) {
    const std::size_t before = tx.room();
    ASSERT_TRUE(memory->claim(tx, large, 1));
    const std::size_t between = tx.room();
    ASSERT_TRUE(memory->claim(tx, small, 1));
    EXPECT_LT(before - between, 600U);
    EXPECT_LT(between - tx.room(), 600U);
  });
  in_tx([&](Tx& tx) {
    const std::size_t before = tx.room();
    ASSERT_TRUE(memory->drop(tx, large));
    EXPECT_LT(before - tx.room(), 600U);
  });
  expect_sound();
  tidy();
  EXPECT_EQ(arena.stats().blocks, 4U);
}

TEST_F(Vmalloc, ScatteredMemoryOfAnySizeIsFilledAndGivenUpInSteps) {
  const Subtree tree = make_subtree();
  // At the edges of a chunk, and beyond what one transaction can hold.
  for (const std::uint64_t blocks : {1U, 509U, 510U, 511U, 1020U, 50000U}) {
    const Item item = in_tx([&](Tx& tx) { return memory->alloc_preserve_scattered(tx, tree, blocks, 0).value(); });
    unsigned steps = 1;
    while (!in_tx([&](Tx& tx) { return memory->fill(tx, item).value(); })) {
      ++steps;
      expect_sound();
    }
    EXPECT_EQ(steps > 1, blocks == 50000) << blocks;
    std::vector<std::uint64_t> places;
    ASSERT_TRUE(memory->for_each_block(item, [&](PhysAddr at) {
      EXPECT_EQ(bytes(at)[0] | bytes(at)[4095], 0);
      bytes(at)[0] = static_cast<unsigned char>(places.size());
      places.push_back(at.raw());
    }));
    EXPECT_EQ(places.size(), blocks);
    advance();
    ASSERT_EQ(claim(tree, 1), 0);
    reopen();
    const ScatteredMemory mine = in_tx([&](Tx& tx) { return memory->restore_scattered(tx, item).value(); });
    std::size_t n = 0;
    ASSERT_TRUE(memory->for_each_block(mine, [&](PhysAddr at) {
      EXPECT_EQ(at.raw(), places[n]);
      EXPECT_EQ(bytes(at)[0], static_cast<unsigned char>(n));
      ++n;
    }));
    EXPECT_EQ(n, blocks);
    in_tx([&](Tx& tx) { ASSERT_TRUE(memory->free_scattered(tx, mine)); });
    expect_sound();
    tidy();
    ASSERT_EQ(arena.stats().blocks, 2U);
  }
}

TEST_F(Vmalloc, AListThatWasNeverFilledIsNotRestored) {
  const Subtree tree = make_subtree();
  const Item item = in_tx([&](Tx& tx) { return memory->alloc_preserve_scattered(tx, tree, 600000, 0).value(); });
  int code = 0;
  while (code == 0) {  // the arena has not that much
    Tx tx{arena};
    const auto done = memory->fill(tx, item);
    if (!done) code = done.error().code;
    tx.commit();
  }
  EXPECT_EQ(code, ENOMEM);
  expect_sound();
  advance();
  ASSERT_EQ(claim(tree, 1), 0);
  EXPECT_EQ(in_tx([&](Tx& tx) { return memory->restore_scattered(tx, item).error().code; }), EINVAL);
  in_tx([&](Tx& tx) { ASSERT_TRUE(memory->restore_free_scattered(tx, item)); });
  tidy();
  EXPECT_EQ(arena.stats().blocks, 2U);
}

TEST_F(Vmalloc, SaysWhenATransactionIsTooFull) {
  const Subtree tree = make_subtree();
  Tx tx{arena};
  for (;;) {
    const auto item = memory->alloc_preserve(tx, tree, Bytes{16});
    if (item) continue;
    EXPECT_EQ(item.error().code, ENOBUFS);
    break;
  }
  tx.commit();
  expect_sound();
}

// A subtree in each state goes through an image, and each verb finds what it would have found before.
TEST_F(Vmalloc, CrossesInAnImage) {
  const Subtree claimed = make_subtree(), incoming = make_subtree(), gone = make_subtree();
  const Item block = alloc(claimed, 5000), other = alloc(incoming, 20), mine = scattered(claimed, 700, 0),
             list = scattered(incoming, 600, 1);
  alloc(gone, 3);
  std::memset(bytes(memory->address(block)), 9, 5000);
  unsigned n = 0;
  ASSERT_TRUE(memory->for_each_block(list, [&](PhysAddr at) { bytes(at)[8191] = static_cast<unsigned char>(n++); }));
  advance();
  ASSERT_EQ(claim(claimed, 3), 0);
  const ScatteredMemory restored = in_tx([&](Tx& tx) {
    EXPECT_TRUE(memory->drop(tx, gone));
    return memory->restore_scattered(tx, mine).value();
  });
  const Item unfilled = in_tx([&](Tx& tx) { return memory->alloc_preserve_scattered(tx, claimed, 8, 0).value(); });

  for (const std::uint32_t format : {kOldestImageFormat, kImageFormat}) {
    const Fd image = seal(arena, "image", {.format = format}).value();
    const std::uint64_t blocks = arena.stats().blocks;
    memory.reset();
    arena = populate(image, kLayout, "populated").value();
    root = Ref<PreservedRoot>{arena.root(0).raw()};
    open();
    expect_sound();
    ASSERT_EQ(arena.stats().blocks, blocks);
  }
  std::vector<Subtree> subtrees;
  memory->for_each_subtree([&](Subtree at) { subtrees.push_back(at); });
  EXPECT_EQ(subtrees, (std::vector{claimed, incoming}));
  std::vector<Item> items;
  ASSERT_TRUE(memory->for_each_item(incoming, [&](Item at) { items.push_back(at); }));
  EXPECT_EQ(items, (std::vector{other, list}));

  EXPECT_EQ(claim(claimed, 3), EALREADY);
  EXPECT_EQ(claim(claimed, 4), EBUSY);
  EXPECT_EQ(claim(gone, 4), ENOENT);
  EXPECT_EQ(claim(incoming, 4), 0);
  EXPECT_EQ(in_tx([&](Tx& tx) { return memory->fill(tx, unfilled).value(); }), true);
  in_tx([&](Tx& tx) {
    const PhysAddr at = memory->restore(tx, block).value();
    EXPECT_EQ(bytes(at)[0] & bytes(at)[4999], 9);
    tx.release(at);
    ASSERT_TRUE(memory->restore_free(tx, other));
    ASSERT_TRUE(memory->free_scattered(tx, restored));
  });
  n = 0;
  ASSERT_TRUE(
      memory->for_each_block(list, [&](PhysAddr at) { EXPECT_EQ(bytes(at)[8191], static_cast<unsigned char>(n++)); }));
  EXPECT_EQ(n, 600U);
  in_tx([&](Tx& tx) {
    ASSERT_TRUE(memory->drop(tx, claimed));
    ASSERT_TRUE(memory->drop(tx, incoming));
  });
  tidy();
  EXPECT_EQ(arena.stats().blocks, 1U) << "the root";
  expect_sound();
}

TEST_F(Vmalloc, ARingOfChunksThatWereRestoredIsAnError) {
  const Subtree tree = make_subtree();
  const Item item = scattered(tree, 510, 0);
  advance();
  ASSERT_EQ(claim(tree, 1), 0);
  ScatteredMemory mine = in_tx([&](Tx& tx) { return memory->restore_scattered(tx, item).value(); });
  *arena.get(Ref<std::uint64_t>{mine.first}) = mine.first;
  mine.blocks = ~std::uint64_t{0} / 510 * 510;
  EXPECT_EQ(memory->for_each_block(mine, [](PhysAddr) {}).error().code, EBADMSG);
  Tx tx{arena};
  EXPECT_EQ(memory->free_scattered(tx, mine).error().code, EBADMSG);
}

TEST_F(Vmalloc, EveryBitOfItsRecordsIsCheckedOrHarmless) {
  const Subtree tree = make_subtree(), other = make_subtree(), gone = make_subtree();
  const Item item = alloc(tree, 100), second = alloc(tree, 200), list = scattered(tree, 513, 0);
  alloc(gone, 10);
  advance();
  ASSERT_EQ(claim(tree, 1), 0);
  in_tx([&](Tx& tx) {
    ASSERT_TRUE(memory->drop(tx, gone));
    ASSERT_TRUE(memory->restore_free(tx, second));
  });
  const Item waiting = scattered(tree, 2, 0);
  in_tx([&](Tx& tx) { ASSERT_TRUE(memory->unpreserve_free_scattered(tx, waiting)); });
  expect_sound();
  const auto words_of = [&](std::uint64_t at) { return arena.get(Ref<std::uint64_t>{at}); };
  struct Place {
    std::uint64_t at;
    std::size_t words;
  };
  const std::uint64_t chunk = arena.get(list)->first, last = arena.get(list)->last;
  unsigned flips = 0, found = 0;
  for (const Place place : {Place{root.at, sizeof(PreservedRoot) / 8}, Place{tree.at, sizeof(PreservedSubtree) / 8},
                            Place{other.at, sizeof(PreservedSubtree) / 8}, Place{gone.at, sizeof(PreservedSubtree) / 8},
                            Place{item.at, sizeof(PreservedItem) / 8}, Place{list.at, sizeof(PreservedItem) / 8},
                            Place{waiting.at, sizeof(PreservedItem) / 8}, Place{chunk, 20}, Place{last, 5}}) {
    for (std::size_t bit = 0; bit < place.words * 64; ++bit) {
      std::uint64_t& word = words_of(place.at)[bit / 64];
      word ^= std::uint64_t{1} << (bit % 64);
      const auto sound = memory->check();
      ++flips;
      if (!sound) {
        ++found;
        EXPECT_EQ(sound.error().code, EBADMSG);
      } else {  // another possible state: can be used, here in a transaction that is taken back
        Tx tx{arena};
        std::size_t blocks = 0;
        (void)memory->claim(tx, other, 5);
        (void)memory->for_each_block(list, [&](PhysAddr) { ++blocks; });
        EXPECT_LE(blocks, 513U);
        (void)memory->restore(tx, item);
        (void)memory->advance(tx);
        (void)memory->tidy(tx);
      }
      word ^= std::uint64_t{1} << (bit % 64);
      ASSERT_TRUE(memory->check()) << "at " << place.at << " bit " << bit;
    }
  }
  EXPECT_GT(found, flips / 2);
  std::cout << flips << " bits, " << found << " found\n";
  EXPECT_EQ(PreservedMemory::open(arena, Ref<PreservedRoot>{tree.at}).error().code, EBADMSG);
}

}  // namespace
}  // namespace luo::kho
