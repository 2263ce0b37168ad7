// The keys and values, in the arena. Everything that changes it is given a transaction; a call that
// returns an error has changed nothing. Times are CLOCK_REALTIME in milliseconds.
#pragma once
#include <cstdint>
#include <string_view>

#include "cache/records.h"

namespace luo::cache {

/// Owner: the server; the arena and the record must outlive it. One thread.
class Table {
 public:
  /// Bytes of undo log that one call may take at most: callers check Tx::room() before.
  static constexpr std::size_t kLogPerCall = 64 * 1024;

  Table(kho::Arena& arena, TableRecord* record) noexcept : arena_{&arena}, record_{record} {}

  /// An empty table in `record`. ENOMEM.
  static Result<> format(kho::Arena& arena, kho::Tx& tx, TableRecord& record, HashKey key);

  /// Where a key is or would be. Valid until the next call that changes the table.
  struct Place {
    std::uint64_t hash;
    std::uint64_t* link;  ///< what points to the entry; if there is none: the bucket
    Entry* entry;         ///< nullptr: no such key
  };
  /// An entry that has expired is removed first.
  Place find(kho::Tx& tx, std::string_view key, std::int64_t now_ms);

  /// Sets key to value, with `expire_ms` (0 = never). `place` is find(key)'s; afterwards it is not
  /// valid. `value` may not point into the entry. ENOMEM.
  Result<> put(kho::Tx& tx, Place place, std::string_view key, std::string_view value, std::int64_t expire_ms);
  /// Adds to the end of an existing value; leaves slack, so that many small ones are cheap. ENOMEM.
  Result<> append(kho::Tx& tx, Place place, std::string_view more);
  void set_expire(kho::Tx& tx, Entry& entry, std::int64_t expire_ms) noexcept;
  void erase(kho::Tx& tx, Place place) noexcept;
  /// Drops all keys. O(1): bury() releases them later. ENOMEM.
  Result<> flush(kho::Tx& tx);

  std::uint64_t size() const noexcept { return record_->entries; }
  std::uint64_t expiring() const noexcept { return record_->expiring; }

  /// What find() would give, without removing anything: an entry that has expired is not there.
  Entry* peek(std::string_view key, std::int64_t now_ms) const noexcept;

  /// Removes expired entries from the next `buckets` buckets, as far as the transaction has room.
  /// Returns how many.
  std::size_t sweep(kho::Tx& tx, std::int64_t now_ms, std::size_t buckets);
  /// Releases about `entries` entries of flushed tables, as far as the transaction has room. True if
  /// more are left.
  bool bury(kho::Tx& tx, std::size_t entries);
  bool has_dead() const noexcept { return record_->dead != 0; }

  /// Every chain: entries where their hash says, counts right, blocks allocated. O(n). EBADMSG.
  Result<> check() const;

 private:
  std::uint64_t hash_of(std::string_view key) const noexcept;
  std::uint64_t* bucket(std::uint64_t index) const noexcept;
  std::uint64_t index_of(std::uint64_t hash) const noexcept;
  Entry* entry_at(std::uint64_t at) const noexcept { return arena_->get(kho::Ref<Entry>{at}); }
  Result<> replace(kho::Tx& tx, Place place, std::string_view head, std::string_view tail, std::int64_t expire_ms,
                   std::size_t slack);
  void grow(kho::Tx& tx) noexcept;
  void shrink(kho::Tx& tx) noexcept;

  kho::Arena* arena_;
  TableRecord* record_;
  std::uint64_t swept_ = 0;  // the next bucket to sweep
};

}  // namespace luo::cache
