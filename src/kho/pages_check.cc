// What must hold in a PageTracker. Nothing here trusts what it reads.
#include <algorithm>
#include <vector>

#include "kho/pages_format.h"
#include "kho/size_class.h"

namespace luo::kho {

using namespace pages;

namespace {

class Checker {
 public:
  Checker(const Arena& arena, std::uint64_t pages) noexcept : arena_{arena}, expected_{pages} {}

  /// `e` in a slot for `slot`; in garbage its place is not known.
  Result<> check(Entry e, Span slot, bool garbage) {
    switch (tag_of(e)) {
      case Tag::None:
        if (e != 0) return bad(slot, "entry {:#x} is none, but not 0", e);
        return {};
      case Tag::Block: return check_block(e, slot);
      case Tag::Node: return check_node(e, slot, garbage);
      case Tag::Sparse: return check_sparse(e, slot, garbage);
      case Tag::Dense: return check_dense(e, slot, garbage);
    }
    return bad(slot, "entry {:#x} is of no kind", e);
  }

  Result<> check_garbage(std::uint64_t list) {
    while (list != 0) {
      const std::uint64_t* words = LUO_TRY(block(list, 24, kEverything));
      const std::uint64_t count = words[1];
      if (count == 0 || count > (std::uint64_t{1} << 32) ||
          arena_.checked(Ref<std::uint64_t>{list}, 16 + count * 8) == nullptr)
        return fail(EBADMSG, "superfluous blocks, list at {:#x}: {} entries do not fit there", list, count);
      for (std::uint64_t n = 0; n < count; ++n) {
        if (tag_of(words[2 + n]) == Tag::None || tag_of(words[2 + n]) == Tag::Block)
          return fail(EBADMSG, "superfluous blocks, list at {:#x}: entry {:#x} has none", list, words[2 + n]);
        LUO_TRY(check(words[2 + n], kEverything, true));
      }
      list = words[0];
    }
    return {};
  }

  Result<> check_sums() {
    if (pages_ != expected_) return fail(EBADMSG, "page tracker: {} pages, its record says {}", pages_, expected_);
    std::ranges::sort(blocks_);
    const auto twice = std::ranges::adjacent_find(blocks_);
    if (twice != blocks_.end()) return fail(EBADMSG, "page tracker: block at {:#x} is used twice", *twice);
    return {};
  }

 private:
  template <class... Args>
  static std::unexpected<Error> bad(Span slot, fmt::format_string<Args...> text, Args&&... args) {
    return fail(EBADMSG, "page tracker, pages from {:#x} (2^{}): {}", slot.base, slot.order,
                fmt::format(text, std::forward<Args>(args)...));
  }

  void count(std::uint64_t pages, bool garbage) noexcept {
    if (!garbage) pages_ += pages;
  }

  // A whole block of the arena that starts there and holds so much. Each costs the arena something, so that
  // more of them than there are means a loop.
  Result<const std::uint64_t*> block(std::uint64_t at, std::size_t bytes, Span slot) {
    const std::uint64_t* words = arena_.checked(Ref<std::uint64_t>{at}, bytes);
    if (words == nullptr || arena_.usable_size(PhysAddr{at}) < bytes)
      return bad(slot, "no block of {} bytes at {:#x}", bytes, at);
    blocks_.push_back(at);
    if (blocks_.size() > arena_.stats().blocks) return bad(slot, "blocks are used twice");
    return words;
  }

  Result<> check_block(Entry e, Span slot) {
    const unsigned order = block_order(e);
    const bool fits = order == 0 || order == kAllBits || (order >= kLeafBits && (order - kLeafBits) % kDigitBits == 0);
    const Span own{block_page(e), order};
    if (!fits || order > kAllBits || base_of(own.base, order) != own.base || !slot.holds(own))
      return bad(slot, "block of order {} at page {:#x}", order, own.base);
    count(std::uint64_t{1} << order, false);
    return {};
  }

