// What a damaged file does: every bit of what open() reads, every kind of truncation, foreign layouts. Each
// time the answer is an error that says where, and nothing was written; or it did no harm.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kho/arena.h"
#include "kho/format.h"
#include "kho/hugetlb_testing.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"damage", 1};
constexpr std::size_t kItems = 12;

struct Directory {
  Ref<std::byte> items[kItems];
};

void fill(Arena& arena) {
  constexpr std::size_t kSizes[kItems] = {16, 16, 100, 3000, 30000, 30000, 65536, 200000, 16, 9000, 70000, 500};
  Tx tx{arena};
  const auto directory = tx.make<Directory>().value();
  tx.set_root(0, directory.addr());
  for (std::size_t i = 0; i < kItems; ++i)
    arena.get(directory)->items[i] = Ref<std::byte>{tx.allocate(kSizes[i]).value().raw()};
  tx.commit();
  Tx again{arena};  // leaves free blocks of several orders and classes
  for (const std::size_t i : {1U, 5U, 6U, 9U}) {
    again.release(arena.get(directory)->items[i]);
    again.set(arena.get(directory)->items[i], Ref<std::byte>{});
  }
  again.commit();
}

struct Kind {
  bool open_transaction;
  Pages pages;
};

/// An arena of 2 MiB with a bit of everything, in a file that we may write as we like.
class DamagedArena : public ::testing::TestWithParam<Kind> {
 protected:
  static bool in_transaction() { return GetParam().open_transaction; }
  void SetUp() override {
    if (GetParam().pages == Pages::Hugetlb) {
      pool_.emplace(4);  // all of it for the arena: what else it touched would be a SIGBUS
      if (!pool_->why().empty()) GTEST_SKIP() << pool_->why();
    }
    Arena arena =
        Arena::create({.name = "damage", .layout = kLayout, .max_size = 2_MiB, .pages = GetParam().pages}).value();
    fill(arena);
    if (in_transaction()) {  // leave a transaction open, by dying in it
      const pid_t pid = ::fork();
      if (pid == 0) {
        Tx tx{arena};
        const Ref<Directory> directory{arena.root(0).raw()};
        tx.release(arena.get(directory)->items[2]);
        tx.set(arena.get(directory)->items[2], Ref<std::byte>{tx.allocate(5000).value().raw()});
        tx.set(arena.get(directory)->items[1], Ref<std::byte>{tx.allocate(100000).value().raw()});
        tx.set_root(1, arena.root(0));
        ::_exit(0);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(pid, &status, 0), pid);
      ASSERT_EQ(status, 0);
    }
    geometry_ = geometry_of(arena.stats().max_bytes, GetParam().pages);
    file_ = arena.release();
    Mapping original{file_, geometry_.file_bytes};
    for (std::uint64_t at = 0; at < geometry_.file_bytes; at += kPageBytes) {
      // Pages with nothing in them stay away, so that a comparison is quick.
      if (std::ranges::all_of(std::span{original.at + at, kPageBytes}, [](std::byte b) { return b == std::byte{}; }))
        continue;
      pages_.push_back({at, {original.at + at, original.at + at + kPageBytes}});
    }
  }

