#include "kho/pages.h"

#include "kho/pages_change.h"
#include "kho/pages_format.h"

namespace luo::kho {

using namespace pages;

namespace {

/// The word in which the page's bit lies; nullptr if there is none, and then whether it is preserved.
struct Found {
  const std::uint64_t* word;
  bool preserved;
};

Found find(const Arena& arena, Entry e, std::uint64_t page) noexcept {
  for (;;) {
    switch (tag_of(e)) {
      case Tag::Block: return {nullptr, base_of(page, block_order(e)) == block_page(e)};
      case Tag::Node: {
        const std::uint64_t* node = arena.get(ref_of(e));
        const unsigned level = node_level(node[0]), digit = digit_of(page, level);
        if (base_of(page, node_order(level)) != head_base(node[0]) || (node[1] >> digit & 1U) == 0)
          return {nullptr, false};
        e = node[2 + rank(node[1], digit)];
        continue;
      }
      case Tag::Sparse: {
        const SparseView leaf{arena.get(ref_of(e))};
        if (head_base(leaf.words[0]) != base_of(page, kLeafBits)) return {nullptr, false};
        const std::uint64_t* word = leaf.find(static_cast<unsigned>(page & kLowBits) / 64);
        return {word, word != nullptr && (*word >> (page % 64) & 1U) != 0};
      }
      case Tag::Dense: {
        const std::uint64_t* word = arena.get(ref_of(e)) + (page & kLowBits) / 64;
        return {word, (*word >> (page % 64) & 1U) != 0};
      }
      case Tag::None: break;
    }
    return {nullptr, false};
  }
}

/// Joins what touches; the last run waits for its neighbour.
class Runs {
 public:
  explicit Runs(const std::function<void(std::uint64_t, std::uint64_t)>& range) noexcept : range_{range} {}
  void add(std::uint64_t first, std::uint64_t count) {
    if (count_ != 0 && first_ + count_ == first) {
      count_ += count;
      return;
    }
    end();
    first_ = first;
    count_ = count;
  }
  void add_word(std::uint64_t first, std::uint64_t word) {
    for (unsigned at = 0; word != 0;) {
      const auto gap = static_cast<unsigned>(std::countr_zero(word));
      const auto run = static_cast<unsigned>(std::countr_one(word >> gap));
      add(first + at + gap, run);
      if (gap + run >= 64) break;
      word >>= gap + run;
      at += gap + run;
    }
  }
  void end() {
    if (count_ != 0) range_(first_, count_);
    count_ = 0;
  }

