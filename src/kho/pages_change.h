// One change of a PageTracker: a range is set or cleared, and what it touches is written anew or in place.
#pragma once
#include <array>
#include <vector>

#include "kho/pages_format.h"

namespace luo::kho::pages {

class Change {
 public:
  Change(Arena& arena, Tx& tx, PagesRecord& record, bool set) noexcept
      : arena_{arena}, tx_{tx}, record_{record}, set_{set} {}

  /// Pages first .. last. On error the caller takes the transaction back.
  Result<> run(std::uint64_t first, std::uint64_t last);

  /// Releases up to `blocks` of what nothing leads to any more, as far as the log goes, and notes the rest.
  Result<> reclaim(unsigned blocks);

 private:
  struct Node {  // unpacked
    Span span;
    unsigned level;
    Entry old;  // None: it is new
    std::array<Entry, 64> child;
  };
  struct Leaf {
    std::uint64_t base;
    Entry old;
    unsigned first_word, last_word;  // that were changed
    std::array<std::uint64_t, kLeafWords> word;
  };

  Span extent(Entry e, Span slot) const noexcept;
  std::uint64_t pages_in(Entry e) const noexcept;
  void drop(Entry e);

  /// What takes the place of `e`, which is in a slot for `slot`; first .. last lie in there.
  Result<Entry> update(Entry e, Span slot, std::uint64_t first, std::uint64_t last);
  Result<Entry> update_within(Entry e, Span own, Span slot, std::uint64_t first, std::uint64_t last);
  Result<Entry> update_node(Node& node, std::uint64_t first, std::uint64_t last);
  Result<Entry> update_leaf(Leaf& leaf, Span slot, std::uint64_t first, std::uint64_t last);
  Result<Entry> write(const Node& node);
  Result<Entry> write(const Leaf& leaf, Span slot);
  Result<Entry> replace(Entry old, Tag tag, const std::uint64_t* words, std::size_t bytes);

  static void clear(Node& node, unsigned level, std::uint64_t page) noexcept;
  void unpack(Node& node, Entry e) const noexcept;
  void unpack(Leaf& leaf, Entry e, Span own) const noexcept;

  Arena& arena_;
  Tx& tx_;
  PagesRecord& record_;
  bool set_;
  std::uint64_t more_ = 0, fewer_ = 0;  ///< pages
  std::vector<Entry> garbage_;
};

}  // namespace luo::kho::pages
