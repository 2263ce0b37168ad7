// Hash tables in the arena: open addressing with linear probing, {hash, ref} slots, at most half full.
// Keys lie in the records that the refs name; their hashes are keyed (SipHash), so that no peer can make
// them collide. O(1) expected; a removal shifts its cluster back, so there are no tombstones.
#pragma once
#include <cstdint>

#include "base/error.h"
#include "kho/arena.h"
#include "luo/records.h"

namespace luo {

/// A view; costs nothing to make.
class Table {
 public:
  Table(kho::Arena& arena, TableRecord& record) noexcept : arena_{&arena}, record_{&record} {}

  /// The first ref with this hash for which `matches(ref)` holds; 0 if none.
  template <class Matches>
  std::uint64_t find(std::uint64_t hash, Matches&& matches) const {
    if (record_->capacity == 0) return 0;
    const TableSlot* slots = arena_->get(record_->slots);
    const std::uint64_t mask = record_->capacity - 1;
    for (std::uint64_t i = hash & mask; slots[i].ref != 0; i = (i + 1) & mask)
      if (slots[i].hash == hash && matches(slots[i].ref)) return slots[i].ref;
    return 0;
  }
  bool contains(std::uint64_t hash, std::uint64_t ref) const noexcept {
    return find(hash, [ref](std::uint64_t found) { return found == ref; }) != 0;
  }

  /// Makes sure that one insert has room: O(1) amortised. A bigger table is written into a fresh block, so
  /// that the log takes only the pointer to it. Errors: ENOMEM.
  Result<> reserve(kho::Tx& tx);
  /// After reserve() in the same transaction. `ref` is not 0; an equal pair may stand twice.
  void insert(kho::Tx& tx, std::uint64_t hash, std::uint64_t ref) noexcept;
  /// Takes one such pair out. False: there is none.
  bool remove(kho::Tx& tx, std::uint64_t hash, std::uint64_t ref) noexcept;
  /// Gives the block back; the table is empty then.
  void release(kho::Tx& tx) noexcept;

  /// Bounds, and that `count` slots are occupied, each where find() looks for it. O(capacity).
  Result<> check(std::string_view name) const;
  /// The part of it that costs nothing: that the slots are where they can be looked at.
  Result<> check_shape(std::string_view name) const;

 private:
  Result<> rebuild(kho::Tx& tx, std::uint64_t capacity);

  kho::Arena* arena_;
  TableRecord* record_;
};

}  // namespace luo
