// The arena: memory that outlives the process, changed by transactions.
//
// A memfd, mapped once, MAP_SHARED, into a large reserved address range. Addresses inside it are
// offsets (PhysAddr), so that the next owner may map it anywhere. The memory outlives the process,
// so order of stores is enough for SIGKILL at any instruction; nothing is flushed.
//
//   0         header (4 KiB)     magic, byte order, page size, versions, sizes, roots (format.h)
//   4 KiB     control (4 KiB)    the application's own, outside transactions (Arena::control)
//   8 KiB     undo log           reserved, sparse; format independent of every layout version
//   ...       chunk table        which chunks have memory, a record and a bitmap of blocks for each
//   ...       heap               size classes in 64 KiB chunks, larger blocks as chunks of the buddy
//
// An Arena and its Tx are used from one thread at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"
#include "base/fd.h"
#include "base/strong.h"

namespace luo::kho {

/// What an application keeps in an arena, and in which version: checked at open.
struct Layout {
  char tag[16];           ///< NUL-padded, e.g. "luod"
  std::uint32_t version;  ///< changes when the application's records change
  friend bool operator==(const Layout&, const Layout&) = default;
};

/// What the kernel is asked to back the heap with. All hold the same; an arena keeps its kind.
enum class Pages : std::uint32_t {
  Normal = 0,
  /// Transparent huge pages (2 MiB), as far as the kernel has them (Linux 6.1; free memory in one piece): what it
  /// refuses stays as in Normal, and nothing fails. Fewer page faults after open() and TLB misses later, for slower
  /// growth, and up to 4 MiB of each released block stay with the arena.
  Huge = 1,
  /// Huge pages of 2 MiB out of the pool that the administrator has reserved (vm.nr_hugepages): there or not, never in
  /// part; never swapped. create() takes what all bookkeeping needs, 6 MiB and 0.9 % of max_size, so max_size should be
  /// what is needed; later an empty pool is an error of allocate(). max_size is rounded up to 2 MiB.
  Hugetlb = 2,
};

struct ArenaOptions {
  std::string_view name;  ///< shown in /proc as memfd:NAME
  Layout layout;
  Bytes max_size = 64_GiB;  ///< of the heap; a range reserved, memory is taken on demand. 1 MiB .. 16 TiB
  Pages pages = Pages::Normal;
};

/// A typed offset. Trivially copyable, fixed width: may be stored in the arena. 0 is "none".
template <class T>
struct Ref {
  std::uint64_t at = 0;
  explicit operator bool() const noexcept { return at != 0; }
  PhysAddr addr() const noexcept { return PhysAddr{at}; }
  friend bool operator==(Ref, Ref) = default;
};

struct ArenaStats {
  std::uint64_t max_bytes;        ///< of the heap
  std::uint64_t committed_bytes;  ///< of the heap that has memory, in use or not
  std::uint64_t used_bytes;       ///< in allocated blocks, rounded up to their class
  std::uint64_t blocks;           ///< allocated
};

/// What can be read from an arena's header without changing anything.
struct ArenaInfo {
  Layout layout;
  std::uint32_t format;   ///< of the arena itself
  Bytes committed;        ///< memory that the file has
  bool open_transaction;  ///< its owner died inside one; open() would roll it back
  Pages pages;
};

class Tx;

/// A mapping of an arena that is still its owner's, read in ahead of Arena::open(): see Arena::warm().
/// Sole owner of the mapping.
class WarmArena {
 public:
  WarmArena(WarmArena&&) noexcept;
  WarmArena& operator=(WarmArena&&) noexcept;
  ~WarmArena();

