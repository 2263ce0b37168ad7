// Memory that is handed over: blocks, and scattered memory of any size as lists of blocks.
//
// Every block belongs to a subtree, and every subtree to an epoch. An epoch is a life of the application: the
// one that runs preserves memory, advance() ends its epoch (before an exec, or at the start of a successor that
// takes over from a dead one), and the next one claims the subtrees that it wants, and restores what is in them.
//
//   one epoch     make_subtree -> alloc_preserve ... -> unpreserve_free, of what is not wanted any more
//   advance()     O(1): what was of this epoch is incoming; what was incoming and nobody claimed is given up
//   the next one  claim -> restore (the block is the caller's own from then on), restore_free, or neither:
//                 what is not restored stays preserved, in the claimer's epoch
//
// A claim happens once for each epoch and is O(1) for a subtree of any size. It is part of a transaction, and so
// outlives the claimer's death: the subtree stays of the epoch in which it was claimed, and is given to nobody
// else before the next advance().
//
// What it says of a subtree or an item that was given up holds until tidy() has released the record.
//
// All changes happen in the caller's transaction. Each takes less than kRoom of its log (ENOBUFS if that is not
// left); what can be larger, filling a long list and giving memory up, goes in steps: fill() and tidy().
// Records hang where the application likes. Used from the arena's thread.
#pragma once
#include <functional>

#include "kho/arena.h"

namespace luo::kho {

/// First and last of a list that runs through its records.
struct PreservedLink {
  std::uint64_t first, last;
};

/// The names of subtrees: a flattened device tree (subtrees.h).
struct PreservedNames {
  std::uint64_t at;     ///< 0: there are none
  std::uint64_t bytes;  ///< of the tree; its block may be larger
  std::uint64_t sum;    ///< XXH3 of these
};

/// What the application's Ref leads to. These three are PreservedMemory's own: others may read them.
struct PreservedRoot {
  std::uint64_t magic;
  std::uint64_t epoch;                    ///< from 2 on
  PreservedLink current, incoming, gone;  ///< subtrees
  std::uint64_t garbage;                  ///< items whose blocks wait to be released
  PreservedNames names;
};

struct PreservedSubtree {
  std::uint64_t magic;
  std::uint64_t epoch;    ///< in which it was made or claimed; 0: dropped
  std::uint64_t claimer;  ///< 0: made in that epoch
  std::uint64_t previous, next;
  PreservedLink items;
  std::uint64_t count;  ///< of items
  std::uint64_t blob;   ///< the item that its name leads to; 0: it has no name
};

struct PreservedItem {
  std::uint64_t magic;
  std::uint64_t subtree;
  std::uint64_t previous, next;
  std::uint64_t epoch;        ///< in which it was preserved
  std::uint64_t first, last;  ///< the block; or the list's chunks
  std::uint64_t size;         ///< in bytes; of a list: in blocks
  std::uint64_t have;         ///< of a list: blocks that are there
  std::uint32_t scattered;    ///< 1: a list
  std::uint32_t order;        ///< a list's blocks have 4096 << order bytes
};

/// A scattered memory that was restored: the caller's own, to be kept in a record of his. Trivially copyable.
struct ScatteredMemory {
  std::uint64_t first;   ///< chunk
  std::uint64_t blocks;  ///< in all chunks
  std::uint32_t order;   ///< of each: 4096 << order bytes
  std::uint32_t zero;
};

/// A view of a root record. Does not own the arena, which must not be moved meanwhile.
class PreservedMemory {
 public:
  static constexpr std::size_t kRoom = std::size_t{128} << 10;  ///< of the log, that a change wants to see
  static constexpr unsigned kMaxOrder = 20;
  using Item = Ref<PreservedItem>;
  using Subtree = Ref<PreservedSubtree>;

  /// ENOMEM.
  static Result<Ref<PreservedRoot>> create(Tx& tx, Arena& arena);
  /// With check(). EBADMSG.
  static Result<PreservedMemory> open(Arena& arena, Ref<PreservedRoot> root);

  std::uint64_t epoch() const noexcept;

  /// Ends the epoch, in the place of those that have claimed or made subtrees in it. O(1), with names O(names).
  /// EINVAL: these are damaged.
  Result<> advance(Tx& tx);

