// What of an arena goes into an image. Both who writes one and who reads one asks here, so that an image has
// exactly what its chunk table says is in use. The chunk table and the bitmaps have been checked.
#pragma once
#include <vector>

#include "kho/format.h"

namespace luo::kho {

/// Whole pages.
struct Extent {
  std::uint64_t at, bytes;
  friend bool operator==(const Extent&, const Extent&) = default;
};

/// A mapped arena's parts, for reading.
struct ArenaParts {
  const std::byte* base;
  const Header& header() const noexcept { return *reinterpret_cast<const Header*>(base); }
  const Geometry& geometry() const noexcept { return header().constants.geometry; }
  std::uint32_t frontier() const noexcept { return header().state.frontier; }
  const Chunk* table() const noexcept { return reinterpret_cast<const Chunk*>(base + geometry().table_at); }
  const std::uint64_t* bitmap(std::uint32_t chunk) const noexcept {
    return reinterpret_cast<const std::uint64_t*>(base + geometry().bitmap_at + chunk * kBitmapBytes);
  }
  /// The index of the block after the one that starts at chunk `index`.
  std::uint32_t after(std::uint32_t index) const noexcept { return index + (std::uint32_t{1} << table()[index].order); }
};

/// The control page if asked for, then the pages that have allocated blocks, ascending, none longer than
/// kSegmentBytes, cut only there. O(heap).
std::vector<Extent> extents_of(ArenaParts arena, bool control);

/// The content of one of them, with zeros where no block is allocated. `to` has room for it.
void copy_extent(ArenaParts arena, Extent extent, std::byte* to) noexcept;

/// Runs of chunks that have to have memory: with small blocks, free ones too, or the used ones of large blocks.
std::vector<Extent> chunks_in_use(ArenaParts arena);

}  // namespace luo::kho