 private:
  friend class Arena;
  struct Impl;
  explicit WarmArena(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

class Arena {
 public:
  static constexpr unsigned kRoots = 8;
  static constexpr std::size_t kControlBytes = 4096;
  static constexpr std::size_t kControlOffset = 4096;  ///< of the control page, from the start of the mapping

  /// A new, empty arena in a memfd of its own (CLOEXEC). Errors: EINVAL (sizes), ENOMEM, EMFILE,
  /// ENOSPC (no memory for the first pages, or too few huge pages in the pool), and of Pages::Hugetlb what a kernel
  /// without them says: EINVAL, ENODEV, ENOSYS.
  static Result<Arena> create(const ArenaOptions& options);

  /// Takes over an arena that another process left: checks the header and the chunk table's bounds,
  /// then rolls an open transaction back. Errors: EBADMSG (damaged; says what and where), EPROTO
  /// (another layout, byte order, page size or format; names both), ENOMEM, EINVAL (not a memfd), ENOSPC
  /// (Pages::Hugetlb: it lacks huge pages that it should have, and so does the pool).
  /// On error nothing has been written. O(chunks in use): bitmaps and blocks are left to check().
  static Result<Arena> open(Fd memfd, const Layout& expected);

  /// For a successor whose predecessor still writes: makes the mapping and brings its pages in, so that
  /// open() with it, once the predecessor has stopped, neither maps nor waits for them. Checks the
  /// header; writes nothing. O(memory of the arena), as is what open() saves. Errors as open().
  static Result<WarmArena> warm(FdRef memfd, const Layout& expected);
  /// As the other open(), in a mapping of the same memfd (EINVAL: of another one).
  static Result<Arena> open(Fd memfd, const Layout& expected, WarmArena mapping);

  /// Reads the header only; maps nothing, writes nothing. Errors as open(), but any layout is accepted.
  static Result<ArenaInfo> inspect(FdRef memfd);

  Arena(Arena&&) noexcept;  ///< Not while a Tx is open.
  Arena& operator=(Arena&&) noexcept;
  ~Arena();  ///< Unmaps and closes; does not roll back (there must be no Tx).

  FdRef fd() const noexcept;

  /// Gives the descriptor up and unmaps.
  Fd release() noexcept;

  /// The address of a block. Not checked: for offsets that came out of checked records.
  template <class T>
  T* get(Ref<T> ref) const noexcept {
    return ref ? reinterpret_cast<T*>(base_ + ref.at) : nullptr;
  }
  /// The same for offsets that may be damaged: nullptr unless `ref` is aligned for T and
  /// [ref, ref + bytes) lies in one allocated block. O(1).
  template <class T>
  T* checked(Ref<T> ref, std::size_t bytes = sizeof(T)) const noexcept {
    if (ref.at % alignof(T) != 0 || !is_allocated(PhysAddr{ref.at}, bytes)) return nullptr;
    return reinterpret_cast<T*>(base_ + ref.at);
  }
  template <class T>
  Ref<T> ref_of(const T* at) const noexcept {
    return at == nullptr ? Ref<T>{}
                         : Ref<T>{static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(at) - base_)};
  }
  /// Whether [at, at + bytes) lies in one allocated block. O(1), any `at`.
  bool is_allocated(PhysAddr at, std::size_t bytes) const noexcept;
  /// The usable size of the block at `at` (its class's size).
  std::size_t usable_size(PhysAddr at) const noexcept;

  /// Where the application's structures start. Changed with Tx::set_root.
  PhysAddr root(unsigned slot) const noexcept;

  /// 4 KiB outside all transactions: for what several processes write with atomics.
  std::span<std::byte, kControlBytes> control() const noexcept;

  ArenaStats stats() const noexcept;

  /// Walks the whole heap: every chunk, class list and free list, used + free = total. O(n).
  /// Errors: EBADMSG, says what and where.
  Result<> check() const;

 private:
  friend class Tx;
  friend class OpenTx;
  friend class WarmArena;
  struct Impl;
  explicit Arena(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
  std::byte* base_ = nullptr;
};

/// The transaction that somebody else has open, for what is called within it. Aborts if none is.
class OpenTx {
 public:
  explicit OpenTx(Arena& arena) noexcept;
  /// As Tx::save().
  void save(void* at, std::size_t n) noexcept;
  /// Changes when a transaction begins, is marked, or is taken back, in part or whole: what was saved under the same
  /// number is still saved, for every point to which the transaction can be taken back.
  std::uint64_t number() const noexcept;

 private:
  Arena* arena_;
};

/// One transaction: everything written through it happens, or nothing of it, whatever kills us.
///
///   Tx tx{arena};
///   auto block = LUO_TRY(tx.allocate(sizeof(Node)));   // fresh memory: write it directly
///   tx.set(list->head, new_head);                      // old bytes go to the undo log first
///   tx.commit();                                       // without it, the destructor undoes all
///
/// The log has a fixed size (4 MiB): a group of writes that could exceed it must be split, see
/// room(). Exceeding it is a broken invariant and aborts (the next open rolls back).
class Tx {
 public:
  /// A point to which this transaction can be taken back.
  struct Mark {
    std::uint64_t log_bytes;
    std::size_t releases;
  };

  explicit Tx(Arena& arena) noexcept;  ///< Aborts if one is open already.
  Tx(const Tx&) = delete;
  Tx& operator=(const Tx&) = delete;
  ~Tx();  ///< abort(), unless committed.

  /// A fresh block of at least `bytes` (1 .. arena size), aligned to 16 (to 64 KiB from 32 KiB on).
  /// Its content is undefined and is not logged: write it before anything committed points to it.
  /// O(1). Errors: ENOMEM (arena full, or the kernel has no memory).
  Result<PhysAddr> allocate(std::size_t bytes);
  template <class T>
  Result<Ref<T>> make() {
    static_assert(std::is_trivially_copyable_v<T>);
    auto at = allocate(sizeof(T));
    if (!at) return std::unexpected(std::move(at).error());
    std::memset(reinterpret_cast<std::byte*>(base_) + at->raw(), 0, sizeof(T));
    return Ref<T>{at->raw()};
  }
  /// Gives a block back, at commit: until then it stays allocated and its content stays as it is (so that
  /// the transaction can be taken back), and it is not used again. Memory of blocks from 1 MiB on goes back
  /// to the kernel after the commit. Aborts if no block starts there or it is released twice (the latter at
  /// commit); "none" is ignored. O(1).
  void release(PhysAddr block) noexcept;
  template <class T>
  void release(Ref<T> block) noexcept {
    release(block.addr());
  }

  /// Logs the old bytes; the caller may then write [at, at + n) as it likes. Aborts outside the heap.
  void save(void* at, std::size_t n) noexcept;
  /// Logs the old value and writes the new one.
  template <class T>
  void set(T& field, const std::type_identity_t<T>& value) noexcept {
    static_assert(std::is_trivially_copyable_v<T>);
    save(&field, sizeof(T));
    field = value;
  }
  void set_root(unsigned slot, PhysAddr at) noexcept;

  Mark mark() const noexcept;
  /// Undoes everything since the mark; the transaction stays open.
  void back_to(Mark mark) noexcept;

  /// Bytes left in the log, beyond what the releases need at commit; a save of n bytes takes at most n + 32,
  /// a release 512, an allocation about 120, and now and then (a new chunk, growth) up to 8 KiB.
  std::size_t room() const noexcept;

  void commit() noexcept;
  void abort() noexcept;

 private:
  Arena* arena_;
  std::byte* base_;
};

}  // namespace luo::kho
