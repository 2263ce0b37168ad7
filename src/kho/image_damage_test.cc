// What a damaged image does: every bit of its metadata, every truncation, and images whose checksums are right
// although what they say is not. Each time an error that names the place.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "kho/image.h"
#include "kho/image_checksum.h"
#include "kho/image_extents.h"
#include "kho/image_testing.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"image", 1};

/// An image that the test changes; the parameter is its format.
class DamagedImage : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  void SetUp() override {
    Arena arena = Arena::create({.name = "damage", .layout = kLayout, .max_size = 4_MiB}).value();
    fill_arena(arena, 200000);
    image_ = content_of(seal(arena, "damage", {.format = GetParam(), .control = true}).value());
    std::memcpy(&header_, image_.data(), sizeof header_);
  }

  template <class T>
  T* in(std::uint64_t at) {
    return reinterpret_cast<T*>(image_.data() + at);
  }
  ImageHeader& header() { return *in<ImageHeader>(0); }
  Chunk& chunk(std::uint32_t index) { return in<Chunk>(header_.table_at)[index]; }

  /// As somebody would who writes images of his own: every checksum right, except of the data.
  void make_sums_right() {
    const auto sum = [&](std::uint64_t at, std::uint64_t bytes) {
      return image_checksum(std::span{image_.data() + at, bytes});
    };
    header().table_sum = sum(header_.table_at, header_.table_bytes);
    header().bitmaps_sum = sum(header_.bitmaps_at, header_.bitmaps_bytes);
    header().segments_sum = sum(header_.segments_at, header_.segments * segment_bytes_in(header_.format));
    header().checksum = image_checksum(header());
  }

  /// The error's text, or what shows that there was none.
  std::string outcome() const {
    const auto populated = populate(file_of(image_), kLayout, "populated");
    if (populated) return "none";
    return populated.error().code == EBADMSG || populated.error().code == EPROTO ? populated.error().what
                                                                                 : to_string(populated.error());
  }

  void expect_all_flips_named(std::uint64_t from, std::uint64_t to, std::string_view place) {
    const Fd file = file_of(image_);
    for (std::uint64_t at = from; at < to; ++at)
      for (unsigned bit = 0; bit < 8; ++bit) {
        const auto damaged = static_cast<std::byte>(std::to_integer<unsigned>(image_[at]) ^ 1U << bit);
        ASSERT_EQ(::pwrite(file.raw(), &damaged, 1, static_cast<off_t>(at)), 1);
        const auto populated = populate(file, kLayout, "x");
        ASSERT_FALSE(populated) << "bit " << bit << " of byte " << at;
        ASSERT_TRUE(populated.error().code == EBADMSG || populated.error().code == EPROTO)
            << at << ": " << to_string(populated.error());
        ASSERT_NE(populated.error().what.find(place), std::string::npos) << at << ": " << populated.error().what;
        ASSERT_EQ(::pwrite(file.raw(), &image_[at], 1, static_cast<off_t>(at)), 1);
      }
    EXPECT_TRUE(populate(file, kLayout, "x"));
  }

  std::vector<std::byte> image_;
  ImageHeader header_{};
};

TEST_P(DamagedImage, EveryBitOfTheMetadataIsNoticedAndNamed) {
  const std::uint64_t segments_end = header_.segments_at + header_.segments * segment_bytes_in(header_.format);
  expect_all_flips_named(0, sizeof(ImageHeader), "image header: ");
  expect_all_flips_named(header_.table_at, header_.bitmaps_at, "chunk table: ");
  expect_all_flips_named(header_.bitmaps_at, header_.segments_at, "bitmaps: ");
  expect_all_flips_named(header_.segments_at, segments_end, "segment table: ");
}

TEST_P(DamagedImage, EveryByteOfThePaddingIsNoticedAndNamed) {
  for (std::uint64_t at = header_.segments_at + header_.segments * segment_bytes_in(header_.format);
       at < header_.data_at; ++at) {
    image_[at] ^= std::byte{0x10};
    EXPECT_EQ(outcome(), fmt::format("populate arena: padding: byte {} of the image is not 0", at));
    image_[at] ^= std::byte{0x10};
  }
}

TEST_P(DamagedImage, DamagedDataIsNoticed) {
  for (std::uint64_t at = header_.data_at; at < image_.size(); at += 1009) {
    image_[at] ^= std::byte{1};
    const std::string what = outcome();
    EXPECT_NE(what.find(GetParam() == 1 ? "data: checksum" : "segment "), std::string::npos) << what;
    image_[at] ^= std::byte{1};
  }
  image_.back() ^= std::byte{0x80};
  if (GetParam() == 2) {
    EXPECT_NE(outcome().find(fmt::format("segment {} (", header_.segments - 1)), std::string::npos) << outcome();
  }
}

TEST_P(DamagedImage, EveryTruncationIsNoticedAndNamed) {
  const Fd file = file_of(image_);
  for (std::uint64_t length = image_.size(); length-- > 0;) {
    ASSERT_EQ(::ftruncate(file.raw(), static_cast<off_t>(length)), 0);
    const auto populated = populate(file, kLayout, "x");
    ASSERT_FALSE(populated) << length;
    ASSERT_EQ(populated.error().code, EBADMSG) << length;
    ASSERT_NE(populated.error().what.find("image header: "), std::string::npos) << populated.error().what;
    ASSERT_FALSE(inspect_image(file)) << length;
  }
}

