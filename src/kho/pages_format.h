// The blocks of a PageTracker. All are arrays of 64-bit words, in host byte order.
//
//   entry   one word; its low 4 bits say what it is:
//             0  nothing
//             1  block: 2^order pages, all preserved; order in bits 56 .. 61, first page in bits 4 .. 55
//             2  node, 3  sparse leaf, 4  dense leaf: the address of a block, which is aligned to 16
//   node    head (base page | kNodeMark | level), which children there are, an entry for each of these.
//           A child of level n has 2^(15 + 6 (n - 1)) pages. At least two children, or one dense leaf
//   sparse  head (base page | kLeafMark | which of 8 groups of 64 words are used), for each of these which of
//           its words are used, the words. At least two pages
//   dense   512 words. Does not say its base: only in nodes of level 1
//   garbage next, number of entries, entries that nothing else leads to
//
// Everything has one form only: a full leaf or node is a block entry, one page alone is.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "kho/pages.h"

namespace luo::kho::pages {

inline constexpr std::uint64_t kMagic = 0x5345474150554c01;
inline constexpr unsigned kLeafBits = 15;
inline constexpr unsigned kDigitBits = 6;
inline constexpr unsigned kTopLevel = 7;
inline constexpr unsigned kAllBits = PageTracker::kPageBits;
inline constexpr std::uint64_t kNodeMark = 0x4e0;   ///< with the level, in the low 15 bits of a head
inline constexpr std::uint64_t kLeafMark = 0x4c00;  ///< with the groups
inline constexpr std::uint64_t kLowBits = (std::uint64_t{1} << kLeafBits) - 1;
inline constexpr std::size_t kLeafWords = 512;
inline constexpr std::size_t kGroupWords = 64;
inline constexpr std::size_t kDenseBytes = kLeafWords * 8;
inline constexpr std::size_t kSparseLimit = 3584;  ///< a leaf that would be larger is dense
inline constexpr std::size_t kSparseAgain = 2048;  ///< a dense leaf that would not be larger is sparse

using Entry = std::uint64_t;
enum class Tag : unsigned { None = 0, Block = 1, Node = 2, Sparse = 3, Dense = 4 };

constexpr Tag tag_of(Entry e) noexcept { return static_cast<Tag>(e & 15); }
constexpr Entry block_entry(std::uint64_t page, unsigned order) noexcept {
  return std::uint64_t{order} << 56 | page << 4 | static_cast<unsigned>(Tag::Block);
}
constexpr Entry ref_entry(std::uint64_t at, Tag tag) noexcept { return at | static_cast<unsigned>(tag); }
constexpr std::uint64_t block_page(Entry e) noexcept { return (e >> 4) & (PageTracker::kPages - 1); }
constexpr unsigned block_order(Entry e) noexcept { return static_cast<unsigned>(e >> 56); }
constexpr Ref<std::uint64_t> ref_of(Entry e) noexcept { return {e & ~std::uint64_t{15}}; }

/// 2^order pages, aligned to that.
struct Span {
  std::uint64_t base;
  unsigned order;
  constexpr std::uint64_t last() const noexcept { return base + ((std::uint64_t{1} << order) - 1); }
  constexpr bool holds(Span other) const noexcept { return base <= other.base && other.last() <= last(); }
  friend bool operator==(Span, Span) = default;
};
inline constexpr Span kEverything{0, kAllBits};

constexpr std::uint64_t base_of(std::uint64_t page, unsigned order) noexcept { return page >> order << order; }
constexpr unsigned child_order(unsigned level) noexcept { return kLeafBits + kDigitBits * (level - 1); }
constexpr unsigned node_order(unsigned level) noexcept { return std::min(kAllBits, child_order(level + 1)); }
constexpr unsigned fan_out(unsigned level) noexcept { return 1U << (node_order(level) - child_order(level)); }
constexpr unsigned digit_of(std::uint64_t page, unsigned level) noexcept {
  return static_cast<unsigned>(page >> child_order(level)) & 63U;
}
constexpr Span child_span(std::uint64_t node_base, unsigned level, unsigned digit) noexcept {
  return {node_base + (std::uint64_t{digit} << child_order(level)), child_order(level)};
}
/// Of the lowest node that can hold both pages, which are not of one leaf.
constexpr unsigned level_for(std::uint64_t a, std::uint64_t b) noexcept {
  unsigned level = 1;
  while (base_of(a, node_order(level)) != base_of(b, node_order(level))) ++level;
  return level;
}
constexpr unsigned node_level(std::uint64_t head) noexcept { return static_cast<unsigned>(head & 15); }
constexpr std::uint64_t head_base(std::uint64_t head) noexcept { return head & ~kLowBits; }

constexpr unsigned ones(std::uint64_t word) noexcept { return static_cast<unsigned>(std::popcount(word)); }
/// The place of bit n's item among the items of a mask.
constexpr unsigned rank(std::uint64_t mask, unsigned n) noexcept { return ones(mask & ((std::uint64_t{1} << n) - 1)); }

/// Calls visit(n) for each bit that is set.
template <class Visit>
constexpr void for_each_bit(std::uint64_t mask, Visit visit) {
  for (; mask != 0; mask &= mask - 1) visit(static_cast<unsigned>(std::countr_zero(mask)));
}

/// Where a sparse leaf's groups and words are.
struct SparseView {
  const std::uint64_t* words;  ///< the block
  unsigned groups() const noexcept { return static_cast<unsigned>(words[0] & 0xff); }
  unsigned used() const noexcept {
    unsigned n = 0;
    for (unsigned g = 0; g < ones(groups()); ++g) n += ones(words[1 + g]);
    return n;
  }
  std::size_t bytes() const noexcept { return 8 * (std::size_t{1} + ones(groups()) + used()); }
  /// visit(number in the leaf, word) for each word that is used.
  template <class Visit>
  void for_each(Visit visit) const {
    const std::uint64_t* mask = words + 1;
    const std::uint64_t* word = mask + ones(groups());
    for_each_bit(groups(), [&](unsigned g) { for_each_bit(*mask++, [&](unsigned n) { visit(g * 64 + n, *word++); }); });
  }
  /// nullptr: that word is not used.
  const std::uint64_t* find(unsigned number) const noexcept {
    const unsigned group = number / 64, n = number % 64;
    if ((groups() >> group & 1U) == 0) return nullptr;
    const unsigned place = rank(groups(), group);
    if ((words[1 + place] >> n & 1U) == 0) return nullptr;
    const std::uint64_t* word = words + 1 + ones(groups());
    for (unsigned g = 0; g < place; ++g) word += ones(words[1 + g]);
    return word + rank(words[1 + place], n);
  }
};

}  // namespace luo::kho::pages
