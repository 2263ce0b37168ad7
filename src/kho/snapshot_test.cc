// Looking at arenas and images: what a sound one shows, what an open transaction hides, and that damage of every
// kind is named or harmless.
#include "kho/snapshot.h"

#include <fcntl.h>

#include <random>

#include "kho/hugetlb_testing.h"
#include "kho/image.h"
#include "kho/image_testing.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"look", 1};

Arena make_arena() { return Arena::create({.name = "look", .layout = kLayout, .max_size = 4_MiB}).value(); }
Fd another(FdRef fd) { return Fd::adopt(::fcntl(fd.raw, F_DUPFD_CLOEXEC, 0)); }

std::string faults_of(const Snapshot& snapshot) {
  std::string text;
  for (const Error& fault : snapshot.faults()) text += to_string(fault) + "\n";
  return text;
}

void expect_shows(const Snapshot& snapshot, const Arena& arena) {
  EXPECT_EQ(faults_of(snapshot), "");
  EXPECT_EQ(snapshot.constants().layout, kLayout);
  EXPECT_EQ(snapshot.state().used_bytes, arena.stats().used_bytes);
  EXPECT_EQ(snapshot.state().blocks, arena.stats().blocks);
  std::uint64_t blocks = 0;
  const auto chunks = snapshot.chunks();
  for (std::uint32_t i = 0; i < chunks.size(); i += std::uint32_t{1} << chunks[i].order) {
    if (chunks[i].state == ChunkState::Small) blocks += chunks[i].used;
    if (chunks[i].state == ChunkState::Large) ++blocks;
    EXPECT_TRUE(chunks[i].state == ChunkState::Free || snapshot.has_memory(i)) << i;
  }
  EXPECT_EQ(blocks, arena.stats().blocks);
  const auto directory = snapshot.get(Ref<Directory>{snapshot.state().roots[0]});
  ASSERT_TRUE(directory) << to_string(directory.error());
  for (std::size_t i = 0; i < Directory::kItems; ++i) {
    if (!directory->items[i]) continue;
    std::vector<std::byte> block(directory->bytes[i]);
    EXPECT_GE(snapshot.block_bytes(directory->items[i].addr()), block.size());
    ASSERT_TRUE(snapshot.read(directory->items[i].addr(), block));
    for (std::size_t at = 0; at < block.size(); ++at)
      ASSERT_EQ(block[at], static_cast<std::byte>(at * 7 + i + 1)) << i << " " << at;
  }
}

TEST(Snapshot, ShowsAnArenaACopyOfItAndItsImages) {
  Arena arena = make_arena();
  fill_arena(arena, 200000);
  arena.control()[7] = std::byte{9};
  const Snapshot live = Snapshot::read(another(arena.fd())).value();
  EXPECT_EQ(live.kind(), Snapshot::Kind::Arena);
  EXPECT_EQ(live.open_transaction().bytes, 0U);
  EXPECT_FALSE(live.image());
  expect_shows(live, arena);
  expect_shows(Snapshot::read(file_of(content_of(arena.fd()))).value(), arena);  // without holes, not a memfd of ours

  for (const std::uint32_t format : {1U, 2U}) {
    const Snapshot image = Snapshot::read(seal(arena, "look", {.format = format, .control = true}).value()).value();
    EXPECT_EQ(image.kind(), Snapshot::Kind::Image);
    EXPECT_TRUE(image.sealed());
    ASSERT_TRUE(image.image());
    EXPECT_EQ(image.image()->format, format);
    EXPECT_EQ(image.segments().size(), image.image()->segments);
    ASSERT_TRUE(image.control());
    EXPECT_EQ((*image.control())[7], std::byte{9});
    expect_shows(image, arena);
  }
  EXPECT_FALSE(Snapshot::read(seal(arena, "look").value()).value().control());
}

TEST(Snapshot, ShowsArenasOfHugePages) {
  const HugetlbPool pool{20};
  for (const Pages pages : {Pages::Huge, Pages::Hugetlb}) {
    if (pages == Pages::Hugetlb && !pool.why().empty()) GTEST_SKIP() << pool.why();
    Arena arena = Arena::create({.name = "look", .layout = kLayout, .max_size = 4_MiB, .pages = pages}).value();
    fill_arena(arena, 200000);
    expect_shows(Snapshot::read(another(arena.fd())).value(), arena);
    const Snapshot image = Snapshot::read(seal(arena, "look").value()).value();
    EXPECT_EQ(image.constants().pages, pages);
    expect_shows(image, arena);
  }
}

