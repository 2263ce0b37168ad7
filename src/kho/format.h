// What lies where in an arena's file. All fields of fixed width, host byte order (which the header
// states), no pointers. Everything after the constant part of the header changes only through the undo
// log, except the backed bits: those follow the kernel's memory, which no transaction can take back.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kho/arena.h"

namespace luo::kho {

inline constexpr std::uint64_t kArenaMagic = 0x414e4552414f554c;  // "LUOARENA"
inline constexpr std::uint32_t kByteOrder = 0x01020304;
inline constexpr std::uint32_t kFormat = 1;

inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kHugeBytes = std::uint64_t{2} << 20;
inline constexpr std::uint64_t kChunkShift = 16;
inline constexpr std::uint64_t kChunkBytes = std::uint64_t{1} << kChunkShift;
inline constexpr std::uint32_t kHugeChunks = kHugeBytes / kChunkBytes;
inline constexpr std::uint64_t kMinHeapBytes = std::uint64_t{1} << 20;
inline constexpr std::uint64_t kMaxHeapBytes = std::uint64_t{1} << 44;
inline constexpr unsigned kOrders = 29;  ///< blocks of 2^0 .. 2^28 chunks: 64 KiB .. 16 TiB
inline constexpr unsigned kClassSlots = 40;
inline constexpr std::uint64_t kControlAt = kPageBytes;
inline constexpr std::uint64_t kLogAt = 2 * kPageBytes;
inline constexpr std::uint64_t kLogBytes = std::uint64_t{4} << 20;
inline constexpr std::size_t kBitmapWords = 64;  ///< of a chunk: its 4096 possible blocks of 16 bytes
inline constexpr std::size_t kBitmapBytes = kBitmapWords * sizeof(std::uint64_t);

/// Where the sections are; follows from the heap's size and the kind of its pages.
struct Geometry {
  std::uint64_t chunks;
  std::uint64_t backed_at, backed_bytes;  ///< one bit for each chunk that has memory
  std::uint64_t table_at, table_bytes;    ///< one Chunk for each
  std::uint64_t bitmap_at, bitmap_bytes;  ///< kBitmapBytes for each
  std::uint64_t heap_at, heap_bytes;
  std::uint64_t file_bytes;
  friend bool operator==(const Geometry&, const Geometry&) = default;
};
Geometry geometry_of(std::uint64_t heap_bytes, Pages pages = Pages::Normal) noexcept;

/// Written once, at creation; covered by a checksum.
struct HeaderConstants {
  std::uint64_t magic;
  std::uint32_t byte_order;
  std::uint32_t format;
  std::uint32_t page_bytes;
  std::uint32_t chunk_bytes;
  std::uint32_t record_bytes;  ///< sizeof(Chunk)
  std::uint32_t header_bytes;  ///< sizeof(Header)
  Layout layout;
  Pages pages;  ///< was 0 before there were huge ones
  std::uint64_t log_at, log_bytes;
  Geometry geometry;
  std::uint64_t checksum;  ///< of all before it
  friend bool operator==(const HeaderConstants&, const HeaderConstants&) = default;
};

/// Lists name chunks by index + 1, so that 0 is "none".
struct HeaderState {
  std::uint64_t roots[Arena::kRoots];
  std::uint64_t used_bytes;  ///< these two side by side: logged together
  std::uint64_t blocks;
  std::uint32_t frontier;  ///< chunks that the buddy knows; the table is valid up to here
  std::uint32_t zero;
  std::uint32_t class_head[kClassSlots];  ///< chunks of the class that have a free block
  std::uint32_t order_head[kOrders];      ///< free blocks of 2^order chunks
  std::uint32_t zero2;
};

struct Header {
  HeaderConstants constants;
  HeaderState state;
};
static_assert(sizeof(Header) <= kPageBytes && std::is_trivially_copyable_v<Header>);
static_assert(std::has_unique_object_representations_v<Header>, "no padding: its bytes are checksummed and compared");

enum class ChunkState : std::uint8_t {
  Inside = 0,  ///< not the first of a block
  Free = 1,    ///< first of a free block, in the list of its order
  Small = 2,   ///< one chunk of blocks of a size class
  Large = 3,   ///< first of an allocated block
};

/// The record of one chunk. All zero unless it is the first of its block.
struct Chunk {
  ChunkState state;
  std::uint8_t order;       ///< the block has 2^order chunks
  std::uint8_t size_class;  ///< Small
  std::uint8_t zero;
  std::uint32_t used;            ///< Small: blocks allocated; Large: chunks asked for, <= 2^order
  std::uint64_t open_words;      ///< Small: bit w: word w of the bitmap has a free block
  std::uint32_t previous, next;  ///< Free: in its order's list; Small: in its class's, while it has a free block
  std::uint64_t zero2;
};
static_assert(sizeof(Chunk) == 32 && std::has_unique_object_representations_v<Chunk>);
static_assert(kChunkBytes / 16 == kBitmapWords * 64);

/// At kLogAt. Independent of every layout: an arena of any version is rolled back by these alone.
struct LogHeader {
  std::uint64_t magic;
  std::uint64_t tail;  ///< tail_word() of the bytes of entries that count; 0 bytes: no transaction is open
  std::uint64_t zero[6];
};
static_assert(sizeof(LogHeader) == 64);
inline constexpr std::uint64_t kLogMagic = 0x474f4c4f444e55ff;  // 0xff "UNDOLOG"
inline constexpr std::uint64_t kLogCapacity = kLogBytes - sizeof(LogHeader);

/// The tail carries a check of its own: entries behind it are whole, of transactions that are done, and must
/// not be taken for an open one because of a damaged bit. Still one store.
constexpr std::uint64_t tail_word(std::uint64_t tail) noexcept {
  return ((tail * 0x9e3779b1 ^ 0x5bd1e995) << 32) | (tail & 0xffffffff);
}
constexpr bool is_tail_word(std::uint64_t word) noexcept { return word == tail_word(word & 0xffffffff); }
constexpr std::uint64_t tail_of(std::uint64_t word) noexcept { return word & 0xffffffff; }

/// Followed by the old bytes, padded with zeros to 8.
struct LogEntry {
  std::uint64_t offset;
  std::uint32_t length;    ///< without the padding, never 0
  std::uint32_t previous;  ///< distance back to the entry before; 0 in the first
  std::uint64_t checksum;  ///< of offset, length, place in the log and old bytes
};
static_assert(sizeof(LogEntry) == 24);

/// FNV-1a; for the header's constants only.
std::uint64_t checksum_of(const HeaderConstants& constants) noexcept;

}  // namespace luo::kho
