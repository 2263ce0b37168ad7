// The sizes of small blocks: steps of 16 to 128, four for each doubling to 8 KiB, then what divides a
// 64 KiB chunk into 7, 6, 5, 4, 3 and 2, so that little of a chunk is left over.
#pragma once
#include <array>
#include <bit>
#include <cstdint>

#include "kho/format.h"

namespace luo::kho {

inline constexpr std::uint64_t kSmallLimit = 32768;  ///< blocks from here on are whole chunks
inline constexpr unsigned kClasses = 38;

struct SizeClass {
  std::uint32_t bytes;
  std::uint32_t blocks;      ///< in one chunk
  std::uint32_t reciprocal;  ///< offset * reciprocal >> 32 == offset / bytes, for offsets in a chunk
  std::uint64_t all_words;   ///< open_words of an empty chunk
};

namespace detail {

constexpr std::array<SizeClass, kClasses> make_classes() noexcept {
  std::array<SizeClass, kClasses> classes{};
  unsigned n = 0;
  const auto add = [&](std::uint64_t bytes) {
    const std::uint64_t blocks = kChunkBytes / bytes;
    const std::uint64_t words = (blocks + 63) / 64;
    classes[n++] = {static_cast<std::uint32_t>(bytes), static_cast<std::uint32_t>(blocks),
                    static_cast<std::uint32_t>((std::uint64_t{1} << 32) / bytes + 1),
                    words == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << words) - 1};
  };
  for (std::uint64_t bytes = 16; bytes <= 128; bytes += 16) add(bytes);
  for (std::uint64_t base = 128; base < 8192; base *= 2)
    for (std::uint64_t quarter = 1; quarter <= 4; ++quarter) add(base + base / 4 * quarter);
  for (std::uint64_t parts = 7; parts >= 2; --parts) add(kChunkBytes / parts / 16 * 16);
  return classes;
}

}  // namespace detail

inline constexpr std::array<SizeClass, kClasses> kSizeClasses = detail::make_classes();
static_assert(kClasses <= kClassSlots && kSizeClasses.back().bytes == kSmallLimit && kSizeClasses[31].bytes == 8192);

/// The class of the smallest block that holds `bytes` (1 .. kSmallLimit).
constexpr unsigned class_for(std::uint64_t bytes) noexcept {
  if (bytes <= 128) return static_cast<unsigned>((bytes + 15) / 16 - 1);
  if (bytes <= 8192) {
    const unsigned top = static_cast<unsigned>(std::bit_width(bytes - 1)) - 1;  // 2^top < bytes <= 2^(top + 1)
    const auto quarter = static_cast<unsigned>((bytes - 1) >> (top - 2)) & 3U;
    return 8 + (top - 7) * 4 + quarter;
  }
  unsigned n = 32;
  while (kSizeClasses[n].bytes < bytes) ++n;
  return n;
}

}  // namespace luo::kho