TEST_P(DamagedImage, WhatIsMissingInsideIsNoticed) {
  // Cut off and made as long as before, as a copy is that was not finished: the rest reads as zeros.
  for (std::uint64_t length = 0; length < header_.data_at; length += 61) {
    const Fd file = file_of(image_);
    ASSERT_EQ(::ftruncate(file.raw(), static_cast<off_t>(length)), 0);
    ASSERT_EQ(::ftruncate(file.raw(), static_cast<off_t>(image_.size())), 0);
    EXPECT_FALSE(populate(file, kLayout, "x")) << length;
  }
  image_.push_back(std::byte{});
  EXPECT_NE(outcome().find("image header: the image should have"), std::string::npos) << outcome();
}

TEST_P(DamagedImage, WithRightChecksumsIsCheckedAllTheSame) {
  // Chunks by what they are.
  std::uint32_t free_chunk = 0, small_chunk = 0, large_chunk = 0;
  for (std::uint32_t i = 0; i < header_.state.frontier; i += std::uint32_t{1} << chunk(i).order) {
    if (chunk(i).state == ChunkState::Free) free_chunk = i;
    if (chunk(i).state == ChunkState::Small) small_chunk = i;
    if (chunk(i).state == ChunkState::Large) large_chunk = i;
  }
  ASSERT_TRUE(free_chunk != 0 && small_chunk != 0 && large_chunk != 0);
  const std::uint64_t each = segment_bytes_in(header_.format);
  const auto segment = [&](std::size_t i) { return in<SegmentV1>(header_.segments_at + i * each); };
  struct Case {
    const char* names;
    int code;
    std::function<void()> change;
  };
  const Case cases[] = {
      {"image header: pages of 16384 bytes, here 4096", EPROTO, [&] { header().page_bytes = 16384; }},
      {"image header: features 0x9, this program knows 0x1", EPROTO, [&] { header().features |= 8; }},
      {"image header: the image should have", EBADMSG, [&] { header().file_bytes += 1; }},
      {"image header: sections overlap", EBADMSG, [&] { header().table_at += 8; }},
      {"image header: sections overlap", EBADMSG, [&] { header().data_at = 0; }},
      {"image header: sections overlap", EBADMSG, [&] { header().segments_at = ~std::uint64_t{7}; }},
      {"image header: its numbers", EBADMSG, [&] { header().segments = ~std::uint64_t{0}; }},
      {"image header: its numbers", EBADMSG, [&] { header().bitmaps_bytes = ~std::uint64_t{511}; }},
      {"image header: its numbers", EBADMSG, [&] { header().state.frontier -= 1; }},
      {"chunks in use of", EBADMSG, [&] { header().state.frontier = ~0U; }},
      {"image header: the arena's sections", EBADMSG, [&] { header().constants.geometry.heap_at += kChunkBytes; }},
      {"image header: the arena's sections", EBADMSG, [&] { header().constants.geometry.heap_bytes = ~0ULL; }},
      {"image header: an arena of format 7", EPROTO, [&] { header().constants.format = 7; }},
      {"header: root 5 is 0x10, where no block is", EBADMSG, [&] { header().state.roots[5] = 16; }},
      {"header: counts", EBADMSG, [&] { header().state.blocks += 1; }},
      {"order 40 does not fit", EBADMSG, [&] { chunk(free_chunk).order = 40; }},
      {"(large): ", EBADMSG, [&] { chunk(large_chunk).used = 0; }},
      {"size class is 200", EBADMSG, [&] { chunk(small_chunk).size_class = 200; }},
      {"does not follow it", EBADMSG, [&] { chunk(free_chunk).next = free_chunk + 1; }},
      {"some form a cycle", EBADMSG,
       [&] {  // the only one of its list, taken out of it and led to itself
         Chunk& c = chunk(free_chunk);
         ASSERT_TRUE(c.next == 0 && c.previous == 0);
         header().state.order_head[c.order] = 0;
         c.next = c.previous = free_chunk + 1;
       }},
      {"bitmap names blocks that do not exist", EBADMSG,
       [&] { *in<std::uint64_t>(header_.segments_at - 8) = 1ULL << 63; }},
      {"segment 1: ", EBADMSG, [&] { segment(1)->at += kPageBytes; }},
      {"overlap the segment before", EBADMSG, [&] { segment(2)->at = segment(1)->at; }},
      {"overlap the segment before", EBADMSG, [&] { segment(1)->at = 0; }},
      {"segment 0: ", EBADMSG, [&] { segment(0)->bytes = ~std::uint64_t{0}; }},
      {"segment table: ", EBADMSG, [&] { header().features = 0; }},
  };
  const std::vector<std::byte> sound = image_;
  for (const Case& c : cases) {
    c.change();
    make_sums_right();
    const auto populated = populate(file_of(image_), kLayout, "x");
    ASSERT_FALSE(populated) << c.names;
    EXPECT_EQ(populated.error().code, c.code) << to_string(populated.error());
    EXPECT_NE(populated.error().what.find(c.names), std::string::npos)
        << c.names << " is not in: " << populated.error().what;
    image_ = sound;
  }
  EXPECT_EQ(outcome(), "none");
}

TEST_P(DamagedImage, OfTheOtherByteOrderOrNoImageAtAll) {
  const auto swap = [](auto& value) {
    auto* bytes = reinterpret_cast<std::byte*>(&value);
    std::reverse(bytes, bytes + sizeof value);
  };
  swap(header().magic);
  swap(header().byte_order);
  EXPECT_EQ(outcome(), "populate arena: image header: written in the other byte order");
  header().magic = kArenaMagic;
  EXPECT_EQ(outcome(), "populate arena: image header: this is an arena, not an image of one");
  header() = header_;
  header().format = 3;
  EXPECT_EQ(outcome(), "populate arena: image header: format 3, this program reads formats 1 to 2");
  std::ranges::fill(image_, std::byte{0xff});
  EXPECT_NE(outcome().find("image header: magic is"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Format, DamagedImage, ::testing::Values(1U, 2U));

}  // namespace
}  // namespace luo::kho
