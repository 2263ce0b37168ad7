#include "kho/pages_change.h"

#include "kho/size_class.h"

namespace luo::kho::pages {
namespace {

constexpr unsigned kReclaimedByAChange = 16;
constexpr std::size_t kRoomForARelease = 1024;
/// Up to that a block is logged and written in place; of a larger one it is cheaper to make another.
constexpr std::size_t kInPlace = 640;

}  // namespace

Result<> Change::run(std::uint64_t first, std::uint64_t last) {
  const Entry root = LUO_TRY(update(record_.root, kEverything, first, last));
  if (root != record_.root) tx_.set(record_.root, root);
  if (more_ != fewer_) tx_.set(record_.count, record_.count + more_ - fewer_);
  return reclaim(kReclaimedByAChange);
}

Span Change::extent(Entry e, Span slot) const noexcept {
  switch (tag_of(e)) {
    case Tag::Block: return {block_page(e), block_order(e)};
    case Tag::Node: {
      const std::uint64_t head = *arena_.get(ref_of(e));
      return {head_base(head), node_order(node_level(head))};
    }
    case Tag::Sparse: return {head_base(*arena_.get(ref_of(e))), kLeafBits};
    default: return slot;
  }
}

std::uint64_t Change::pages_in(Entry e) const noexcept {
  std::uint64_t pages = 0;
  switch (tag_of(e)) {
    case Tag::None: break;
    case Tag::Block: return std::uint64_t{1} << block_order(e);
    case Tag::Node: {
      const std::uint64_t* node = arena_.get(ref_of(e));
      for (unsigned n = 0; n < ones(node[1]); ++n) pages += pages_in(node[2 + n]);
      break;
    }
    case Tag::Sparse:
      SparseView{arena_.get(ref_of(e))}.for_each([&](unsigned, std::uint64_t word) { pages += ones(word); });
      break;
    case Tag::Dense: {
      const std::uint64_t* words = arena_.get(ref_of(e));
      for (std::size_t n = 0; n < kLeafWords; ++n) pages += ones(words[n]);
      break;
    }
  }
  return pages;
}

void Change::drop(Entry e) {
  fewer_ += pages_in(e);
  if (tag_of(e) != Tag::None && tag_of(e) != Tag::Block) garbage_.push_back(e);
}

Result<Entry> Change::update(Entry e, Span slot, std::uint64_t first, std::uint64_t last) {
  if (first == slot.base && last == slot.last()) {
    drop(e);
    if (!set_) return Entry{0};
    more_ += last - first + 1;
    return block_entry(slot.base, slot.order);
  }
  if (e != 0) {
    const Span own = extent(e, slot);
    if (first <= own.base && own.last() <= last) {
      drop(e);
      e = 0;
    } else {
      if (!set_) {
        first = std::max(first, own.base);
        last = std::min(last, own.last());
        if (first > last) return e;
      }
      if (own.base <= first && last <= own.last()) return update_within(e, own, slot, first, last);
      if (tag_of(e) == Tag::Block && own.order == 0 && base_of(first, kLeafBits) == base_of(own.base, kLeafBits) &&
          base_of(last, kLeafBits) == base_of(own.base, kLeafBits)) {  // no longer alone in its leaf
        Leaf leaf;
        leaf.base = base_of(first, kLeafBits);
        leaf.old = 0;
        leaf.word.fill(0);
        leaf.word[(own.base - leaf.base) / 64] = std::uint64_t{1} << (own.base % 64);
        return update_leaf(leaf, slot, first, last);
      }
      // A node above both. Below it `e` is a child: the node is the lowest that holds more than `e`.
      Node node;
      clear(node, level_for(std::min(first, own.base), std::max(last, own.last())), first);
      node.child[digit_of(own.base, node.level)] = e;
      return update_node(node, first, last);
    }
  }
  if (!set_) return Entry{0};
  if (base_of(first, kLeafBits) == base_of(last, kLeafBits)) {
    Leaf leaf;
    leaf.base = base_of(first, kLeafBits);
    leaf.old = 0;
    leaf.word.fill(0);
    return update_leaf(leaf, slot, first, last);
  }
  Node node;
  clear(node, level_for(first, last), first);
  return update_node(node, first, last);
}

Result<Entry> Change::update_within(Entry e, Span own, Span slot, std::uint64_t first, std::uint64_t last) {
  if (tag_of(e) == Tag::Block && set_) return e;
  if (own.order == kLeafBits) {
    Leaf leaf;
    unpack(leaf, e, own);
    return update_leaf(leaf, slot, first, last);
  }
  Node node;
  LUO_CHECK(own.order > kLeafBits);  // one page cannot be changed in part
  if (tag_of(e) == Tag::Block) {
    clear(node, own.order == kAllBits ? kTopLevel : (own.order - kLeafBits) / kDigitBits, own.base);
    for (unsigned n = 0; n < fan_out(node.level); ++n) {
      const Span child = child_span(own.base, node.level, n);
      node.child[n] = block_entry(child.base, child.order);
    }
  } else {
    unpack(node, e);
  }
  return update_node(node, first, last);
}

Result<Entry> Change::update_node(Node& node, std::uint64_t first, std::uint64_t last) {
  for (unsigned n = digit_of(first, node.level); n <= digit_of(last, node.level); ++n) {
    const Span child = child_span(node.span.base, node.level, n);
    node.child[n] = LUO_TRY(update(node.child[n], child, std::max(first, child.base), std::min(last, child.last())));
  }
  return write(node);
}

Result<Entry> Change::update_leaf(Leaf& leaf, Span slot, std::uint64_t first, std::uint64_t last) {
  const auto from = static_cast<unsigned>(first - leaf.base), to = static_cast<unsigned>(last - leaf.base);
  leaf.first_word = from / 64;
  leaf.last_word = to / 64;
  for (unsigned n = leaf.first_word; n <= leaf.last_word; ++n) {
    std::uint64_t mask = ~std::uint64_t{0};
    if (n == leaf.first_word) mask &= ~std::uint64_t{0} << (from % 64);
    if (n == leaf.last_word) mask &= ~std::uint64_t{0} >> (63 - to % 64);
    std::uint64_t& word = leaf.word[n];
    if (set_) {
      more_ += ones(mask & ~word);
      word |= mask;
    } else {
      fewer_ += ones(mask & word);
      word &= ~mask;
    }
  }
  return write(leaf, slot);
}

Result<Entry> Change::write(const Node& node) {
  std::array<std::uint64_t, 66> words;
  std::size_t n = 2;
  std::uint64_t present = 0;
  unsigned full = 0;
  for (unsigned digit = 0; digit < fan_out(node.level); ++digit) {
    const Entry e = node.child[digit];
    if (e == 0) continue;
    present |= std::uint64_t{1} << digit;
    words[n++] = e;
    if (tag_of(e) == Tag::Block && block_order(e) == child_order(node.level)) ++full;
  }
  const bool is_full = full == fan_out(node.level);
  if (present == 0 || is_full || (n == 3 && tag_of(words[2]) != Tag::Dense)) {
    tx_.release(ref_of(node.old));
    return present == 0 ? 0 : is_full ? block_entry(node.span.base, node.span.order) : words[2];
  }
  words[0] = node.span.base | kNodeMark | node.level;
  words[1] = present;
  return replace(node.old, Tag::Node, words.data(), n * 8);
}

Result<Entry> Change::write(const Leaf& leaf, Span slot) {
  std::array<std::uint64_t, 1 + 8 + kLeafWords> sparse;
  std::array<std::uint64_t, 8> masks{};
  unsigned pages = 0, used = 0, groups = 0;
  std::uint64_t one = 0;
  for (unsigned n = 0; n < kLeafWords; ++n) {
    if (leaf.word[n] == 0) continue;
    pages += ones(leaf.word[n]);
    ++used;
    masks[n / 64] |= std::uint64_t{1} << (n % 64);
    groups |= 1U << (n / 64);
    one = leaf.base + n * 64 + static_cast<unsigned>(std::countr_zero(leaf.word[n]));
  }
  const bool is_reference = leaf.old != 0 && tag_of(leaf.old) != Tag::Block;
  if (pages < 2 || pages == kLeafWords * 64) {
    if (is_reference) tx_.release(ref_of(leaf.old));
    return pages == 0 ? 0 : pages == 1 ? block_entry(one, 0) : block_entry(leaf.base, kLeafBits);
  }
  const Entry old = is_reference ? leaf.old : 0;
  const std::size_t bytes = 8 * (std::size_t{1} + ones(groups) + used);
  if (bytes > (tag_of(old) == Tag::Dense ? kSparseAgain : kSparseLimit)) {
    if (tag_of(old) == Tag::Dense) {
      std::uint64_t* words = arena_.get(ref_of(old)) + leaf.first_word;
      const std::size_t changed = (leaf.last_word - leaf.first_word + 1) * std::size_t{8};
      tx_.save(words, changed);
      std::memcpy(words, leaf.word.data() + leaf.first_word, changed);
      return old;
    }
    const Entry dense = LUO_TRY(replace(old, Tag::Dense, leaf.word.data(), kDenseBytes));
    if (slot.order == kLeafBits) return dense;
    Node above;  // that says where it lies
    clear(above, 1, leaf.base);
    above.child[digit_of(leaf.base, 1)] = dense;
    return write(above);
  }
  std::size_t at = 0;
  sparse[at++] = leaf.base | kLeafMark | groups;
  for (const std::uint64_t mask : masks)
    if (mask != 0) sparse[at++] = mask;
  for (const std::uint64_t word : leaf.word)
    if (word != 0) sparse[at++] = word;
  return replace(old, Tag::Sparse, sparse.data(), bytes);
}

// In place if it is of the same kind and size class, else a fresh block, which is not logged.
Result<Entry> Change::replace(Entry old, Tag tag, const std::uint64_t* words, std::size_t bytes) {
  if (tag_of(old) == tag && bytes <= kInPlace &&
      kSizeClasses[class_for(bytes)].bytes == arena_.usable_size(ref_of(old).addr())) {
    std::uint64_t* at = arena_.get(ref_of(old));
    std::size_t first = 0, end = bytes / 8;
    while (first < end && at[first] == words[first]) ++first;
    while (first < end && at[end - 1] == words[end - 1]) --end;
    tx_.save(at + first, (end - first) * 8);
    std::memcpy(at + first, words + first, (end - first) * 8);
    return old;
  }
  const PhysAddr at = LUO_TRY(tx_.allocate(bytes));
  std::memcpy(arena_.get(Ref<std::uint64_t>{at.raw()}), words, bytes);
  tx_.release(ref_of(old));
  return ref_entry(at.raw(), tag);
}

Result<> Change::reclaim(unsigned blocks) {
  // Not less than a change may need is left to those that follow in the same transaction.
  const std::size_t room = tx_.room();
  const std::size_t keep = PageTracker::kRoom;
  const std::size_t affordable = room > keep ? (room - keep) / kRoomForARelease : 0;
  for (std::size_t left = std::min<std::size_t>(blocks, affordable); left > 0; --left) {
    if (garbage_.empty()) {
      if (record_.garbage == 0) return {};
      const Ref<std::uint64_t> list{record_.garbage};
      const std::uint64_t* words = arena_.get(list);
      garbage_.assign(words + 2, words + 2 + words[1]);
      tx_.set(record_.garbage, words[0]);
      tx_.release(list);
      continue;
    }
    const Entry e = garbage_.back();
    garbage_.pop_back();
    if (tag_of(e) == Tag::Node) {
      const std::uint64_t* node = arena_.get(ref_of(e));
      for (unsigned n = 0; n < ones(node[1]); ++n)
        if (tag_of(node[2 + n]) != Tag::Block) garbage_.push_back(node[2 + n]);
    }
    tx_.release(ref_of(e));
  }
  if (garbage_.empty()) return {};
  const PhysAddr at = LUO_TRY(tx_.allocate(16 + garbage_.size() * 8));
  std::uint64_t* words = arena_.get(Ref<std::uint64_t>{at.raw()});
  words[0] = record_.garbage;
  words[1] = garbage_.size();
  std::memcpy(words + 2, garbage_.data(), garbage_.size() * 8);
  tx_.set(record_.garbage, at.raw());
  garbage_.clear();
  return {};
}

void Change::clear(Node& node, unsigned level, std::uint64_t page) noexcept {
  node.span = {base_of(page, node_order(level)), node_order(level)};
  node.level = level;
  node.old = 0;
  node.child.fill(0);
}

void Change::unpack(Node& node, Entry e) const noexcept {
  const std::uint64_t* words = arena_.get(ref_of(e));
  clear(node, node_level(words[0]), head_base(words[0]));
  node.old = e;
  const std::uint64_t* child = words + 2;
  for_each_bit(words[1], [&](unsigned digit) { node.child[digit] = *child++; });
}

void Change::unpack(Leaf& leaf, Entry e, Span own) const noexcept {
  leaf.base = own.base;
  leaf.old = e;
  switch (tag_of(e)) {
    case Tag::Block: leaf.word.fill(~std::uint64_t{0}); break;
    case Tag::Dense: std::memcpy(leaf.word.data(), arena_.get(ref_of(e)), kDenseBytes); break;
    default:
      leaf.word.fill(0);
      SparseView{arena_.get(ref_of(e))}.for_each([&](unsigned n, std::uint64_t word) { leaf.word[n] = word; });
  }
}

}  // namespace luo::kho::pages
