#include "kho/image_extents.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "kho/image_format.h"
#include "kho/size_class.h"

namespace luo::kho {
namespace {

constexpr std::uint32_t kPageBytes32 = kPageBytes;
constexpr std::uint32_t kPagesOfChunk = kChunkBytes / kPageBytes;

/// Calls `use` with the offset of each allocated block of a chunk of small ones.
template <class Use>
void for_each_block(const SizeClass& size, const std::uint64_t* bitmap, Use use) {
  for (std::uint32_t w = 0; w * 64 < size.blocks; ++w)
    for (std::uint64_t word = bitmap[w]; word != 0; word &= word - 1)
      use((w * 64 + static_cast<std::uint32_t>(std::countr_zero(word))) * size.bytes);
}

/// Bit n: page n of the chunk has a part of an allocated block.
std::uint32_t pages_in_use(const SizeClass& size, const std::uint64_t* bitmap) noexcept {
  std::uint32_t pages = 0;
  for_each_block(size, bitmap, [&](std::uint32_t at) {
    const std::uint32_t first = at / kPageBytes32, last = (at + size.bytes - 1) / kPageBytes32;
    pages |= ((2U << last) - 1) & ~((1U << first) - 1);
  });
  return pages;
}

/// Adds to the last run if it goes on there, up to `longest` bytes each.
void add(std::vector<Extent>& runs, std::uint64_t at, std::uint64_t bytes, std::uint64_t longest) {
  while (bytes != 0) {
    if (runs.empty() || runs.back().at + runs.back().bytes != at || runs.back().bytes == longest)
      runs.push_back({at, 0});
    const std::uint64_t more = std::min(bytes, longest - runs.back().bytes);
    runs.back().bytes += more;
    at += more;
    bytes -= more;
  }
}

/// The part of a chunk of small blocks that begins at `from` in it.
void copy_small(const std::byte* chunk, const SizeClass& size, const std::uint64_t* bitmap, std::uint64_t from,
                std::uint64_t bytes, std::byte* to) noexcept {
  std::memset(to, 0, bytes);
  for_each_block(size, bitmap, [&](std::uint64_t at) {
    const std::uint64_t begin = std::max(at, from), end = std::min(at + size.bytes, from + bytes);
    if (begin < end) std::memcpy(to + (begin - from), chunk + begin, end - begin);
  });
}

}  // namespace

std::vector<Extent> extents_of(ArenaParts arena, bool control) {
  std::vector<Extent> runs;
  if (control) runs.push_back({kControlAt, Arena::kControlBytes});
  for (std::uint32_t index = 0; index < arena.frontier(); index = arena.after(index)) {
    const Chunk& chunk = arena.table()[index];
    const std::uint64_t at = arena.geometry().heap_at + index * kChunkBytes;
    if (chunk.state == ChunkState::Large) {
      add(runs, at, chunk.used * kChunkBytes, kSegmentBytes);
    } else if (chunk.state == ChunkState::Small && chunk.used != 0) {
      const std::uint32_t pages = pages_in_use(kSizeClasses[chunk.size_class], arena.bitmap(index));
      for (std::uint32_t page = 0; page < kPagesOfChunk; ++page)
        if ((pages >> page & 1U) != 0) add(runs, at + page * kPageBytes, kPageBytes, kSegmentBytes);
    }
  }
  return runs;
}

void copy_extent(ArenaParts arena, Extent extent, std::byte* to) noexcept {
  const std::uint64_t heap_at = arena.geometry().heap_at;
  if (extent.at < heap_at) {  // the control page: others may be writing it, word by word
    for (std::uint64_t at = 0; at < extent.bytes; at += 8) {
      auto& word = *reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(arena.base + extent.at + at));
      const std::uint64_t value = std::atomic_ref{word}.load(std::memory_order_relaxed);
      std::memcpy(to + at, &value, 8);
    }
    return;
  }
  while (extent.bytes != 0) {
    const auto index = static_cast<std::uint32_t>((extent.at - heap_at) / kChunkBytes);
    const std::uint64_t from = (extent.at - heap_at) % kChunkBytes;
    const std::uint64_t here = std::min(extent.bytes, kChunkBytes - from);
    const Chunk& chunk = arena.table()[index];
    // What is not of small blocks is of a large one, which has a record only at its first chunk.
    if (chunk.state == ChunkState::Small)
      copy_small(arena.base + extent.at - from, kSizeClasses[chunk.size_class], arena.bitmap(index), from, here, to);
    else std::memcpy(to, arena.base + extent.at, here);
    extent.at += here;
    extent.bytes -= here;
    to += here;
  }
}

std::vector<Extent> chunks_in_use(ArenaParts arena) {
  std::vector<Extent> runs;
  for (std::uint32_t index = 0; index < arena.frontier(); index = arena.after(index)) {
    const Chunk& chunk = arena.table()[index];
    const std::uint64_t at = arena.geometry().heap_at + index * kChunkBytes;
    if (chunk.state == ChunkState::Large) add(runs, at, chunk.used * kChunkBytes, ~std::uint64_t{0});
    if (chunk.state == ChunkState::Small) add(runs, at, kChunkBytes, ~std::uint64_t{0});
  }
  return runs;
}

}  // namespace luo::kho
