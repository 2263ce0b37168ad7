// All that outlives the process: the arena with the table, the connections' records and the counters.
#pragma once
#include <memory>
#include <optional>

#include "cache/table.h"

namespace luo::cache {

/// Owner of the arena. One thread.
class Store {
 public:
  /// An empty one, in a memfd. `maxmemory` (0 = no limit) sizes the reserved range. ENOMEM, EMFILE.
  static Result<std::unique_ptr<Store>> create(std::uint64_t maxmemory);
  /// What another process left, perhaps warmed before. EBADMSG: damaged, says where; EPROTO: written by
  /// another version.
  static Result<std::unique_ptr<Store>> open(Fd memfd, std::optional<kho::WarmArena> warm = {});

  /// From an image(): whole, or EBADMSG. EPROTO; ENOMEM, ENOSPC, EMFILE.
  static Result<std::unique_ptr<Store>> from_image(FdRef image);
  /// Everything, counters too, in a sealed memfd of its own. A copy: O(memory in use). ENOMEM, ENOSPC, EMFILE.
  Result<Fd> image() const;

  kho::Arena& arena() noexcept { return arena_; }
  Table& table() noexcept { return *table_; }
  Counters& counters() const noexcept { return *reinterpret_cast<Counters*>(arena_.control().data()); }

  /// A record for a new connection, with a token of its own. `cookie`: its socket's. ENOMEM.
  Result<ConnectionRecord*> add_connection(std::uint64_t cookie);
  /// Takes it out of the list and releases it with its buffers.
  void remove_connection(ConnectionRecord& record);
  /// Any connection, or the one after `record`; nullptr: no more.
  ConnectionRecord* first_connection() const noexcept { return connection_at(record_->connections); }
  ConnectionRecord* next_connection(const ConnectionRecord& record) const noexcept {
    return connection_at(record.next);
  }

  /// Everything that can be checked, keys included. O(n). EBADMSG.
  Result<> check() const;

 private:
  static Result<std::unique_ptr<Store>> adopt(kho::Arena arena);
  Store(kho::Arena arena, CacheRecord* record) noexcept : arena_{std::move(arena)}, record_{record} {
    table_ = std::make_unique<Table>(arena_, &record_->table);
  }
  ConnectionRecord* connection_at(std::uint64_t at) const noexcept {
    return arena_.get(kho::Ref<ConnectionRecord>{at});
  }
  Result<> check_connections() const;

  kho::Arena arena_;
  CacheRecord* record_;
  std::unique_ptr<Table> table_;
};

}  // namespace luo::cache
