#include "kho/format.h"

namespace luo::kho {
namespace {

constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) noexcept { return (n + to - 1) / to * to; }

}  // namespace

Geometry geometry_of(std::uint64_t heap_bytes, Pages pages) noexcept {
  // Of hugetlb memory nothing smaller can be taken or given back, and the file has no other size.
  const std::uint64_t granule = pages == Pages::Hugetlb ? kHugeBytes : kChunkBytes;
  Geometry g{};
  g.heap_bytes = round_up(heap_bytes, granule);
  g.chunks = g.heap_bytes / kChunkBytes;
  g.backed_at = kLogAt + kLogBytes;
  g.backed_bytes = round_up(round_up(g.chunks, 64) / 8, kPageBytes);
  g.table_at = g.backed_at + g.backed_bytes;
  g.table_bytes = round_up(g.chunks * sizeof(Chunk), kPageBytes);
  g.bitmap_at = g.table_at + g.table_bytes;
  g.bitmap_bytes = round_up(g.chunks * kBitmapBytes, kPageBytes);
  g.heap_at = round_up(g.bitmap_at + g.bitmap_bytes, granule);
  g.file_bytes = g.heap_at + g.heap_bytes;
  return g;
}

std::uint64_t checksum_of(const HeaderConstants& constants) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = reinterpret_cast<const unsigned char*>(&constants);
  for (std::size_t i = 0; i < offsetof(HeaderConstants, checksum); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

}  // namespace luo::kho