TEST(Snapshot, ReadsNothingOutsideABlock) {
  Arena arena = make_arena();
  fill_arena(arena, 200000);
  const Snapshot snapshot = Snapshot::read(another(arena.fd())).value();
  std::byte byte{};
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{kLogAt}, arena.root(0).raw() - 1, ~std::uint64_t{0}}) {
    const auto read = snapshot.read(PhysAddr{at}, {&byte, 1});
    ASSERT_FALSE(read) << at;
    EXPECT_EQ(read.error().code, EBADMSG);
    EXPECT_EQ(snapshot.block_bytes(PhysAddr{at}), 0U);
  }
  std::vector<std::byte> more(snapshot.block_bytes(arena.root(0)) + 1);
  EXPECT_FALSE(snapshot.read(arena.root(0), more));
}

TEST(Snapshot, ShowsWhatWasCommittedWhenATransactionIsOpen) {
  std::mt19937_64 random{7};
  for (int round = 0; round < 30; ++round) {
    Arena arena = make_arena();
    fill_arena(arena, 200000);
    Tx tx{arena};
    const auto* directory = arena.get(Ref<Directory>{arena.root(0).raw()});
    for (int n = 0; n < 40; ++n) {  // overlapping writes of all sizes, so that the order of undoing shows
      const std::size_t item = random() % Directory::kItems;
      if (!directory->items[item]) continue;
      const std::size_t at = random() % directory->bytes[item];
      const std::size_t bytes = 1 + random() % std::min<std::size_t>(directory->bytes[item] - at, 300);
      std::byte* to = arena.get(directory->items[item]) + at;
      tx.save(to, bytes);
      std::memset(to, static_cast<int>(random()), bytes);
    }
    for (int n = 0; n < 10; ++n) std::memset(arena.get(Ref<std::byte>{tx.allocate(50000).value().raw()}), 1, 50000);
    tx.set_root(0, tx.allocate(10).value());
    const Snapshot snapshot = Snapshot::read(another(arena.fd())).value();
    EXPECT_GT(snapshot.open_transaction().entries, 20U);
    EXPECT_GT(snapshot.open_transaction().bytes, 0U);
    tx.abort();
    expect_shows(snapshot, arena);
  }
}

TEST(Snapshot, EveryBitAndEveryTruncationOfAnImageIsNamed) {
  Arena arena = make_arena();
  fill_arena(arena, 70000);
  for (const std::uint32_t format : {1U, 2U}) {
    const std::vector<std::byte> image = content_of(seal(arena, "look", {.format = format, .control = true}).value());
    ImageHeader header;
    std::memcpy(&header, image.data(), sizeof header);
    const Fd file = file_of(image);
    const auto sound = [&] {
      const auto snapshot = Snapshot::read(another(file));
      if (!snapshot) {
        EXPECT_FALSE(snapshot.error().what.empty());
        return false;
      }
      return snapshot->faults().empty();
    };
    ASSERT_TRUE(sound());
    // Of the data some: each read is a checksum of all of them.
    for (std::uint64_t at = 0; at < image.size(); at += at < header.data_at ? 1 : 997) {
      const auto damaged = static_cast<std::byte>(std::to_integer<unsigned>(image[at]) ^ 1U << at % 8);
      ASSERT_EQ(::pwrite(file.raw(), &damaged, 1, static_cast<off_t>(at)), 1);
      ASSERT_FALSE(sound()) << "format " << format << ", byte " << at;
      ASSERT_EQ(::pwrite(file.raw(), &image[at], 1, static_cast<off_t>(at)), 1);
    }
    ASSERT_TRUE(sound());
    for (std::uint64_t bytes = image.size() - 1; bytes > 0; bytes -= std::min(bytes, std::uint64_t{61})) {
      ASSERT_EQ(::ftruncate(file.raw(), static_cast<off_t>(bytes)), 0);
      ASSERT_FALSE(sound()) << "format " << format << ", " << bytes << " bytes";
    }
  }
}

