// Which pages are preserved: a set of page numbers (52 bits), kept in an arena and changed by transactions.
//
// A radix tree. Below it leaves of 32768 pages each, as a bitmap (4 KiB) or, where few words of that are used,
// those words alone; above it nodes of up to 64 children that say how high they stand, so that no level has
// one child only. A page that is alone, and everything that is whole (32768 pages, 64 times as much, ...),
// lies in its parent's entry and takes no block of its own.
//
//   memory    at most 1 bit for each preserved page and 1 % of the preserved memory (41 bytes for each page),
//             in any pattern, once there are two pages; a densely and irregularly used range: 1 bit for each
//             page of it and 1 % of that
//   log       a change of a range of any size takes less than kRoom of the undo log: what it makes superfluous
//             is put aside as a whole, and released some blocks at a time by the changes that follow, or by tidy()
//   time      O(levels) for a page; for a range, also O(what lay in it)
//
// As in the kernel's preserved-memory tree, changes are idempotent. Other than there, a block is the same as
// its pages: a page that was preserved as part of a block can be unpreserved alone.
//
// The record hangs wherever the application hangs it: from a root slot, or a field of a record of its own.
// Used from the arena's thread.
#pragma once
#include <cstdint>
#include <functional>

#include "kho/arena.h"

namespace luo::kho {

/// What the application's Ref leads to. All fields are the tracker's.
struct PagesRecord {
  std::uint64_t magic;
  std::uint64_t root;     ///< an entry, see pages_format.h
  std::uint64_t count;    ///< preserved pages
  std::uint64_t garbage;  ///< blocks that wait to be released
};
static_assert(sizeof(PagesRecord) == 32);

/// A view of a record; copies are the same tracker. Does not own the arena, which must not be moved meanwhile.
class PageTracker {
 public:
  static constexpr unsigned kPageBits = 52;  ///< page numbers lie below 2^52
  static constexpr std::uint64_t kPages = std::uint64_t{1} << kPageBits;
  static constexpr std::size_t kRoom = std::size_t{256} << 10;  ///< of the log, that a change wants to see

  /// An empty tracker. The caller hangs the record somewhere in the same transaction. ENOMEM.
  static Result<Ref<PagesRecord>> create(Tx& tx, Arena& arena);

  /// Reads what another process may have left, with check(): O(blocks). EBADMSG.
  static Result<PageTracker> open(Arena& arena, Ref<PagesRecord> record);

  /// Releases some of it, until the transaction's room is used up; true: all of it, the record too. Until then
  /// the caller must go on in further transactions; the set is empty from the first one on. ENOMEM, ENOBUFS.
  Result<bool> destroy(Tx& tx);

  /// The pages [first, first + count) are preserved, or no longer; whether they were does not matter. Takes
  /// effect whole, or, with an error, not at all. Errors: ERANGE (pages from 2^52 on), ENOMEM, ENOBUFS (less
  /// than kRoom of the transaction's log is left: commit, and go on in another one).
  Result<> preserve(Tx& tx, std::uint64_t first, std::uint64_t count = 1);
  Result<> unpreserve(Tx& tx, std::uint64_t first, std::uint64_t count = 1);

  /// The same for the 2^order pages from `first` on. Also EINVAL: not aligned to its size.
  Result<> preserve_block(Tx& tx, std::uint64_t first, unsigned order);
  Result<> unpreserve_block(Tx& tx, std::uint64_t first, unsigned order);

  bool is_preserved(std::uint64_t page) const noexcept;
  std::uint64_t count() const noexcept;

  /// Calls `range(first, count)` for each longest run of preserved pages, in ascending order. Nothing may be
  /// changed meanwhile.
  void for_each_range(const std::function<void(std::uint64_t first, std::uint64_t count)>& range) const;

  /// Releases what earlier changes have put aside, as far as the room goes. True: nothing is left. ENOMEM.
  Result<bool> tidy(Tx& tx);

  /// Every block, entry and bit; that no block is used twice; that the count is right. O(blocks). EBADMSG.
  Result<> check() const;

 private:
  PageTracker(Arena& arena, PagesRecord* record) noexcept : arena_{&arena}, record_{record} {}
  Result<> change(Tx& tx, std::uint64_t first, std::uint64_t count, bool set);

  Arena* arena_;
  PagesRecord* record_;
};

}  // namespace luo::kho
