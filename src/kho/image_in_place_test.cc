// Images written into a file whose size is given: room that somebody else has already taken into account.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include "kho/image_testing.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"image", 1};
constexpr std::byte kOld{0xa5};

class ImageInPlace : public testing::TestWithParam<std::uint32_t> {
 protected:
  ImageInPlace() { fill_arena(arena); }
  ImageOptions options() const { return {.format = GetParam(), .in_place = true}; }
  std::vector<std::byte> alone() {
    const Fd file = file_of({});
    EXPECT_TRUE(write_image(arena, file, {.format = GetParam()}));
    return content_of(file);
  }
  Arena arena = Arena::create({.name = "image-test", .layout = kLayout, .max_size = 64_MiB}).value();
};

TEST_P(ImageInPlace, KeepsTheFilesSizeAndWhatFollows) {
  const std::vector<std::byte> expected = alone();
  const Fd file = file_of(std::vector(expected.size() + 10'000, kOld));
  const auto written = write_image(arena, file, options());
  ASSERT_TRUE(written) << to_string(written.error());
  EXPECT_EQ(*written, expected.size());
  const std::vector<std::byte> now = content_of(file);
  ASSERT_EQ(now.size(), expected.size() + 10'000);
  EXPECT_EQ(std::count(now.begin() + static_cast<std::ptrdiff_t>(expected.size()), now.end(), kOld), 10'000);

  const auto uncut = populate(file, kLayout, "again");
  ASSERT_FALSE(uncut) << "its header says how long it is";
  EXPECT_EQ(uncut.error().code, EBADMSG);
  ASSERT_EQ(ftruncate(file.raw(), static_cast<off_t>(*written)), 0);
  const auto again = populate(file, kLayout, "again");
  ASSERT_TRUE(again) << to_string(again.error());
  expect_filled(*again);
  EXPECT_EQ(again->stats().used_bytes, arena.stats().used_bytes);
}

TEST_P(ImageInPlace, FitsToTheByte) {
  const std::vector<std::byte> expected = alone();
  const Fd file = file_of(std::vector(expected.size(), std::byte{}));
  ASSERT_TRUE(write_image(arena, file, options()));
  EXPECT_EQ(content_of(file), expected);
}

TEST_P(ImageInPlace, WritesNothingIfThereIsNoRoom) {
  const std::size_t size = alone().size();
  for (const std::size_t room : {size - 1, size / 2, std::size_t{4096}, std::size_t{0}}) {
    const std::vector<std::byte> before(room, kOld);
    const Fd file = file_of(before);
    const auto refused = write_image(arena, file, options());
    ASSERT_FALSE(refused) << room;
    EXPECT_EQ(refused.error().code, ENOSPC);
    EXPECT_NE(to_string(refused.error()).find(std::to_string(size)), std::string::npos) << "how much it takes";
    EXPECT_EQ(content_of(file), before) << room;
  }
}

TEST_P(ImageInPlace, WorksInAFileThatCannotChangeItsSize) {
  const std::size_t size = alone().size();
  const Fd file = Fd::adopt(memfd_create("fixed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(file.raw(), static_cast<off_t>(size + 4096)), 0);
  ASSERT_EQ(fcntl(file.raw(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
  const auto elsewhere = write_image(arena, file, {.format = GetParam()});
  ASSERT_FALSE(elsewhere);
  EXPECT_EQ(elsewhere.error().code, EPERM);
  EXPECT_TRUE(write_image(arena, file, options()));
}

/// An update that is taken back, and tried again when there is less in the arena.
TEST_P(ImageInPlace, ASmallerOneReplacesALargerOne) {
  const std::size_t size = alone().size();
  const Fd file = file_of(std::vector(size + 100, std::byte{}));
  ASSERT_TRUE(write_image(arena, file, options()));
  Arena other = Arena::create({.name = "other", .layout = kLayout, .max_size = 64_MiB}).value();
  const auto written = write_image(other, file, options());
  ASSERT_TRUE(written);
  ASSERT_LT(*written, size);
  ASSERT_EQ(ftruncate(file.raw(), static_cast<off_t>(*written)), 0);
  const auto again = populate(file, kLayout, "again");
  ASSERT_TRUE(again) << to_string(again.error());
  EXPECT_EQ(again->stats().blocks, 0U);
}

INSTANTIATE_TEST_SUITE_P(Formats, ImageInPlace, testing::Range(kOldestImageFormat, kImageFormat + 1));

}  // namespace
}  // namespace luo::kho
