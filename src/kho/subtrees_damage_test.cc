// Damaged names of subtrees: every bit, every truncation, and trees whose checksum is right although what they say
// is not. Each time an error that says what, or another possible tree that is safe to use.
#include <libfdt.h>

#include <algorithm>
#include <random>

#include "kho/device_tree.h"
#include "kho/image_checksum.h"
#include "kho/subtrees.h"
#include "kho/vmalloc_testing.h"

namespace luo::kho {
namespace {

using device_tree::Node;
using Tree = std::vector<std::byte>;

const std::vector<Node> kNodes{{"luo", 0x402000, 32, 0x403000}, {"kexec-metadata", 0x404000, 73, 0x405000}};

int code_of(const Tree& tree) {
  const auto nodes = device_tree::read(tree);
  return nodes ? 0 : nodes.error().code;
}

TEST(DeviceTree, SaysWhatWasWritten) {
  const Tree tree = device_tree::write(kNodes).value();
  EXPECT_EQ(device_tree::read(tree).value(), kNodes);
  EXPECT_EQ(device_tree::read(device_tree::write({}).value()).value(), std::vector<Node>{});
  // Any reader of device trees finds it so.
  const int node = ::fdt_path_offset(tree.data(), "/kexec-metadata");
  ASSERT_GT(node, 0);
  const void* size = ::fdt_getprop(tree.data(), node, "blob-size", nullptr);
  EXPECT_EQ(fdt64_ld(static_cast<const fdt64_t*>(size)), 73U);
  EXPECT_EQ(::fdt_node_check_compatible(tree.data(), 0, "luo,kho-v1"), 0);
}

TEST(DeviceTree, EveryTruncationAndEveryByteMoreIsAnError) {
  const Tree tree = device_tree::write(kNodes).value();
  for (std::size_t bytes = 0; bytes < tree.size(); ++bytes) {
    Tree cut{tree.begin(), tree.begin() + static_cast<std::ptrdiff_t>(bytes)};
    cut.shrink_to_fit();
    EXPECT_EQ(code_of(cut), EBADMSG) << bytes;
    if (bytes < sizeof(fdt_header)) continue;
    fdt_set_totalsize(cut.data(), static_cast<std::uint32_t>(bytes));
    EXPECT_EQ(code_of(cut), EBADMSG) << bytes << ", and it says so";
  }
  for (std::size_t more = 1; more < 20; ++more) {
    Tree longer = tree;
    longer.resize(tree.size() + more);
    EXPECT_EQ(code_of(longer), EBADMSG);
    fdt_set_totalsize(longer.data(), static_cast<std::uint32_t>(longer.size()));
    EXPECT_EQ(code_of(longer), EBADMSG);
  }
  EXPECT_EQ(code_of(Tree(1 << 20)), EBADMSG);
}

// Where a tree has no checksum: a changed bit is an error, or another name or number.
TEST(DeviceTree, EveryBitIsAnErrorOrAnotherTree) {
  Tree tree = device_tree::write(kNodes).value();
  unsigned others = 0;
  for (std::size_t bit = 0; bit < tree.size() * 8; ++bit) {
    tree[bit / 8] ^= std::byte{1} << (bit % 8);
    if (const auto nodes = device_tree::read(tree); nodes) {
      ++others;
      EXPECT_EQ(nodes->size(), 2U);
      EXPECT_NE(*nodes, kNodes) << bit;
      EXPECT_EQ(device_tree::write(*nodes).value(), tree);
    } else {
      EXPECT_EQ(nodes.error().code, EBADMSG);
    }
    tree[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_GE(others, 6U * 64);
  EXPECT_LE(others, 6U * 64 + 17 * 8) << "numbers and names only";
}

TEST(DeviceTree, AtRandomNothingButItsOwnFormIsRead) {
  const Tree tree = device_tree::write(kNodes).value();
  std::mt19937_64 random{3};
  for (unsigned round = 0; round < 100000; ++round) {
    Tree other = tree;
    for (std::uint64_t edits = 1 + random() % 6; edits > 0; --edits) {
      const std::size_t at = random() % other.size();
      const std::uint32_t words[] = {0, 1, 2, 3, 4, 9, 0x7fffffff, 0xffffffff, static_cast<std::uint32_t>(random())};
      const std::uint32_t word = __builtin_bswap32(words[random() % std::size(words)]);
      if (random() % 2 == 0)
        std::memcpy(&other[at / 4 * 4], &word, std::min<std::size_t>(4, other.size() - at / 4 * 4));
      else other[at] = static_cast<std::byte>(random());
    }
    const auto nodes = device_tree::read(other);
    ASSERT_TRUE(nodes ? device_tree::write(*nodes).value() == other : nodes.error().code == EBADMSG) << round;
  }
}

TEST(DeviceTree, OtherDeviceTreesAreRefused) {
  const auto make = [](auto&& fill, const char* compatible = "luo,kho-v1") {
    Tree tree(4096);
    void* const at = tree.data();
    EXPECT_EQ(::fdt_create(at, 4096), 0);
    EXPECT_EQ(::fdt_finish_reservemap(at), 0);
    EXPECT_EQ(::fdt_begin_node(at, ""), 0);
    EXPECT_EQ(::fdt_property(at, "compatible", compatible, static_cast<int>(std::strlen(compatible)) + 1), 0);
    fill(at);
    EXPECT_EQ(::fdt_end_node(at), 0);
    EXPECT_EQ(::fdt_finish(at), 0);
    tree.resize(fdt_totalsize(at));
    return tree;
  };
  const auto node = [](void* at, const char* name, const char* size = "blob-size") {
    EXPECT_EQ(::fdt_begin_node(at, name), 0);
    for (const char* property : {"preserved-data", size, "preserved-subtree"})
      EXPECT_EQ(::fdt_property_u64(at, property, 64), 0);
    EXPECT_EQ(::fdt_end_node(at), 0);
  };
  EXPECT_EQ(code_of(make([&](void* at) { node(at, "a"); })), 0);
  EXPECT_EQ(code_of(make([&](void* at) { node(at, "a"); }, "kho-v4")), EBADMSG);
  EXPECT_EQ(code_of(make([&](void* at) { node(at, "a"), node(at, "a"); })), EBADMSG) << "twice";
  EXPECT_EQ(code_of(make([&](void* at) { node(at, "a@1"); })), EBADMSG);
  EXPECT_EQ(code_of(make([&](void* at) { node(at, "a", "size"); })), EBADMSG);
  EXPECT_EQ(code_of(make([&](void* at) { (void)::fdt_property_u32(at, "more", 1), node(at, "a"); })), EBADMSG);
  EXPECT_EQ(code_of(make([&](void* at) {
              EXPECT_EQ(::fdt_begin_node(at, "a"), 0);
              node(at, "b");
              EXPECT_EQ(::fdt_end_node(at), 0);
            })),
            EBADMSG)
      << "deeper";
}

class DamagedSubtrees : public PreservedMemoryTest {
 protected:
  DamagedSubtrees() {
    in_tx([&](Tx& tx) {
      Subtrees all{*memory};
      ASSERT_TRUE(all.add(tx, "luo", Bytes{32}));
      const auto other = all.add(tx, "kexec-metadata", Bytes{73}).value();
      ASSERT_TRUE(memory->alloc_preserve(tx, other.subtree, Bytes{100}));
      ASSERT_TRUE(memory->make_subtree(tx));
      ASSERT_TRUE(memory->advance(tx));
    });
  }
  PreservedNames& names() { return arena.get(root)->names; }
  std::byte* tree() { return arena.get(Ref<std::byte>{names().at}); }
  void make_sum_right() { names().sum = image_checksum({tree(), names().bytes}); }

  /// What every caller does, in transactions that are taken back. Each may fail, with one of its own errors.
  void use() {
    Subtrees all{*memory};
    const auto allowed = [](const auto& result, std::initializer_list<int> codes) {
      if (!result) {
        EXPECT_NE(std::ranges::find(codes, result.error().code), codes.end()) << result.error().what;
      }
    };
    allowed(all.list(), {EINVAL});
    for (const std::string_view name : {"luo", "kexec-metadata"}) {
      allowed(all.retrieve(name), {EINVAL, ENOENT});
      Tx tx{arena};
      allowed(all.claim(tx, name, 1), {EINVAL, ENOENT, EALREADY, EBUSY});
      allowed(all.add(tx, name, Bytes{5}), {EINVAL, EEXIST});
      allowed(all.remove(tx, name), {EINVAL, ENOENT});
      allowed(memory->advance(tx), {EINVAL});
      allowed(memory->advance(tx), {EINVAL});
      allowed(memory->tidy(tx), {});
    }
    EXPECT_LE(all.device_tree().size(), device_tree::kMaxBytes);
  }
};

TEST_F(DamagedSubtrees, EveryBitOfTheTreeIsFound) {
  for (std::size_t bit = 0; bit < names().bytes * 8; ++bit) {
    tree()[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto sound = memory->check();
    ASSERT_FALSE(sound) << bit;
    EXPECT_EQ(sound.error().code, EBADMSG);
    const auto listed = Subtrees{*memory}.list();
    ASSERT_FALSE(listed);
    EXPECT_EQ(listed.error().code, EINVAL);
    if (bit % 64 == 0) use();
    tree()[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  expect_sound();
  EXPECT_EQ(Subtrees{*memory}.list()->size(), 2U);
}

TEST_F(DamagedSubtrees, EveryBitWithARightChecksumIsFoundOrAnotherName) {
  unsigned renamed = 0;
  for (std::size_t bit = 0; bit < names().bytes * 8; ++bit) {
    tree()[bit / 8] ^= std::byte{1} << (bit % 8);
    make_sum_right();
    const auto sound = memory->check();
    if (sound) ++renamed;
    EXPECT_TRUE(sound || sound.error().code == EBADMSG);
    use();
    tree()[bit / 8] ^= std::byte{1} << (bit % 8);
    make_sum_right();
    if (HasFailure()) FAIL() << "bit " << bit;
  }
  expect_sound();
  EXPECT_GT(renamed, 0U);
  EXPECT_LE(renamed, 17U * 8);
}

TEST_F(DamagedSubtrees, EveryLengthAndPlaceIsFound) {
  const PreservedNames whole = names();
  for (std::uint64_t bytes = 0; bytes <= whole.bytes + 64; ++bytes) {
    if (bytes == whole.bytes) continue;
    names().bytes = bytes;
    EXPECT_FALSE(memory->check()) << bytes;
    use();
    if (arena.is_allocated(PhysAddr{whole.at}, bytes)) make_sum_right();
    EXPECT_FALSE(memory->check()) << bytes;
    use();
    names() = whole;
  }
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{1}, whole.at + 16, whole.at - 1, root.at,
                                 ~std::uint64_t{0}, std::uint64_t{1} << 40}) {
    names().at = at;
    EXPECT_FALSE(memory->check()) << at;
    use();
    names() = whole;
  }
  names() = {};
  EXPECT_FALSE(memory->check()) << "subtrees whose name is lost";
  use();
  names() = whole;
  expect_sound();
}

TEST_F(DamagedSubtrees, EveryBitOfTheRecordsOfANameIsFoundOrHarmless) {
  const NamedSubtree luo = Subtrees{*memory}.retrieve("luo").value();
  const std::uint64_t item = arena.get(luo.subtree)->blob;
  struct Place {
    std::uint64_t at;
    std::size_t bytes;
  };
  for (const Place place : {Place{root.at, sizeof(PreservedRoot)}, Place{luo.subtree.at, sizeof(PreservedSubtree)},
                            Place{item, sizeof(PreservedItem)}})
    for (std::size_t bit = 0; bit < place.bytes * 8; ++bit) {
      unsigned char& byte = bytes(PhysAddr{place.at})[bit / 8];
      byte ^= static_cast<unsigned char>(1U << (bit % 8));
      const auto sound = memory->check();
      if (sound) use();
      EXPECT_TRUE(sound || sound.error().code == EBADMSG);
      byte ^= static_cast<unsigned char>(1U << (bit % 8));
      if (HasFailure()) FAIL() << place.at << " bit " << bit;
    }
  expect_sound();
}

TEST_F(DamagedSubtrees, TwoNamesForOneAreFound) {
  const NamedSubtree luo = Subtrees{*memory}.retrieve("luo").value();
  const auto store = [&](const std::vector<Node>& nodes) {
    const Tree made = device_tree::write(nodes).value();
    std::memcpy(tree(), made.data(), made.size());
    names().bytes = made.size();
    make_sum_right();
  };
  const auto first = device_tree::read({tree(), names().bytes}).value();
  auto nodes = first;
  nodes[1].data = nodes[0].data, nodes[1].size = nodes[0].size, nodes[1].subtree = nodes[0].subtree;
  store(nodes);
  EXPECT_FALSE(memory->check());
  use();
  nodes = first;
  nodes[1].data = nodes[0].data, nodes[1].size = nodes[0].size;  // somebody else's blob
  store(nodes);
  EXPECT_FALSE(memory->check());
  EXPECT_EQ(Subtrees{*memory}.retrieve("luo").error().code, EINVAL);
  use();
  store(first);
  expect_sound();
}

}  // namespace
}  // namespace luo::kho