  struct Mapping {
    Mapping(const Fd& fd, std::uint64_t n)
        : at{static_cast<std::byte*>(
              ::mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.raw(), 0))},
          bytes{n} {}
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() { ::munmap(at, bytes); }
    std::byte* at;
    std::uint64_t bytes;
  };
  struct Page {
    std::uint64_t at;
    std::vector<std::byte> bytes;
  };

  void restore(std::byte* at) const {
    for (const Page& page : pages_) std::memcpy(at + page.at, page.bytes.data(), kPageBytes);
  }
  Fd duplicate() const { return Fd::adopt(::fcntl(file_.raw(), F_DUPFD_CLOEXEC, 0)); }

  /// Opens it, and if that works goes through everything that it leads to. True: refused.
  bool refused_or_harmless(std::byte* at, const std::string& where) {
    auto opened = Arena::open(duplicate(), kLayout);
    if (!opened) {
      EXPECT_TRUE(opened.error().code == EBADMSG || opened.error().code == EPROTO)
          << where << to_string(opened.error());
      EXPECT_GT(opened.error().what.size(), std::strlen("open arena: ")) << where;
      for (const Page& page : pages_) {
        if (page.at == flipped_page_) continue;
        EXPECT_EQ(std::memcmp(at + page.at, page.bytes.data(), kPageBytes), 0) << where;
      }
      return true;
    }
    const auto sound = opened->check();
    if (!sound) {
      EXPECT_EQ(sound.error().code, EBADMSG) << where;
      return true;
    }
    const Directory* directory = opened->checked(Ref<Directory>{opened->root(0).raw()});
    if (directory != nullptr) {
      for (const auto item : directory->items) EXPECT_TRUE(!item || opened->checked(item, 16) != nullptr) << where;
    }
    // It passed all checks, so it must work.
    Tx tx{*opened};
    for (const std::size_t bytes : {std::size_t{16}, std::size_t{5000}, std::size_t{30000}, std::size_t{130000}})
      if (const auto block = tx.allocate(bytes)) tx.release(*block);
    tx.abort();
    return false;
  }

  /// Flips each bit of [from, from + n). Returns how many were refused.
  std::size_t flip_all(std::uint64_t from, std::uint64_t n) {
    Mapping map{file_, geometry_.file_bytes};
    std::size_t refused = 0;
    flipped_page_ = from / kPageBytes * kPageBytes;
    for (std::uint64_t bit = 0; bit < n * 8; ++bit) {
      flipped_page_ = (from + bit / 8) / kPageBytes * kPageBytes;
      map.at[from + bit / 8] ^= std::byte{1} << (bit % 8);
      refused += refused_or_harmless(map.at, fmt::format("bit {} of byte {}: ", bit % 8, from + bit / 8)) ? 1 : 0;
      restore(map.at);
      if (HasFailure()) break;
    }
    return refused;
  }

  std::optional<HugetlbPool> pool_;
  Fd file_;
  Geometry geometry_{};
  std::vector<Page> pages_;
  std::uint64_t flipped_page_ = 0;
};

TEST_P(DamagedArena, EveryBitOfTheConstantsIsNoticed) {
  EXPECT_EQ(flip_all(0, sizeof(HeaderConstants)), sizeof(HeaderConstants) * 8);
}

TEST_P(DamagedArena, EveryBitOfTheHeadersStateIsNoticedOrHarmless) {
  // Roots may be changed to another address inside the same block; all else is noticed.
  const std::size_t refused = flip_all(offsetof(Header, state), sizeof(HeaderState));
  if (in_transaction()) {
    EXPECT_GT(refused, 0U);  // much of it is put right by the rollback
  } else {
    EXPECT_GE(refused, (sizeof(HeaderState) - sizeof(HeaderState::roots)) * 8);
  }
}

TEST_P(DamagedArena, TheRestOfTheHeaderPageIsNotRead) {
  EXPECT_EQ(flip_all(sizeof(Header), 256), 0U);
  EXPECT_EQ(flip_all(kPageBytes - 64, 64), 0U);
}

TEST_P(DamagedArena, EveryBitOfTheChunkTableIsNoticed) {
  const std::uint64_t used = geometry_.chunks * sizeof(Chunk);
  const std::size_t refused = flip_all(geometry_.table_at, used);
  if (in_transaction()) {
    EXPECT_GT(refused, used * 4);
  } else {
    EXPECT_EQ(refused, used * 8);
  }
}

TEST_P(DamagedArena, EveryBitOfTheBitmapsIsNoticed) {
  // One word of each kind: with blocks in use, without, past the chunk's last block.
  for (std::uint64_t chunk = 0; chunk < geometry_.chunks; ++chunk)
    for (const std::uint64_t word : {0U, 1U, 63U}) {
      const std::size_t refused = flip_all(geometry_.bitmap_at + chunk * kBitmapBytes + word * 8, 8);
      // A rollback writes whole words, and so puts those right that the transaction had changed.
      EXPECT_TRUE(refused == 64 || (in_transaction() && refused == 0))
          << refused << " in chunk " << chunk << " word " << word;
    }
}

TEST_P(DamagedArena, EveryBitOfTheUndoLogIsNoticedOrNotRead) {
  std::uint64_t tail = 0;
  ASSERT_EQ(::pread(file_.raw(), &tail, sizeof tail, static_cast<off_t>(kLogAt + offsetof(LogHeader, tail))), 8);
  tail = tail_of(tail);
  ASSERT_EQ(tail != 0, in_transaction());
  EXPECT_EQ(flip_all(kLogAt, sizeof(LogHeader)), sizeof(LogHeader) * 8);
  EXPECT_EQ(flip_all(kLogAt + sizeof(LogHeader), tail), tail * 8);
  EXPECT_EQ(flip_all(kLogAt + sizeof(LogHeader) + tail, 64), 0U);
}

