// Subtrees with names: what one life hands to the next under a name that both know.
//
//   one life      add("cache", bytes) -> fill the blob; more memory in its subtree, to which the blob leads
//   advance()     PreservedMemory's: what nobody claimed loses its name
//   the next one  claim("cache", me), or retrieve() to look first; remove() when it is done with
//
// Each name leads to a blob, arbitrary bytes, and to the preserved subtree that owns the blob. The names lie in
// the arena as a flattened device tree that any tool can read (device_tree.h). There is no step that finishes
// it: each change is part of the caller's transaction, so after a kill at any instruction the names are those
// of the last commit, and changes can be made at any time.
//
// A name is there once: it belongs to what is incoming until that is claimed, removed or given up. In order of
// adding. Meant for tens of names: all of them take at most 64 KiB, about 700, and finding one is O(names).
// Used from the arena's thread.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kho/vmalloc.h"

namespace luo::kho {

struct NamedSubtree {
  std::string name;
  PreservedMemory::Subtree subtree;
  PhysAddr blob;
  Bytes size;             ///< of the blob
  std::uint64_t claimer;  ///< the last one; 0: nobody since it was made
  bool incoming;          ///< not claimed yet in this epoch
};

/// A view of the names in a preserved memory; copies are the same. Does not own it.
/// Errors of all calls: EINVAL (the device tree is malformed: says how; nothing was changed). Of those with a
/// transaction: ENOBUFS (see PreservedMemory::kRoom).
class Subtrees {
 public:
  explicit Subtrees(const PreservedMemory& memory) noexcept : memory_{memory} {}

  PreservedMemory& memory() noexcept { return memory_; }

  /// A new subtree of this epoch with a blob of zeros; in the same transaction the blob may be written directly.
  /// Errors: EEXIST (the name is there, here or incoming), EINVAL (0 bytes; a name has 1 to 63 of letters, digits
  /// and ,._+- and starts with a letter or digit), ENOMEM (also: too many names).
  Result<NamedSubtree> add(Tx& tx, std::string_view name, Bytes size);
  /// The same with what the blob has in it.
  Result<NamedSubtree> add(Tx& tx, std::string_view name, std::span<const std::byte> blob);

  /// Gives the name up, the blob, and all that is in the subtree, whether it is claimed or not; see
  /// PreservedMemory::tidy(). ENOENT. Needs no memory.
  Result<> remove(Tx& tx, std::string_view name);

  /// Who it is and where its blob is. ENOENT.
  Result<NamedSubtree> retrieve(std::string_view name) const;

  /// Takes it over into this epoch, as PreservedMemory::claim() does, which is O(1) for who has the subtree.
  /// Errors: ENOENT, EALREADY, EBUSY, EINVAL (it was made in this epoch; claimer 0).
  Result<NamedSubtree> claim(Tx& tx, std::string_view name, std::uint64_t claimer);

  /// All of them, as they are now.
  Result<std::vector<NamedSubtree>> list() const;

  /// The device tree as it lies in the arena, until the next change; empty if there are no names. Not looked at.
  std::span<const std::byte> device_tree() const noexcept;

 private:
  Result<NamedSubtree> find(std::string_view name) const;

  PreservedMemory memory_;
};

}  // namespace luo::kho
