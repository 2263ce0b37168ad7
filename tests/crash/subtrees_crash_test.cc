// Each kind of change of subtrees' names, killed at every instruction and every system call.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "expect_all_or_nothing.h"
#include "kho/subtrees.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"crash", 1};

class SubtreesCrash : public ::testing::Test {
 protected:
  /// "a" incoming, "c" of this epoch. Few, because all of them are written anew at each change.
  void make() {
    subtrees.reset();
    arena.emplace(Arena::create({.name = "crash", .layout = kLayout, .max_size = 2_MiB}).value());
    Tx tx{*arena};
    const auto root = PreservedMemory::create(tx, *arena).value();
    tx.set_root(0, root.addr());
    subtrees.emplace(PreservedMemory::open(*arena, root).value());
    if (!add(tx, "a", "blob of a") || !subtrees->memory().advance(tx) || !add(tx, "c", "blob of c")) ::_exit(1);
    tx.commit();
  }
  bool add(Tx& tx, std::string_view name, std::string_view blob) {
    return subtrees->add(tx, name, std::as_bytes(std::span{blob})).has_value();
  }

  static Result<std::string> recover(Fd memfd) {
    Arena arena = LUO_TRY(Arena::open(std::move(memfd), kLayout));
    LUO_TRY(arena.check());
    const Ref<PreservedRoot> root{arena.root(0).raw()};
    Subtrees subtrees{LUO_TRY(PreservedMemory::open(arena, root))};
    std::string text = fmt::format("epoch {}, {} blocks, {} bytes", subtrees.memory().epoch(), arena.stats().blocks,
                                   arena.stats().used_bytes);
    const auto all = LUO_TRY(subtrees.list());
    for (const NamedSubtree& named : all)
      text += fmt::format(", {}: {} of {}{}", named.name,
                          std::string_view{arena.get(Ref<char>{named.blob.raw()}), named.size.raw()}, named.claimer,
                          named.incoming ? ", incoming" : "");
    // Changes can go on at once, and all of it can be given up.
    Tx tx{arena};
    LUO_TRY(subtrees.add(tx, "after", Bytes{8}));
    for (const NamedSubtree& named : all) LUO_TRY(subtrees.remove(tx, named.name));
    LUO_TRY(subtrees.remove(tx, "after"));
    while (!LUO_TRY(subtrees.memory().tidy(tx))) {}
    tx.commit();
    LUO_TRY(subtrees.memory().check());
    LUO_TRY(arena.check());
    if (arena.stats().blocks != 1) return fail(EBADMSG, "{} blocks are left", arena.stats().blocks);
    return text;
  }

  void expect_all_or_nothing(const std::function<bool(Tx&)>& work) {
    test::expect_all_or_nothing(
        [&]() -> const Arena& {
          make();
          return *arena;
        },
        [&] {
          Tx tx{*arena};
          if (!work(tx)) ::_exit(1);
          tx.commit();
        },
        recover);
  }

  std::optional<Arena> arena;
  std::optional<Subtrees> subtrees;
};

TEST_F(SubtreesCrash, Add) {
  expect_all_or_nothing([&](Tx& tx) { return add(tx, "d", "blob of d"); });
}

TEST_F(SubtreesCrash, RemoveAndTidy) {
  expect_all_or_nothing([&](Tx& tx) { return subtrees->remove(tx, "c") && subtrees->memory().tidy(tx).value(); });
}

TEST_F(SubtreesCrash, RemoveAll) {
  expect_all_or_nothing([&](Tx& tx) { return subtrees->remove(tx, "a") && subtrees->remove(tx, "c"); });
}

TEST_F(SubtreesCrash, Claim) {
  expect_all_or_nothing([&](Tx& tx) { return bool{subtrees->claim(tx, "a", 9)}; });
}

TEST_F(SubtreesCrash, ReplaceInOneTransaction) {
  expect_all_or_nothing(
      [&](Tx& tx) { return subtrees->remove(tx, "c") && add(tx, "c", "another blob of c, longer than the first"); });
}

TEST_F(SubtreesCrash, AdvanceForgetsNames) {
  expect_all_or_nothing([&](Tx& tx) { return bool{subtrees->memory().advance(tx)}; });
}

}  // namespace
}  // namespace luo::kho
