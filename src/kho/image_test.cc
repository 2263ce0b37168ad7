// Images of arenas: what is in them, that they come back as they were, and what is refused.
#include "kho/image.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <random>

#include "kho/format.h"
#include "kho/image_format.h"
#include "kho/image_testing.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"image", 1};

Arena make_arena(Bytes size = 64_MiB) {
  return Arena::create({.name = "image-test", .layout = kLayout, .max_size = size}).value();
}

std::vector<std::byte> metadata_of(const Arena& arena) {
  const std::byte* base = arena.control().data() - Arena::kControlOffset;
  return {base, base + reinterpret_cast<const Header*>(base)->constants.geometry.heap_at};
}

TEST(Image, ComesBackAsItWas) {
  Arena arena = make_arena();
  fill_arena(arena);
  const std::vector<std::byte> before = metadata_of(arena);
  const Fd image = seal(arena, "sealed").value();
  EXPECT_EQ(metadata_of(arena), before);
  expect_filled(arena);

  Arena again = populate(image, kLayout, "again").value();
  expect_filled(again);
  EXPECT_EQ(again.stats().used_bytes, arena.stats().used_bytes);
  EXPECT_EQ(again.stats().blocks, arena.stats().blocks);
  EXPECT_EQ(again.stats().max_bytes, arena.stats().max_bytes);

  // And it is a live one: what is done with it is done as in the first one.
  const auto work = [](Arena& in) {
    Tx tx{in};
    std::vector<PhysAddr> got;
    for (const std::size_t bytes : {16U, 100U, 30000U, 40000U, 200000U, 9000000U, 20000000U})
      got.push_back(tx.allocate(bytes).value());
    for (const PhysAddr at : got) std::memset(in.get(Ref<std::byte>{at.raw()}), 1, in.usable_size(at));
    tx.release(in.root(3));
    tx.commit();
    EXPECT_TRUE(in.check());
    return got;
  };
  EXPECT_EQ(work(again), work(arena));
}

TEST(Image, OfAnEmptyArena) {
  Arena arena = make_arena(1_MiB);
  const Fd image = seal(arena, "empty").value();
  EXPECT_EQ(content_of(image).size(), kPageBytes);
  Arena again = populate(image, kLayout, "again").value();
  EXPECT_EQ(again.stats().blocks, 0U);
  Tx tx{again};
  EXPECT_TRUE(tx.allocate(100));
}

TEST(Image, IsSealed) {
  const Arena arena = make_arena(1_MiB);
  const Fd image = seal(arena, "sealed").value();
  EXPECT_EQ(::fcntl(image.raw(), F_GET_SEALS), F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_EQ(::pwrite(image.raw(), "x", 1, 0), -1);
  EXPECT_TRUE(inspect_image(image)->sealed);
  EXPECT_FALSE(inspect_image(file_of(content_of(image)))->sealed);
  const auto refused = write_image(arena, image);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EPERM);
}

TEST(Image, HasOnlyWhatIsInUse) {
  Arena arena = make_arena();
  fill_arena(arena);
  const ImageInfo info = inspect_image(seal(arena, "sealed").value()).value();
  // 9 MB and more were freed again. Left are 30000, 70000 (two chunks) and small blocks, in whole pages.
  EXPECT_LT(info.data_bytes.raw(), 2 * 65536 + 32768 + 12 * kPageBytes);
  EXPECT_EQ(info.data_bytes.raw() % kPageBytes, 0U);
  EXPECT_GE(info.data_bytes.raw(), info.used_bytes);
  EXPECT_EQ(info.blocks, arena.stats().blocks);
  EXPECT_EQ(info.roots[3], arena.root(3));
  EXPECT_EQ(info.max_size, 64_MiB);
}

TEST(Image, HasNothingOfFreedBlocks) {
  Arena arena = make_arena();
  const std::string secret = "this was given back";
  {
    Tx tx{arena};
    tx.set_root(0, tx.allocate(32).value());
    tx.set_root(1, tx.allocate(32).value());
    std::memcpy(arena.get(Ref<char>{arena.root(1).raw()}), secret.data(), secret.size());
    tx.commit();
  }
  const auto has_secret = [&] {
    const std::vector<std::byte> image = content_of(seal(arena, "sealed").value());
    return ::memmem(image.data(), image.size(), secret.data(), secret.size()) != nullptr;
  };
  EXPECT_TRUE(has_secret());
  Tx tx{arena};
  tx.release(arena.root(1));
  tx.set_root(1, PhysAddr{});
  tx.commit();
  EXPECT_FALSE(has_secret());
}

TEST(Image, OfEqualHeapsIsEqual) {
  Arena arena = make_arena();
  fill_arena(arena);
  const std::vector<std::byte> first = content_of(seal(arena, "first").value());
  EXPECT_EQ(content_of(seal(arena, "second").value()), first);
  const Arena again = populate(file_of(first), kLayout, "again").value();
  EXPECT_EQ(content_of(seal(again, "third").value()), first);
}

