// Each kind of change of preserved memory, killed at every instruction and every system call.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "expect_all_or_nothing.h"
#include "kho/vmalloc.h"

namespace luo::kho {
namespace {

using test::KillCase;

constexpr Layout kLayout{"crash", 1};

struct Directory {
  std::uint64_t memory, tree, other, block, list;
  ScatteredMemory mine;
  std::uint64_t restored;
};

class VmallocCrash : public ::testing::Test {
 protected:
  void make() {
    memory.reset();
    arena.emplace(Arena::create({.name = "crash", .layout = kLayout, .max_size = 2_MiB}).value());
    Tx tx{*arena};
    const auto at = tx.make<Directory>().value();
    tx.set_root(0, at.addr());
    const auto root = PreservedMemory::create(tx, *arena).value();
    memory.emplace(PreservedMemory::open(*arena, root).value());
    Directory& directory = *arena->get(at);
    directory.memory = root.at;
    directory.tree = memory->make_subtree(tx).value().at;
    directory.other = memory->make_subtree(tx).value().at;
    const auto tree = Ref<PreservedSubtree>{directory.tree};
    directory.block = memory->alloc_preserve(tx, tree, Bytes{100}).value().at;
    directory.list = memory->alloc_preserve_scattered(tx, tree, 3, 0).value().at;
    if (!memory->fill(tx, Ref<PreservedItem>{directory.list}).value()) ::_exit(1);
    tx.commit();
  }
  Directory& directory() { return *arena->get(Ref<Directory>{arena->root(0).raw()}); }
  Ref<PreservedSubtree> tree() { return {directory().tree}; }
  Ref<PreservedItem> block() { return {directory().block}; }
  Ref<PreservedItem> list() { return {directory().list}; }
  void in_tx(const std::function<bool(Tx&)>& work) {
    Tx tx{*arena};
    if (!work(tx)) ::_exit(1);
    tx.commit();
  }
  void next_epoch() {
    in_tx([&](Tx& tx) { return memory->advance(tx) && memory->claim(tx, tree(), 5); });
  }

  static Result<std::string> recover(Fd memfd) {
    Arena arena = LUO_TRY(Arena::open(std::move(memfd), kLayout));
    LUO_TRY(arena.check());
    Directory* directory = arena.checked(Ref<Directory>{arena.root(0).raw()});
    if (directory == nullptr) return fail(EBADMSG, "root 0 leads nowhere");
    PreservedMemory memory = LUO_TRY(PreservedMemory::open(arena, Ref<PreservedRoot>{directory->memory}));
    std::uint64_t blocks = 0;
    const auto walked = memory.for_each_block(Ref<PreservedItem>{directory->list}, [&](PhysAddr) { ++blocks; });
    std::uint64_t mine = 0;
    if (directory->mine.first != 0) LUO_TRY(memory.for_each_block(directory->mine, [&](PhysAddr) { ++mine; }));
    std::string text = fmt::format("epoch {}, block {}, list {} of {}, own {} and {}, {} blocks", memory.epoch(),
                                   memory.address(Ref<PreservedItem>{directory->block}) != PhysAddr{},
                                   walked.has_value(), blocks, mine, directory->restored != 0, arena.stats().blocks);
    {  // who claimed it is known, and it can be given up to the end
      Tx tx{arena};
      const auto claimed = memory.claim(tx, Ref<PreservedSubtree>{directory->tree}, 5);
      text += fmt::format(", claim: {}", claimed ? 0 : claimed.error().code);
      tx.abort();
    }
    {
      Tx tx{arena};
      if (directory->mine.first != 0) LUO_TRY(memory.free_scattered(tx, directory->mine));
      tx.release(PhysAddr{directory->restored});
      for (unsigned i = 0; i < 2; ++i) LUO_TRY(memory.advance(tx));
      while (!LUO_TRY(memory.tidy(tx))) {}
      tx.commit();
    }
    LUO_TRY(memory.check());
    LUO_TRY(arena.check());
    if (arena.stats().blocks != 2) return fail(EBADMSG, "{} blocks are left", arena.stats().blocks);
    return text;
  }

  void expect_all_or_nothing(const std::function<void()>& set_up, const std::function<void()>& operate) {
    test::expect_all_or_nothing(
        [&]() -> const Arena& {
          make();
          set_up();
          return *arena;
        },
        operate, recover);
  }

  std::optional<Arena> arena;
  std::optional<PreservedMemory> memory;
};

TEST_F(VmallocCrash, AllocPreserve) {
  expect_all_or_nothing([] {},
                        [&] { in_tx([&](Tx& tx) { return bool{memory->alloc_preserve(tx, tree(), Bytes{40})}; }); });
}

TEST_F(VmallocCrash, UnpreserveFree) {
  expect_all_or_nothing([] {}, [&] { in_tx([&](Tx& tx) { return bool{memory->unpreserve_free(tx, block())}; }); });
}

TEST_F(VmallocCrash, UnpreserveFreeScattered) {
  expect_all_or_nothing([] {},
                        [&] { in_tx([&](Tx& tx) { return bool{memory->unpreserve_free_scattered(tx, list())}; }); });
}

TEST_F(VmallocCrash, Advance) {
  expect_all_or_nothing([&] { in_tx([&](Tx& tx) { return bool{memory->advance(tx)}; }); },
                        [&] { in_tx([&](Tx& tx) { return bool{memory->advance(tx)}; }); });
}

TEST_F(VmallocCrash, Claim) {
  expect_all_or_nothing([&] { in_tx([&](Tx& tx) { return bool{memory->advance(tx)}; }); },
                        [&] { in_tx([&](Tx& tx) { return bool{memory->claim(tx, tree(), 5)}; }); });
}

TEST_F(VmallocCrash, Restore) {
  expect_all_or_nothing([&] { next_epoch(); },
                        [&] {
                          in_tx([&](Tx& tx) {
                            tx.set(directory().restored, memory->restore(tx, block()).value().raw());
                            return true;
                          });
                        });
}

TEST_F(VmallocCrash, RestoreFree) {
  expect_all_or_nothing([&] { next_epoch(); },
                        [&] { in_tx([&](Tx& tx) { return bool{memory->restore_free(tx, block())}; }); });
}

TEST_F(VmallocCrash, RestoreScattered) {
  expect_all_or_nothing([&] { next_epoch(); },
                        [&] {
                          in_tx([&](Tx& tx) {
                            tx.set(directory().mine, memory->restore_scattered(tx, list()).value());
                            return true;
                          });
                        });
}

TEST_F(VmallocCrash, DropAndTidy) {
  expect_all_or_nothing([] {},
                        [&] { in_tx([&](Tx& tx) { return memory->drop(tx, tree()) && memory->tidy(tx).value(); }); });
}

TEST_F(VmallocCrash, Fill) {
  expect_all_or_nothing(
      [&] {
        in_tx([&](Tx& tx) {
          tx.set(directory().list, memory->alloc_preserve_scattered(tx, tree(), 1, 0).value().at);
          return true;
        });
      },
      [&] { in_tx([&](Tx& tx) { return memory->fill(tx, list()).value(); }); });
}

}  // namespace
}  // namespace luo::kho
