// SIGKILL at every system call while an image is written and while one is read, and at every instruction where
// memory that lasts is mapped. The arena that is written is never touched; what is written is a whole image or
// none; what is read stays as it is. What a dead reader had built is a memfd that only it had, so it is gone with it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>

#include "kho/image.h"
#include "kho/image_checksum.h"
#include "support/kill_harness.h"

namespace luo::kho {
namespace {

using test::KillCase;

constexpr Layout kLayout{"crash", 1};

/// Every byte that is not 0. (Where memory lies does not count: what was given, but never looked at, is a hole for
/// lseek.)
Result<std::uint64_t> sum_of(FdRef file) {
  ImageChecksum sum;
  const auto add = [&](const auto& value) { sum.add(std::as_bytes(std::span{&value, 1})); };
  std::array<std::byte, 4096> page{};
  const std::array<std::byte, 4096> nothing{};
  for (off_t at = 0; (at = ::lseek(file.raw, at, SEEK_DATA)) >= 0; at += 4096) {
    if (::pread(file.raw, page.data(), page.size(), at) <= 0) return sys_fail("pread");
    if (page == nothing) continue;
    add(at);
    add(page);
  }
  return sum.value();
}

/// Also how large it is, and how much memory there is.
Result<std::string> all_of(FdRef file) {
  struct stat st {};
  if (::fstat(file.raw, &st) != 0) return sys_fail("fstat");
  return fmt::format("{:#x}, {} bytes, {} blocks of memory", LUO_TRY(sum_of(file)), st.st_size, st.st_blocks);
}

Result<Fd> another(FdRef fd) {
  Fd copy = Fd::adopt(::fcntl(fd.raw, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return sys_fail("fcntl(F_DUPFD_CLOEXEC)");
  return copy;
}

class ImageCrash : public ::testing::Test {
 protected:
  void make_arena(int value, unsigned blocks = 4, Bytes size = 4_MiB) {
    arena.emplace(Arena::create({.name = "crash", .layout = kLayout, .max_size = size}).value());
    Tx tx{*arena};
    for (unsigned slot = 0; slot < blocks; ++slot) {
      constexpr std::size_t kBytes[] = {100, 3000, 70000, 300000};
      tx.set_root(slot, tx.allocate(kBytes[slot]).value());
      std::memset(arena->get(Ref<std::byte>{arena->root(slot).raw()}), value, kBytes[slot]);
    }
    tx.commit();
  }
  /// What the image in a file holds; "no image" if populate() refuses it.
  static std::string holds(FdRef file) {
    const auto populated = populate(file, kLayout, "populated");
    if (!populated) return populated.error().code == EBADMSG ? "no image" : to_string(populated.error());
    if (const auto sound = populated->check(); !sound) return to_string(sound.error());
    const auto* last = populated->checked(Ref<std::byte>{populated->root(3).raw()}, 300000);
    if (last == nullptr) return "root 3 leads nowhere";
    for (std::size_t i = 1; i < 300000; ++i)
      if (last[i] != last[0]) return "a mixture";
    return fmt::format("an image of {}", static_cast<int>(last[0]));
  }
  static void expect_right(const KillCase& c, unsigned long at_least) {
    const auto calls = test::kill_at_every_syscall(c);
    ASSERT_TRUE(calls) << to_string(calls.error());
    EXPECT_GT(calls->points, at_least);
    std::cout << calls->points << " system call stops\n";
  }

  std::optional<Arena> arena;
  Fd file;
};

TEST_F(ImageCrash, SealingTouchesNothingOfTheArena) {
  const KillCase c{.set_up = [&]() -> Result<Fd> {
                     make_arena(7);
                     return another(arena->fd());
                   },
                   .operate =
                       [&] {
                         if (!seal(*arena, "sealed", {.control = true})) ::_exit(1);
                       },
                   .recover = [&](Fd memfd) -> Result<std::string> {
                     const std::string all = LUO_TRY(all_of(memfd));
                     const Arena left = LUO_TRY(Arena::open(std::move(memfd), kLayout));
                     LUO_TRY(left.check());
                     return fmt::format("{}, {} blocks", all, left.stats().blocks);
                   },
                   .also_right = {}};
  expect_right(c, 20);
}

/// The one of these that works in a shared mapping: all others change what lasts by system calls only.
TEST_F(ImageCrash, SealingWritesNothingBetweenSystemCallsEither) {
  if (!test::kStepsInstructions) GTEST_SKIP() << "too many instructions under a sanitizer";
  const KillCase c{.set_up = [&]() -> Result<Fd> {
                     make_arena(7, 1, 1_MiB);
                     return another(arena->fd());
                   },
                   .operate =
                       [&] {
                         if (!seal(*arena, "sealed")) ::_exit(1);
                       },
                   .recover = [&](Fd memfd) -> Result<std::string> {
                     const std::uint64_t sum = LUO_TRY(sum_of(memfd));
                     const Arena left = LUO_TRY(Arena::open(std::move(memfd), kLayout));
                     LUO_TRY(left.check());
                     return fmt::format("{:#x}, {} blocks", sum, left.stats().blocks);
                   },
                   .also_right = {}};
  const auto steps = test::kill_at_every_instruction(c, 0);  // really killed is it in the test before
  ASSERT_TRUE(steps) << to_string(steps.error());
  EXPECT_GT(steps->points, 1000U);
  std::cout << steps->points << " instructions\n";
}

TEST_F(ImageCrash, AnUnfinishedImageIsNone) {
  const KillCase c{.set_up = [&]() -> Result<Fd> {
                     make_arena(7);
                     file = Fd::adopt(::memfd_create("image", MFD_CLOEXEC));
                     return another(file);
                   },
                   .operate =
                       [&] {
                         if (!write_image(*arena, file)) ::_exit(1);
                       },
                   .recover = [&](Fd image) -> Result<std::string> { return holds(image); },
                   .also_right = {}};
  expect_right(c, 15);
}

TEST_F(ImageCrash, AnImageInPlaceOfAnother) {
  const KillCase c{.set_up = [&]() -> Result<Fd> {
                     file = Fd::adopt(::memfd_create("image", MFD_CLOEXEC));
                     make_arena(3);
                     LUO_TRY(write_image(*arena, file, {.format = 1}));
                     make_arena(7);
                     return another(file);
                   },
                   .operate =
                       [&] {
                         if (!write_image(*arena, file)) ::_exit(1);
                       },
                   .recover = [&](Fd image) -> Result<std::string> { return holds(image); },
                   .also_right = [](const std::string& state) { return state == "no image"; }};
  expect_right(c, 15);
}

TEST_F(ImageCrash, PopulatingTouchesNothingOfTheImage) {
  const KillCase c{.set_up = [&]() -> Result<Fd> {
                     make_arena(7);
                     file = LUO_TRY(seal(*arena, "sealed"));
                     return another(file);
                   },
                   .operate =
                       [&] {
                         if (!populate(file, kLayout, "populated")) ::_exit(1);
                       },
                   .recover = [&](Fd image) -> Result<std::string> {
                     const std::string all = LUO_TRY(all_of(image));
                     return fmt::format("{}, {}", all, holds(image));
                   },
                   .also_right = {}};
  expect_right(c, 30);
}

}  // namespace
}  // namespace luo::kho