TEST(Image, HasTheControlPageOnlyIfAsked) {
  Arena arena = make_arena(1_MiB);
  std::memset(arena.control().data(), 0x5a, Arena::kControlBytes);
  const Fd without = seal(arena, "without").value();
  const Fd with = seal(arena, "with", {.control = true}).value();
  EXPECT_FALSE(inspect_image(without)->control);
  EXPECT_TRUE(inspect_image(with)->control);
  const auto all = [](const Arena& of, int value) {
    for (const std::byte b : of.control())
      if (b != static_cast<std::byte>(value)) return false;
    return true;
  };
  EXPECT_TRUE(all(populate(without, kLayout, "a").value(), 0));
  EXPECT_TRUE(all(populate(with, kLayout, "b").value(), 0x5a));
}

TEST(Image, IsRefusedInsideATransaction) {
  Arena arena = make_arena(1_MiB);
  Fd file = file_of({});
  {
    Tx tx{arena};
    EXPECT_TRUE(write_image(arena, file));  // nothing has been written yet
    tx.set_root(0, tx.allocate(100).value());
    const auto refused = seal(arena, "x");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, EBUSY);
    EXPECT_EQ(refused.error().what, "seal arena: a transaction is open");
    EXPECT_EQ(write_image(arena, file).error().code, EBUSY);
  }
  EXPECT_TRUE(seal(arena, "x"));
}

TEST(Image, FromVersion1To2AndBack) {
  Arena arena = make_arena();
  fill_arena(arena);
  const Fd old = seal(arena, "old", {.format = 1, .control = true}).value();
  EXPECT_EQ(inspect_image(old)->format, 1U);
  const Arena after_1 = populate(old, kLayout, "a").value();
  expect_filled(after_1);
  const Fd current = seal(after_1, "current", {.control = true}).value();
  EXPECT_EQ(inspect_image(current)->format, 2U);
  const Arena after_2 = populate(current, kLayout, "b").value();
  expect_filled(after_2);
  const Fd old_again = seal(after_2, "old again", {.format = 1, .control = true}).value();
  EXPECT_EQ(content_of(old_again), content_of(old));
  EXPECT_EQ(seal(arena, "x", {.format = 0}).error().code, EINVAL);
  EXPECT_EQ(seal(arena, "x", {.format = 3}).error().code, EINVAL);
}

TEST(Image, ReplacesAFilesContentAndNeedsAFile) {
  Arena arena = make_arena(1_MiB);
  const Fd file = file_of(std::vector<std::byte>(1 << 20, std::byte{1}));
  const std::uint64_t bytes = write_image(arena, file).value();
  EXPECT_EQ(content_of(file).size(), bytes);
  EXPECT_TRUE(populate(file, kLayout, "again"));
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd reader = Fd::adopt(ends[0]), writer = Fd::adopt(ends[1]);
  EXPECT_EQ(write_image(arena, writer).error().code, EINVAL);
  EXPECT_EQ(populate(reader, kLayout, "x").error().code, EINVAL);
  EXPECT_EQ(inspect_image(reader).error().code, EINVAL);
}

TEST(Image, RefusesAnotherLayoutAndNamesBoth) {
  const Arena arena = make_arena(1_MiB);
  const auto refused = populate(seal(arena, "x").value(), {"luod", 3}, "again");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EPROTO);
  EXPECT_EQ(refused.error().what, "populate arena: image header: it holds image version 1, expected is luod version 3");
}

TEST(Image, ManyBlocksAtRandom) {
  std::mt19937_64 random{7};
  for (int round = 0; round < 6; ++round) {
    Arena arena = make_arena(256_MiB);
    std::map<std::uint64_t, std::pair<std::size_t, std::byte>> model;
    for (int step = 0; step < 1500; ++step) {
      Tx tx{arena};
      if (model.size() > 50 && random() % 3 == 0) {
        const auto victim = std::next(model.begin(), static_cast<std::ptrdiff_t>(random() % model.size()));
        tx.release(PhysAddr{victim->first});
        model.erase(victim);
      } else {
        const std::size_t bytes =
            random() % 50 == 0 ? random() % 6'000'000 + 1 : random() % (round < 3 ? 300 : 20000) + 1;
        const PhysAddr at = tx.allocate(bytes).value();
        const auto value = static_cast<std::byte>(random());
        std::memset(arena.get(Ref<std::byte>{at.raw()}), static_cast<int>(value), bytes);
        model[at.raw()] = {bytes, value};
      }
      tx.commit();
    }
    const std::uint32_t format = round % 2 == 0 ? 2 : 1;
    Arena again = populate(seal(arena, "x", {.format = format}).value(), kLayout, "again").value();
    ASSERT_TRUE(again.check());
    EXPECT_EQ(again.stats().blocks, model.size());
    for (const auto& [at, what] : model) {
      const std::byte* block = again.checked(Ref<std::byte>{at}, what.first);
      ASSERT_NE(block, nullptr);
      for (std::size_t i = 0; i<what.first; i += what.first> 300 ? 997 : 1) ASSERT_EQ(block[i], what.second);
    }
    for (const auto& [at, what] : model) {
      Tx tx{again};
      tx.release(PhysAddr{at});
      tx.commit();
    }
    EXPECT_EQ(again.stats().used_bytes, 0U);
    EXPECT_TRUE(again.check());
  }
}

}  // namespace
}  // namespace luo::kho
