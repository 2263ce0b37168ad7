// What lies where in an image: header, chunk table, bitmaps of the chunks that have small blocks, segment table,
// zeros up to a page, data. Nothing between them, all of fixed width, in the byte order that the header states.
// The data of the segments follows in their order.
#pragma once
#include "kho/format.h"

namespace luo::kho {

inline constexpr std::uint64_t kImageMagic = 0x4547414d494f554c;  // "LUOIMAGE"
/// A segment is a run of pages; longer runs are cut, so that one fits a buffer and damage has a place.
inline constexpr std::uint64_t kSegmentBytes = std::uint64_t{4} << 20;

/// Whoever reads an image knows all of its features.
enum ImageFeature : std::uint64_t {
  kImageControl = 1U << 0,  ///< the first segment is the control page
  kImageFeatures = kImageControl,
};

struct ImageHeader {
  std::uint64_t magic;
  std::uint32_t byte_order;
  std::uint32_t format;
  std::uint32_t page_bytes;
  std::uint32_t header_bytes;  ///< sizeof(ImageHeader)
  std::uint64_t features;
  std::uint64_t file_bytes;
  std::uint64_t table_at, table_bytes;      ///< a Chunk for each chunk in use
  std::uint64_t bitmaps_at, bitmaps_bytes;  ///< kBitmapBytes for each of those that is Small
  std::uint64_t segments_at, segments;      ///< number of Segment (format 1: SegmentV1)
  std::uint64_t data_at;
  std::uint64_t table_sum, bitmaps_sum, segments_sum;
  std::uint64_t data_sum;  ///< format 1: over all data; since format 2: 0
  HeaderConstants constants;
  HeaderState state;
  std::uint64_t checksum;  ///< of all before it
};
static_assert(sizeof(ImageHeader) == 664 && std::has_unique_object_representations_v<ImageHeader>);

struct SegmentV1 {
  std::uint64_t at;  ///< in the arena
  std::uint64_t bytes;
};
struct Segment {
  std::uint64_t at;
  std::uint64_t bytes;
  std::uint64_t sum;  ///< of its data
};

constexpr std::uint64_t segment_bytes_in(std::uint32_t format) noexcept {
  return format == 1 ? sizeof(SegmentV1) : sizeof(Segment);
}

/// Where the sections are; follows from what they hold.
struct ImageSections {
  std::uint64_t table_at, bitmaps_at, segments_at, segments_end, data_at;
};
constexpr ImageSections sections_of(std::uint32_t format, std::uint64_t table_bytes, std::uint64_t bitmaps_bytes,
                                    std::uint64_t segments) noexcept {
  ImageSections s{};
  s.table_at = sizeof(ImageHeader);
  s.bitmaps_at = s.table_at + table_bytes;
  s.segments_at = s.bitmaps_at + bitmaps_bytes;
  s.segments_end = s.segments_at + segments * segment_bytes_in(format);
  s.data_at = (s.segments_end + kPageBytes - 1) / kPageBytes * kPageBytes;
  return s;
}

}  // namespace luo::kho