TEST(Snapshot, DamageOfOnePartLeavesTheOthersToBeSeen) {
  Arena arena = make_arena();
  fill_arena(arena, 200000);
  const std::vector<std::byte> image = content_of(seal(arena, "look").value());
  ImageHeader header;
  std::memcpy(&header, image.data(), sizeof header);
  std::vector<std::byte> damaged = image;
  damaged.back() ^= std::byte{1};
  const Snapshot data = Snapshot::read(file_of(damaged)).value();
  ASSERT_EQ(data.faults().size(), 1U);
  EXPECT_NE(data.faults()[0].what.find("segment"), std::string::npos) << data.faults()[0].what;
  EXPECT_TRUE(data.get(Ref<Directory>{data.state().roots[0]})) << "the other segments";

  damaged = image;
  damaged[header.segments_at] ^= std::byte{1};
  const Snapshot table = Snapshot::read(file_of(damaged)).value();
  ASSERT_EQ(table.faults().size(), 1U);
  EXPECT_FALSE(table.chunks().empty());
  EXPECT_FALSE(table.get(Ref<Directory>{table.state().roots[0]})) << "nobody knows where the data are";

  damaged = image;
  damaged[header.table_at] ^= std::byte{1};
  const Snapshot chunks = Snapshot::read(file_of(damaged)).value();
  EXPECT_FALSE(chunks.faults().empty());
  EXPECT_TRUE(chunks.chunks().empty());
  EXPECT_EQ(chunks.state().blocks, arena.stats().blocks) << "the header's own checksum is right";
}

TEST(Snapshot, ADamagedArenaIsNamedOrHarmless) {
  Arena arena = make_arena();
  fill_arena(arena, 200000);
  Tx tx{arena};  // so that there is a log
  tx.set_root(5, tx.allocate(100).value());
  const std::vector<std::byte> whole = content_of(arena.fd());
  tx.abort();
  const Geometry geometry = geometry_of(std::uint64_t{4} << 20);
  const Fd file = file_of(whole);
  std::mt19937_64 random{11};
  const auto look = [&](std::uint64_t at, std::uint64_t bytes) {
    const std::uint64_t place = at + random() % bytes;
    const auto damaged = static_cast<std::byte>(random());
    ASSERT_EQ(::pwrite(file.raw(), &damaged, 1, static_cast<off_t>(place)), 1);
    if (const auto snapshot = Snapshot::read(another(file)); snapshot) {
      std::vector<std::byte> block;
      for (const std::uint64_t root : snapshot->state().roots) {
        block.resize(std::min<std::size_t>(snapshot->block_bytes(PhysAddr{root}), 1 << 20));
        EXPECT_TRUE(block.empty() || snapshot->read(PhysAddr{root}, block));
      }
    } else {
      EXPECT_FALSE(snapshot.error().what.empty());
    }
    ASSERT_EQ(::pwrite(file.raw(), &whole[place], 1, static_cast<off_t>(place)), 1);
  };
  for (int n = 0; n < 400; ++n) {
    look(0, sizeof(Header));
    look(kLogAt, 400);
    look(geometry.backed_at, 8);
    look(geometry.table_at, 64 * sizeof(Chunk));
    look(geometry.bitmap_at, 64 * kBitmapBytes);
  }
}

TEST(Snapshot, TellsWhatIsNeither) {
  const std::vector<std::byte> text(5000, std::byte{'a'});
  const auto other = Snapshot::read(file_of(text));
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().what.find("neither"), std::string::npos) << other.error().what;
  EXPECT_EQ(Snapshot::read(file_of({})).error().code, EBADMSG);
  EXPECT_EQ(Snapshot::read(file_of(std::vector<std::byte>(3))).error().code, EBADMSG);
  EXPECT_EQ(Snapshot::read(Fd::adopt(::open("/", O_RDONLY | O_CLOEXEC))).error().code, EINVAL);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd write_end = Fd::adopt(ends[1]);
  EXPECT_EQ(Snapshot::read(Fd::adopt(ends[0])).error().code, EINVAL);
}

}  // namespace
}  // namespace luo::kho
