// "The same file twice is EBUSY": which file it is that is preserved already. Most kinds are known by
// their inode: a hash table. Kinds whose objects share an inode (eventfd) or have several ends on one (a
// pipe) are told apart by kcmp(2): for each inode a treap ordered by it, so O(log n) of these calls for
// each new file and none to remove one. The order holds as long as the files are open, and they are: a
// record leaves its tree before its descriptor is closed.
#pragma once
#include "luo/records.h"
#include "luo/table.h"

namespace luo {

class Identities {
 public:
  Identities(kho::Arena& arena, RootRecord& root) noexcept : arena_{&arena}, root_{&root} {}

  /// Where a file belongs, or who has its place. Valid until the next change of the tables.
  struct Spot {
    Ref<FileRecord> same;  ///< preserved already
    Ref<TreeRecord> tree;
    Ref<FileRecord> parent;
    bool left = false;
    std::uint64_t hash = 0;
  };

  /// Room for one more. Errors: ENOMEM.
  Result<> reserve(kho::Tx& tx);
  /// `fd` is the new file. Errors: of kcmp(2) (ENOSYS, EPERM: the kernel or a filter has none).
  Result<Spot> find(const Identity& identity, int fd) const;
  /// Enters a file, whose record is of this transaction, at the spot that find() gave for it. Errors: ENOMEM.
  Result<> insert(kho::Tx& tx, const Spot& spot, const Identity& identity, Ref<FileRecord> file);
  /// Nothing if it is not entered.
  void remove(kho::Tx& tx, Ref<FileRecord> file) noexcept;

  /// Whether the file's own entry is there and, of a tree, well linked. O(1).
  bool has(Ref<FileRecord> file) const noexcept;
  std::uint64_t hash_of(std::uint64_t group, std::uint64_t object) const noexcept;
  std::uint64_t priority_of(Ref<FileRecord> file) const noexcept;

 private:
  Table plain() const noexcept { return {*arena_, root_->identities}; }
  Table trees() const noexcept { return {*arena_, root_->trees}; }
  void lift(kho::Tx& tx, TreeRecord& tree, Ref<FileRecord> node) noexcept;
  void replace_child(kho::Tx& tx, TreeRecord& tree, Ref<FileRecord> parent, Ref<FileRecord> from,
                     Ref<FileRecord> to) noexcept;

  kho::Arena* arena_;
  RootRecord* root_;
};

/// kcmp(2) of two of our own descriptors: 0 the same open file, < 0 and > 0 its order.
Result<int> compare_files(int a, int b);

}  // namespace luo
