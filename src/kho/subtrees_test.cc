#include "kho/subtrees.h"

#include <map>
#include <random>

#include "kho/device_tree.h"
#include "kho/image.h"
#include "kho/vmalloc_testing.h"

namespace luo::kho {
namespace {

class SubtreesTest : public PreservedMemoryTest {
 protected:
  Subtrees subtrees() { return Subtrees{*memory}; }
  NamedSubtree add(std::string_view name, std::string_view content) {
    return in_tx([&](Tx& tx) { return subtrees().add(tx, name, std::as_bytes(std::span{content})).value(); });
  }
  int try_add(std::string_view name, Bytes size) {
    return in_tx([&](Tx& tx) { return code_of(subtrees().add(tx, name, size)); });
  }
  int remove(std::string_view name) {
    return in_tx([&](Tx& tx) { return code_of(subtrees().remove(tx, name)); });
  }
  int claim(std::string_view name, std::uint64_t claimer) {
    return in_tx([&](Tx& tx) { return code_of(subtrees().claim(tx, name, claimer)); });
  }
  std::string content(std::string_view name) {
    const auto found = subtrees().retrieve(name);
    if (!found) return fmt::format("error {}", found.error().code);
    return {reinterpret_cast<const char*>(bytes(found->blob)), found->size.raw()};
  }
  std::vector<std::string> names() {
    std::vector<std::string> out;
    const auto all = subtrees().list().value();
    for (const NamedSubtree& named : all) out.push_back(named.name);
    return out;
  }
  template <class R>
  static int code_of(const R& result) {
    return result ? 0 : result.error().code;
  }
};

using Names = std::vector<std::string>;

TEST_F(SubtreesTest, ANameLeadsToItsBlobInTheNextLife) {
  EXPECT_EQ(names(), Names{});
  EXPECT_EQ(content("luo"), fmt::format("error {}", ENOENT));
  const NamedSubtree made = add("luo", "32 bytes of header");
  add("kexec-metadata", std::string(5000, 'x'));
  const Item more = alloc(made.subtree, 100);
  EXPECT_FALSE(made.incoming);
  advance();
  reopen();
  EXPECT_EQ(names(), (Names{"luo", "kexec-metadata"}));
  EXPECT_EQ(content("luo"), "32 bytes of header") << "before it is claimed";
  EXPECT_TRUE(subtrees().retrieve("luo")->incoming);
  EXPECT_EQ(claim("luo", 7), 0);
  const NamedSubtree mine = subtrees().retrieve("luo").value();
  EXPECT_EQ(mine.subtree, made.subtree);
  EXPECT_EQ(mine.blob, made.blob);
  EXPECT_EQ(mine.claimer, 7U);
  EXPECT_FALSE(mine.incoming);
  in_tx([&](Tx& tx) { ASSERT_TRUE(memory->restore_free(tx, more)); });
  EXPECT_EQ(content("kexec-metadata"), std::string(5000, 'x'));
  expect_sound();
}

TEST_F(SubtreesTest, ABlobIsZerosThatCanBeWrittenAtOnce) {
  in_tx([&](Tx& tx) {
    Subtrees all = subtrees();
    const NamedSubtree made = all.add(tx, "a", Bytes{3000}).value();
    for (unsigned i = 0; i < 3000; ++i) ASSERT_EQ(bytes(made.blob)[i], 0);
    std::memset(bytes(made.blob), 'z', 3000);
  });
  EXPECT_EQ(content("a"), std::string(3000, 'z'));
  EXPECT_EQ(try_add("b", Bytes{0}), EINVAL);
}

TEST_F(SubtreesTest, EachNameIsThereOnceAndMustBePossible) {
  add("a", "1");
  EXPECT_EQ(try_add("a", Bytes{1}), EEXIST);
  advance();
  EXPECT_EQ(try_add("a", Bytes{1}), EEXIST) << "incoming";
  EXPECT_EQ(claim("a", 1), 0);
  EXPECT_EQ(try_add("a", Bytes{1}), EEXIST) << "claimed";
  EXPECT_EQ(remove("a"), 0);
  EXPECT_EQ(remove("a"), ENOENT);
  EXPECT_EQ(try_add("a", Bytes{1}), 0);
  const std::string longest(63, 'n');
  EXPECT_EQ(try_add(longest, Bytes{1}), 0);
  for (const std::string_view name : {"", "a/b", "/a", "a@1", "-a", ".", "a b", "ä", "a\n"})
    EXPECT_EQ(try_add(name, Bytes{1}), EINVAL) << name;
  EXPECT_EQ(try_add(longest + "n", Bytes{1}), EINVAL);
  EXPECT_EQ(try_add(std::string_view{"a\0b", 3}, Bytes{1}), EINVAL);
  EXPECT_EQ(names(), (Names{"a", longest}));
  expect_sound();
}

TEST_F(SubtreesTest, AClaimHappensOnce) {
  add("a", "1");
  EXPECT_EQ(claim("a", 1), EINVAL) << "made in this life";
  EXPECT_EQ(claim("b", 1), ENOENT);
  advance();
  EXPECT_EQ(claim("a", 0), EINVAL);
  EXPECT_EQ(claim("a", 1), 0);
  EXPECT_EQ(claim("a", 1), EALREADY);
  EXPECT_EQ(claim("a", 2), EBUSY);
  advance();
  EXPECT_EQ(claim("a", 2), 0);
  EXPECT_EQ(content("a"), "1");
  expect_sound();
}

TEST_F(SubtreesTest, WhatNobodyClaimedLosesItsName) {
  const NamedSubtree wanted = add("wanted", "w"), unwanted = add("unwanted", "u");
  add("removed", "r");
  alloc(unwanted.subtree, 10);
  advance();
  EXPECT_EQ(claim("wanted", 1), 0);
  EXPECT_EQ(remove("removed"), 0) << "needs no claim";
  EXPECT_EQ(names(), (Names{"wanted", "unwanted"}));
  advance();
  EXPECT_EQ(names(), Names{"wanted"});
  EXPECT_EQ(claim("unwanted", 1), ENOENT);
  add("unwanted", "again");
  expect_sound();
  tidy();
  EXPECT_EQ(arena.stats().blocks, 8U) << "root, tree of names; twice subtree, item, blob";
  in_tx([&](Tx& tx) { ASSERT_TRUE(memory->drop(tx, wanted.subtree)); });
  EXPECT_EQ(names(), Names{"unwanted"}) << "dropped, not removed: the same";
  EXPECT_EQ(remove("unwanted"), 0);
  tidy();
  EXPECT_EQ(arena.stats().blocks, 1U);
  expect_sound();
}

TEST_F(SubtreesTest, TheBlobStaysWhileItHasItsName) {
  const NamedSubtree made = add("a", "1");
  std::vector<Item> items;
  ASSERT_TRUE(memory->for_each_item(made.subtree, [&](Item at) { items.push_back(at); }));
  ASSERT_EQ(items.size(), 1U);
  Tx tx{arena};
  EXPECT_EQ(memory->unpreserve_free(tx, items[0]).error().code, EBUSY);
  ASSERT_TRUE(memory->advance(tx));
  ASSERT_TRUE(memory->claim(tx, made.subtree, 1));
  EXPECT_EQ(memory->restore(tx, items[0]).error().code, EBUSY);
  EXPECT_EQ(memory->restore_free(tx, items[0]).error().code, EBUSY);
  tx.commit();
  EXPECT_EQ(content("a"), "1");
  expect_sound();
}

TEST_F(SubtreesTest, AsManyAsTheTreeHolds) {
  unsigned count = 0;
  int code = 0;
  while ((code = try_add(fmt::format("subtree-{}", count), Bytes{16})) == 0) ++count;
  EXPECT_EQ(code, ENOMEM);
  EXPECT_GT(count, 600U);
  EXPECT_LE(subtrees().device_tree().size(), std::size_t{64} << 10);
  std::cout << count << " names\n";
  expect_sound();
  advance();
  EXPECT_EQ(claim("subtree-7", 1), 0);
  advance();  // all names but one in one transaction
  EXPECT_EQ(names(), Names{"subtree-7"});
  tidy();
  EXPECT_EQ(arena.stats().blocks, 5U);
  expect_sound();
}

TEST_F(SubtreesTest, GivingUpNeedsNoMemory) {
  make(1_MiB);
  for (unsigned i = 0; i < 20; ++i) add(fmt::format("s{}", i), "x");
  const Subtree tree = make_subtree();
  for (std::size_t size = 512 << 10; size >= 16; size /= 2)
    while (in_tx([&](Tx& tx) { return tx.allocate(size).has_value(); })) {}
  EXPECT_EQ(in_tx([&](Tx& tx) { return code_of(memory->alloc_preserve(tx, tree, Bytes{16})); }), ENOMEM);
  EXPECT_EQ(try_add("one-more", Bytes{16}), ENOMEM);
  EXPECT_EQ(names().size(), 20U);
  EXPECT_EQ(remove("s3"), 0);
  advance();
  EXPECT_EQ(claim("s4", 1), 0);
  advance();
  EXPECT_EQ(names(), Names{"s4"});
  expect_sound();
}

TEST_F(SubtreesTest, ManyChangesInOneTransactionThatIsTakenBack) {
  add("a", "old a");
  add("b", "old b");
  {
    Tx tx{arena};
    Subtrees all = subtrees();
    ASSERT_TRUE(all.remove(tx, "a"));
    ASSERT_TRUE(all.add(tx, "a", Bytes{10}));
    const Tx::Mark mark = tx.mark();
    ASSERT_TRUE(all.remove(tx, "a"));
    ASSERT_TRUE(all.remove(tx, "b"));
    EXPECT_EQ(names(), Names{});
    for (unsigned i = 0; i < 30; ++i) ASSERT_TRUE(all.add(tx, fmt::format("n{}", i), Bytes{10}));
    tx.back_to(mark);
    EXPECT_EQ(names(), (Names{"b", "a"}));
    EXPECT_EQ(content("a"), std::string(10, '\0'));
    ASSERT_TRUE(all.remove(tx, "b"));
  }
  EXPECT_EQ(names(), (Names{"a", "b"}));
  EXPECT_EQ(content("a") + content("b"), "old aold b");
  expect_sound();
}

TEST_F(SubtreesTest, SaysWhenATransactionIsTooFull) {
  add("a", "1");
  Tx tx{arena};
  const auto ballast = tx.allocate(64 << 10).value();
  while (tx.room() >= PreservedMemory::kRoom) tx.save(arena.get(Ref<std::byte>{ballast.raw()}), 64 << 10);
  Subtrees all = subtrees();
  EXPECT_EQ(all.add(tx, "b", Bytes{1}).error().code, ENOBUFS);
  EXPECT_EQ(all.remove(tx, "a").error().code, ENOBUFS);
  EXPECT_EQ(all.claim(tx, "a", 1).error().code, ENOBUFS);
  tx.commit();
  EXPECT_EQ(names(), Names{"a"});
}

TEST_F(SubtreesTest, CrossesInAnImage) {
  const std::string large(100000, 'L');
  add("claimed", "one");
  add("large", large);
  add("unwanted", "u");
  advance();
  ASSERT_EQ(claim("claimed", 5), 0);
  add("new", "n");
  ASSERT_EQ(remove("unwanted"), 0);
  const auto tree = std::vector(subtrees().device_tree().begin(), subtrees().device_tree().end());
  for (const std::uint32_t format : {kOldestImageFormat, kImageFormat}) {
    const Fd image = seal(arena, "image", {.format = format}).value();
    memory.reset();
    arena = populate(image, kLayout, "populated").value();
    open();
    expect_sound();
  }
  EXPECT_TRUE(std::ranges::equal(subtrees().device_tree(), tree));
  EXPECT_EQ(names(), (Names{"claimed", "large", "new"}));
  EXPECT_EQ(claim("claimed", 5), EALREADY);
  EXPECT_EQ(claim("claimed", 6), EBUSY);
  EXPECT_EQ(content("large"), large);
  EXPECT_EQ(claim("large", 6), 0);
  advance();
  EXPECT_EQ(names(), (Names{"claimed", "large", "new"}));
  for (const std::string_view name : {"claimed", "large", "new"}) EXPECT_EQ(remove(name), 0);
  tidy();
  EXPECT_EQ(arena.stats().blocks, 1U);
}

class SubtreesModel : public SubtreesTest, public ::testing::WithParamInterface<unsigned> {};

TEST_P(SubtreesModel, AgreesWithAMap) {
  struct Tree {
    std::uint64_t epoch, claimer;
    std::string blob;
  };
  std::map<std::string, Tree> model;
  std::mt19937_64 random{GetParam()};
  std::uint64_t epoch = memory->epoch();
  for (unsigned round = 0; round < 800; ++round) {
    const auto before = model;
    const std::uint64_t epoch_before = epoch;
    Tx tx{arena};
    Subtrees all = subtrees();
    for (std::uint64_t steps = 1 + random() % 4; steps > 0; --steps) {
      const std::string name = fmt::format("name-{}", random() % 12);
      const auto found = model.find(name);
      switch (random() % 8) {
        case 0:
          ASSERT_TRUE(memory->advance(tx));
          ++epoch;
          std::erase_if(model, [&](const auto& tree) { return tree.second.epoch + 1 < epoch; });
          break;
        case 1:
          ASSERT_EQ(code_of(all.remove(tx, name)), found == model.end() ? ENOENT : 0);
          model.erase(name);
          break;
        case 2:
        case 3:
        case 4: {
          const std::uint64_t who = 1 + random() % 2;
          const int code = found == model.end()           ? ENOENT
                           : found->second.epoch < epoch  ? 0
                           : found->second.claimer == 0   ? EINVAL
                           : found->second.claimer == who ? EALREADY
                                                          : EBUSY;
          ASSERT_EQ(code_of(all.claim(tx, name, who)), code);
          if (code == 0) found->second.epoch = epoch, found->second.claimer = who;
          break;
        }
        default: {
          const std::string blob(1 + random() % 400, static_cast<char>('a' + random() % 26));
          const auto added = all.add(tx, name, std::as_bytes(std::span{blob}));
          ASSERT_EQ(code_of(added), found == model.end() ? 0 : EEXIST);
          if (added) model[name] = {epoch, 0, blob};
        }
      }
    }
    if (random() % 4 != 0) {
      tx.commit();
    } else {
      tx.abort();
      model = before;
      epoch = epoch_before;
    }
    ASSERT_EQ(names().size(), model.size());
    for (const auto& [name, tree] : model) {
      ASSERT_EQ(content(name), tree.blob);
      ASSERT_EQ(subtrees().retrieve(name)->incoming, tree.epoch != epoch);
    }
    if (random() % 10 == 0) in_tx([&](Tx& more) { ASSERT_TRUE(memory->tidy(more)); });
    if (random() % 40 == 0) reopen();
    if (round % 10 == 0) expect_sound();
  }
  tidy();
  EXPECT_EQ(arena.stats().blocks, 1 + !model.empty() + 3 * model.size());
}

INSTANTIATE_TEST_SUITE_P(Seeds, SubtreesModel, ::testing::Range(1U, 5U));

}  // namespace
}  // namespace luo::kho