  /// Of this epoch, empty. ENOMEM.
  Result<Subtree> make_subtree(Tx& tx);
  /// Takes an incoming subtree over into this epoch; `claimer` (not 0) is the caller's name for himself. O(1).
  /// Errors: EALREADY (he has it), EBUSY (somebody else has), EINVAL (it was made in this epoch; claimer 0),
  /// ENOENT (none is there, or it has been given up).
  Result<> claim(Tx& tx, Subtree subtree, std::uint64_t claimer);
  /// Gives a subtree of this epoch, or an incoming one, up, with everything in it, and its name. O(1), with a name
  /// O(names); see tidy(). ENOENT; EINVAL: the names are damaged.
  Result<> drop(Tx& tx, Subtree subtree);

  // In all that follows: ENOENT: no such item or subtree, or it has been given up or restored; EBUSY: its subtree
  // is incoming and not claimed, or the item is what a name leads to; EINVAL: the item is of the other kind, or of
  // the other side: what this epoch has preserved is unpreserved, what an earlier one has, restored.

  /// A block of zeros, preserved. Errors: EINVAL (0 bytes), ENOMEM.
  Result<Item> alloc_preserve(Tx& tx, Subtree subtree, Bytes size);
  /// Its address, while it is preserved; "none" if `item` is no such block.
  PhysAddr address(Item item) const noexcept;
  Result<> unpreserve_free(Tx& tx, Item item);
  /// From here on the block is the caller's own: its address, for Tx::release() one day.
  Result<PhysAddr> restore(Tx& tx, Item item);
  Result<> restore_free(Tx& tx, Item item);

  /// Scattered memory of `blocks` blocks of zeros, 4096 << order bytes each. It is there at once and grows by
  /// fill(). Errors: EINVAL (0 blocks), E2BIG (order), ENOMEM.
  Result<Item> alloc_preserve_scattered(Tx& tx, Subtree subtree, std::uint64_t blocks, unsigned order);
  /// Adds blocks until all are there (true), or the transaction's log is nearly full (false: commit, and call it
  /// again in another one). ENOMEM: as before the call.
  Result<bool> fill(Tx& tx, Item item);
  Result<> unpreserve_free_scattered(Tx& tx, Item item);  ///< O(1); see tidy()
  /// The caller's own from here on. Also EINVAL: it was never filled.
  Result<ScatteredMemory> restore_scattered(Tx& tx, Item item);
  Result<> restore_free_scattered(Tx& tx, Item item);  ///< O(1); see tidy()

  /// What is in an item that is preserved (which may not be filled), in order. ENOENT, EINVAL.
  Result<> for_each_block(Item item, const std::function<void(PhysAddr)>& block) const;
  /// The same of one that was restored. EBADMSG: it leads elsewhere.
  Result<> for_each_block(const ScatteredMemory& memory, const std::function<void(PhysAddr)>& block) const;
  /// Gives a restored one up; see tidy(). It is looked through before. ENOMEM, EBADMSG (it leads elsewhere).
  Result<> free_scattered(Tx& tx, const ScatteredMemory& memory);

  /// All that is of this epoch or incoming, each in the order in which it was made or claimed. Nothing may be
  /// changed meanwhile.
  void for_each_subtree(const std::function<void(Subtree)>& subtree) const;
  /// What is in one, in the order in which it was preserved. ENOENT.
  Result<> for_each_item(Subtree subtree, const std::function<void(Item)>& item) const;

  /// Releases memory that was given up, as far as the log goes. True: all of it.
  Result<bool> tidy(Tx& tx);

  /// Every record, link and block. O(n). EBADMSG.
  Result<> check() const;

 private:
  friend class Subtrees;
  PreservedMemory(Arena& arena, PreservedRoot* root) noexcept : arena_{&arena}, root_{root} {}

  Result<PreservedSubtree*> find(Subtree subtree) const;
  Result<PreservedSubtree*> find_ours(Subtree subtree) const;
  Result<PreservedItem*> find(Item item, bool scattered) const;
  Result<PreservedItem*> find_on_side(Item item, bool scattered, bool earlier) const;
  Result<> room(const Tx& tx) const;
  Result<Item> add(Tx& tx, Subtree subtree, const PreservedItem& item);
  void take_out(Tx& tx, PreservedItem& item);
  void give_up(Tx& tx, PreservedItem& item);
  Result<> walk(std::uint64_t chunk, std::uint64_t blocks, unsigned order,
                const std::function<void(PhysAddr)>& block) const;
  Result<> forget_names(Tx& tx);
  PreservedLink& list_of(const PreservedSubtree& subtree) noexcept;

  Arena* arena_;
  PreservedRoot* root_;
};

}  // namespace luo::kho
