// What the tests of preserved memory share: an arena with one, in root slot 0, and each verb in a transaction of its
// own.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "kho/vmalloc.h"

namespace luo::kho {

class PreservedMemoryTest : public ::testing::Test {
 protected:
  static constexpr Layout kLayout{"preserved", 1};
  using Subtree = PreservedMemory::Subtree;
  using Item = PreservedMemory::Item;

  template <class Work>
  std::invoke_result_t<Work, Tx&> in_tx(Work work) {
    Tx tx{arena};
    if constexpr (std::is_void_v<decltype(work(tx))>) {
      work(tx);
      tx.commit();
    } else {
      auto result = work(tx);
      tx.commit();
      return result;
    }
  }
  PreservedMemoryTest() : arena{Arena::create({.name = "preserved", .layout = kLayout, .max_size = 512_MiB}).value()} {
    start();
  }
  void make(Bytes max_size) {
    memory.reset();
    arena = Arena::create({.name = "preserved", .layout = kLayout, .max_size = max_size}).value();
    start();
  }
  void start() {
    in_tx([&](Tx& tx) {
      root = PreservedMemory::create(tx, arena).value();
      tx.set_root(0, root.addr());
    });
    open();
  }
  void open() { memory.emplace(PreservedMemory::open(arena, root).value()); }
  void reopen() {
    memory.reset();
    arena = Arena::open(arena.release(), kLayout).value();
    open();
  }
  Subtree make_subtree() {
    return in_tx([&](Tx& tx) { return memory->make_subtree(tx).value(); });
  }
  Item alloc(Subtree tree, std::size_t bytes) {
    return in_tx([&](Tx& tx) { return memory->alloc_preserve(tx, tree, Bytes{bytes}).value(); });
  }
  Item scattered(Subtree tree, std::uint64_t blocks, unsigned order) {
    const Item item = in_tx([&](Tx& tx) { return memory->alloc_preserve_scattered(tx, tree, blocks, order).value(); });
    while (!in_tx([&](Tx& tx) { return memory->fill(tx, item).value(); })) {}
    return item;
  }
  void advance() {
    in_tx([&](Tx& tx) { ASSERT_TRUE(memory->advance(tx)); });
  }
  int claim(Subtree tree, std::uint64_t claimer) {
    return in_tx([&](Tx& tx) {
      const auto done = memory->claim(tx, tree, claimer);
      return done ? 0 : done.error().code;
    });
  }
  void tidy() {
    while (!in_tx([&](Tx& tx) { return memory->tidy(tx).value(); })) {}
  }
  void expect_sound() {
    auto sound = memory->check();
    ASSERT_TRUE(sound) << to_string(sound.error());
    sound = arena.check();
    ASSERT_TRUE(sound) << to_string(sound.error());
  }
  unsigned char* bytes(PhysAddr at) { return arena.get(Ref<unsigned char>{at.raw()}); }

  Arena arena;
  Ref<PreservedRoot> root;
  std::optional<PreservedMemory> memory;
};

}  // namespace luo::kho