  Result<> check_node(Entry e, Span slot, bool garbage) {
    const std::uint64_t at = ref_of(e).at;
    const std::uint64_t* node = LUO_TRY(block(at, 24, slot));
    const unsigned level = node_level(node[0]);
    if (level == 0 || level > kTopLevel || (node[0] & kLowBits) != (kNodeMark | level))
      return bad(slot, "node at {:#x}: its head is {:#x}", at, node[0]);
    const Span own{head_base(node[0]), node_order(level)};
    if (base_of(own.base, own.order) != own.base || !slot.holds(own))
      return bad(slot, "node at {:#x}: is for pages from {:#x} (2^{})", at, own.base, own.order);
    const unsigned children = ones(node[1]);
    if (children == 0 || static_cast<unsigned>(std::bit_width(node[1])) > fan_out(level) ||
        arena_.checked(ref_of(e), 16 + children * 8) == nullptr)
      return bad(own, "node at {:#x}: children {:#x}", at, node[1]);
    if (children == 1 && tag_of(node[2]) != Tag::Dense) return bad(own, "node at {:#x}: has one child only", at);
    unsigned full = 0, n = 2;
    for (unsigned digit = 0; digit < fan_out(level); ++digit) {
      if ((node[1] >> digit & 1U) == 0) continue;
      const Entry child = node[n++];
      if (child == 0) return bad(own, "node at {:#x}: child {} is none", at, digit);
      if (tag_of(child) == Tag::Block && block_order(child) == child_order(level)) ++full;
      const std::uint64_t before = pages_;
      LUO_TRY(check(child, child_span(own.base, level, digit), garbage));
      if (garbage) pages_ = before;
    }
    if (full == fan_out(level)) return bad(own, "node at {:#x}: is full", at);
    return {};
  }

  Result<> check_sparse(Entry e, Span slot, bool garbage) {
    const std::uint64_t at = ref_of(e).at;
    const SparseView leaf{LUO_TRY(block(at, 24, slot))};
    const std::uint64_t head = leaf.words[0];
    const Span own{head_base(head), kLeafBits};
    if ((head & kLowBits & ~std::uint64_t{0xff}) != kLeafMark || leaf.groups() == 0 || !slot.holds(own))
      return bad(slot, "leaf at {:#x}: its head is {:#x}", at, head);
    const std::size_t room = arena_.usable_size(ref_of(e).addr());
    if (8 * (1 + ones(leaf.groups())) > room) return bad(own, "leaf at {:#x}: is cut off", at);
    for (unsigned g = 0; g < ones(leaf.groups()); ++g)
      if (leaf.words[1 + g] == 0) return bad(own, "leaf at {:#x}: group {} is empty", at, g);
    if (leaf.bytes() > kSparseLimit || kSizeClasses[class_for(leaf.bytes())].bytes != room)
      return bad(own, "leaf at {:#x}: {} bytes in a block of {}", at, leaf.bytes(), room);
    std::uint64_t pages = 0;
    bool empty = false;
    leaf.for_each([&](unsigned, std::uint64_t word) {
      empty = empty || word == 0;
      pages += ones(word);
    });
    if (empty || pages < 2) return bad(own, "leaf at {:#x}: a word is empty", at);
    count(pages, garbage);
    return {};
  }

  Result<> check_dense(Entry e, Span slot, bool garbage) {
    const std::uint64_t at = ref_of(e).at;
    const std::uint64_t* words = LUO_TRY(block(at, kDenseBytes, slot));
    if (!garbage && slot.order != kLeafBits) return bad(slot, "leaf at {:#x}: does not say where it belongs", at);
    std::uint64_t pages = 0;
    for (std::size_t n = 0; n < kLeafWords; ++n) pages += ones(words[n]);
    if (pages < 2 || pages == kLeafWords * 64) return bad(slot, "leaf at {:#x}: {} pages", at, pages);
    count(pages, garbage);
    return {};
  }

  const Arena& arena_;
  std::uint64_t expected_, pages_ = 0;
  std::vector<std::uint64_t> blocks_;
};

}  // namespace

Result<> PageTracker::check() const {
  if (record_->magic != kMagic) return fail(EBADMSG, "page tracker: its magic is {:#x}", record_->magic);
  Checker checker{*arena_, record_->count};
  LUO_TRY(checker.check(record_->root, kEverything, false));
  LUO_TRY(checker.check_garbage(record_->garbage));
  return checker.check_sums();
}

}  // namespace luo::kho