TEST_P(DamagedArena, EveryTruncationIsRefused) {
  Fd cut = Fd::adopt(::memfd_create("cut", MFD_CLOEXEC));
  const auto put = [&] {
    ASSERT_EQ(::ftruncate(cut.raw(), static_cast<off_t>(geometry_.file_bytes)), 0);
    for (const Page& page : pages_)
      ASSERT_EQ(::pwrite(cut.raw(), page.bytes.data(), kPageBytes, static_cast<off_t>(page.at)),
                static_cast<ssize_t>(kPageBytes));
  };
  std::vector<std::uint64_t> lengths;
  for (std::uint64_t n = 0; n < 600; ++n) lengths.push_back(n);
  for (std::uint64_t n = 600; n < geometry_.file_bytes; n += 4096 * 7 + 8) lengths.push_back(n);
  for (const std::uint64_t section :
       {kLogAt, geometry_.backed_at, geometry_.table_at, geometry_.bitmap_at, geometry_.heap_at, geometry_.file_bytes})
    lengths.insert(lengths.end(), {section - 1, section == geometry_.file_bytes ? section - 2 : section + 1});
  for (const std::uint64_t length : lengths) {
    put();
    ASSERT_EQ(::ftruncate(cut.raw(), static_cast<off_t>(length)), 0);
    const auto opened = Arena::open(Fd::adopt(::fcntl(cut.raw(), F_DUPFD_CLOEXEC, 0)), kLayout);
    ASSERT_FALSE(opened) << length;
    EXPECT_EQ(opened.error().code, EBADMSG) << length << ": " << to_string(opened.error());
    EXPECT_FALSE(Arena::inspect(cut)) << length;
    // And cut off inside, the size put back: what is missing reads as zeros.
    ASSERT_EQ(::ftruncate(cut.raw(), static_cast<off_t>(geometry_.file_bytes)), 0);
    auto holed = Arena::open(Fd::adopt(::fcntl(cut.raw(), F_DUPFD_CLOEXEC, 0)), kLayout);
    if (holed) {
      EXPECT_GE(length, geometry_.bitmap_at) << length;
      EXPECT_TRUE(holed->check() || length < geometry_.heap_at) << length;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OpenTransaction, DamagedArena,
                         ::testing::Values(Kind{false, Pages::Normal}, Kind{true, Pages::Normal},
                                           Kind{false, Pages::Hugetlb}, Kind{true, Pages::Hugetlb}),
                         [](const auto& test) {
                           return std::string{test.param.open_transaction ? "Open" : "None"} +
                                  (test.param.pages == Pages::Hugetlb ? "Hugetlb" : "");
                         });

TEST(ArenaOpen, RefusesAnotherLayoutAndNamesBoth) {
  Arena arena = Arena::create({.name = "x", .layout = {"luod", 3}, .max_size = 1_MiB}).value();
  const auto opened = Arena::open(arena.release(), Layout{"luo-cache", 1});
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, EPROTO);
  EXPECT_EQ(opened.error().what, "open arena: it holds luod version 3, expected is luo-cache version 1");
}

TEST(ArenaOpen, RefusesWhatIsNoMemfd) {
  Fd pipe = Fd::adopt(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(Arena::inspect(pipe).error().code, EINVAL);
  EXPECT_EQ(Arena::open(std::move(pipe), kLayout).error().code, EINVAL);
  EXPECT_EQ(Arena::open(Fd::adopt(::memfd_create("empty", MFD_CLOEXEC)), kLayout).error().code, EBADMSG);
}

TEST(ArenaOpen, TellsAnotherFormatFromDamage) {
  Arena arena = Arena::create({.name = "x", .layout = kLayout, .max_size = 1_MiB}).value();
  Fd fd = arena.release();
  const std::uint32_t format = 7;
  ASSERT_EQ(::pwrite(fd.raw(), &format, sizeof format, offsetof(HeaderConstants, format)), 4);
  const auto opened = Arena::open(std::move(fd), kLayout);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, EPROTO);
  EXPECT_EQ(opened.error().what, "open arena: header: format 7, this program reads format 1");
}

}  // namespace
}  // namespace luo::kho