 private:
  const std::function<void(std::uint64_t, std::uint64_t)>& range_;
  std::uint64_t first_ = 0, count_ = 0;
};

void walk(const Arena& arena, Entry e, std::uint64_t slot_base, Runs& runs) {
  switch (tag_of(e)) {
    case Tag::None: break;
    case Tag::Block: runs.add(block_page(e), std::uint64_t{1} << block_order(e)); break;
    case Tag::Node: {
      const std::uint64_t* node = arena.get(ref_of(e));
      const std::uint64_t* child = node + 2;
      for_each_bit(node[1], [&](unsigned digit) {
        walk(arena, *child++, child_span(head_base(node[0]), node_level(node[0]), digit).base, runs);
      });
      break;
    }
    case Tag::Sparse: {
      const SparseView leaf{arena.get(ref_of(e))};
      const std::uint64_t base = head_base(leaf.words[0]);
      leaf.for_each([&](unsigned number, std::uint64_t word) { runs.add_word(base + number * 64U, word); });
      break;
    }
    case Tag::Dense: {
      const std::uint64_t* words = arena.get(ref_of(e));
      for (std::size_t n = 0; n < kLeafWords; ++n)
        if (words[n] != 0) runs.add_word(slot_base + n * 64, words[n]);
      break;
    }
  }
}

}  // namespace

Result<Ref<PagesRecord>> PageTracker::create(Tx& tx, Arena& arena) {
  const Ref<PagesRecord> record = LUO_TRY_DURING("make page tracker", tx.make<PagesRecord>());
  arena.get(record)->magic = kMagic;
  return record;
}

Result<PageTracker> PageTracker::open(Arena& arena, Ref<PagesRecord> record) {
  PagesRecord* at = arena.checked(record);
  if (at == nullptr) return fail(EBADMSG, "open page tracker: no record at {:#x}", record.at);
  const PageTracker tracker{arena, at};
  LUO_TRY_DURING("open page tracker", tracker.check());
  return tracker;
}

Result<> PageTracker::change(Tx& tx, std::uint64_t first, std::uint64_t count, bool set) {
  if (count == 0) return {};
  if (first >= kPages || count > kPages - first)
    return fail(ERANGE, "{} {} pages from {:#x} on: page numbers have {} bits", set ? "preserve" : "unpreserve", count,
                first, kPageBits);
  if (tx.room() < kRoom)
    return fail(ENOBUFS, "{} pages: {} bytes of the transaction's log are left, {} may be needed",
                set ? "preserve" : "unpreserve", tx.room(), kRoom);
  if (count == 1) {
    const Found found = find(*arena_, record_->root, first);
    if (found.preserved == set) return {};
    if (found.word != nullptr) {
      // In place, as long as the form stays: no word that becomes empty, no leaf that becomes full or one page.
      auto& word = const_cast<std::uint64_t&>(*found.word);
      const std::uint64_t bit = std::uint64_t{1} << (first % 64);
      const std::uint64_t changed = word ^ bit;
      if (set ? changed != ~std::uint64_t{0} : ones(changed) > 1) {
        tx.set(word, changed);
        tx.set(record_->count, set ? record_->count + 1 : record_->count - 1);
        return {};
      }
    }
  }
  const Tx::Mark mark = tx.mark();
  Change step{*arena_, tx, *record_, set};
  auto done = step.run(first, first + (count - 1));
  if (!done) tx.back_to(mark);
  return done;
}

Result<> PageTracker::preserve(Tx& tx, std::uint64_t first, std::uint64_t count) {
  return change(tx, first, count, true);
}
Result<> PageTracker::unpreserve(Tx& tx, std::uint64_t first, std::uint64_t count) {
  return change(tx, first, count, false);
}

namespace {
Result<> aligned(std::uint64_t first, unsigned order) {
  if (order > PageTracker::kPageBits) return fail(ERANGE, "block of order {}", order);
  if (base_of(first, order) != first) return fail(EINVAL, "block of order {} at page {:#x}: not aligned", order, first);
  return {};
}
}  // namespace

Result<> PageTracker::preserve_block(Tx& tx, std::uint64_t first, unsigned order) {
  LUO_TRY(aligned(first, order));
  return change(tx, first, std::uint64_t{1} << order, true);
}
Result<> PageTracker::unpreserve_block(Tx& tx, std::uint64_t first, unsigned order) {
  LUO_TRY(aligned(first, order));
  return change(tx, first, std::uint64_t{1} << order, false);
}

bool PageTracker::is_preserved(std::uint64_t page) const noexcept {
  return page < kPages && find(*arena_, record_->root, page).preserved;
}

std::uint64_t PageTracker::count() const noexcept { return record_->count; }

void PageTracker::for_each_range(const std::function<void(std::uint64_t, std::uint64_t)>& range) const {
  Runs runs{range};
  walk(*arena_, record_->root, 0, runs);
  runs.end();
}

Result<bool> PageTracker::tidy(Tx& tx) {
  const Tx::Mark mark = tx.mark();
  Change step{*arena_, tx, *record_, false};
  auto done = step.reclaim(~0U);
  if (!done) {
    tx.back_to(mark);
    return std::unexpected(std::move(done).error());
  }
  return record_->garbage == 0;
}

Result<bool> PageTracker::destroy(Tx& tx) {
  LUO_TRY(unpreserve(tx, 0, kPages));
  if (!LUO_TRY(tidy(tx))) return false;
  tx.release(arena_->ref_of(record_));
  return true;
}

}  // namespace luo::kho
