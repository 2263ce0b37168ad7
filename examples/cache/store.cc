#include "cache/store.h"

#include <algorithm>
#include <ctime>

#include "cache/buffer.h"
#include "kho/image.h"

namespace luo::cache {
namespace {

constexpr std::string_view kMemoryName = "luo-cache";
constexpr std::uint64_t kLeastReserved = 64ULL << 30;  // address space, not memory

Result<> check_buffer(const kho::Arena& arena, const BufferRecord& buffer, std::uint64_t token) {
  const bool sane = buffer.begin <= buffer.end && buffer.end <= buffer.room &&
                    (buffer.block == 0 ? buffer.room == 0 : arena.is_allocated(PhysAddr{buffer.block}, buffer.room));
  if (sane) return {};
  return fail(EBADMSG, "connection {}: buffer @{:#x} of {} bytes, {} to {} full, is not in the arena", token,
              buffer.block, buffer.room, buffer.begin, buffer.end);
}

}  // namespace

Result<std::unique_ptr<Store>> Store::create(std::uint64_t maxmemory) {
  // A value may be in a buffer, in the table and in an output at the same time.
  const std::uint64_t reserved = std::clamp<std::uint64_t>(4 * maxmemory, kLeastReserved, 16ULL << 40);
  kho::Arena arena = LUO_TRY(kho::Arena::create({.name = kMemoryName, .layout = kLayout, .max_size = Bytes{reserved}}));
  CacheRecord* record = nullptr;
  {
    kho::Tx tx{arena};
    const auto ref = LUO_TRY(tx.make<CacheRecord>());
    record = arena.get(ref);
    record->next_token = kFirstConnectionToken;
    LUO_TRY(Table::format(arena, tx, record->table, random_hash_key()));
    tx.set_root(kRootSlot, ref.addr());
    tx.commit();
  }
  std::unique_ptr<Store> store{new Store{std::move(arena), record}};
  store->counters().created_unix_s = static_cast<std::uint64_t>(std::time(nullptr));
  return store;
}

Result<std::unique_ptr<Store>> Store::open(Fd memfd, std::optional<kho::WarmArena> warm) {
  kho::Arena arena =
      LUO_TRY_DURING("open the cache's memory", warm ? kho::Arena::open(std::move(memfd), kLayout, *std::move(warm))
                                                     : kho::Arena::open(std::move(memfd), kLayout));
  return adopt(std::move(arena));
}

Result<std::unique_ptr<Store>> Store::from_image(FdRef image) {
  return adopt(LUO_TRY_DURING("build the cache's memory up again", kho::populate(image, kLayout, kMemoryName)));
}

Result<Fd> Store::image() const {
  return LUO_TRY_DURING("write an image of the cache's memory",
                        kho::seal(arena_, "luo-cache-image", {.format = kho::kImageFormat, .control = true}));
}

Result<std::unique_ptr<Store>> Store::adopt(kho::Arena arena) {
  auto* record = arena.checked(kho::Ref<CacheRecord>{arena.root(kRootSlot).raw()});
  if (record == nullptr) return fail(EBADMSG, "the cache's arena has no root record");
  const TableRecord& table = record->table;
  if (table.buckets == 0 ||
      !arena.is_allocated(PhysAddr{table.directory}, table.directory_room * sizeof(std::uint64_t)))
    return fail(EBADMSG, "the cache's table has no directory");
  std::unique_ptr<Store> store{new Store{std::move(arena), record}};
  LUO_TRY(store->check_connections());
  return store;
}

Result<> Store::check_connections() const {
  std::uint64_t previous = 0;
  for (std::uint64_t at = record_->connections; at != 0;) {
    const auto* record = arena_.checked(kho::Ref<ConnectionRecord>{at});
    if (record == nullptr || record->previous != previous || record->name_bytes > sizeof record->name)
      return fail(EBADMSG, "connection record @{:#x} is damaged", at);
    LUO_TRY(check_buffer(arena_, record->input, record->token));
    LUO_TRY(check_buffer(arena_, record->output, record->token));
    previous = at;
    at = record->next;
  }
  return {};
}

Result<> Store::check() const {
  LUO_TRY(arena_.check());
  LUO_TRY(check_connections());
  return table_->check();
}

Result<ConnectionRecord*> Store::add_connection(std::uint64_t cookie) {
  kho::Tx tx{arena_};
  const auto ref = LUO_TRY(tx.make<ConnectionRecord>());
  ConnectionRecord* record = arena_.get(ref);
  record->token = record_->next_token;
  record->cookie = cookie;
  record->next = record_->connections;
  if (ConnectionRecord* next = first_connection()) tx.set(next->previous, ref.at);
  tx.set(record_->connections, ref.at);
  tx.set(record_->next_token, record_->next_token + 1);
  tx.commit();
  ++counters().connections;
  return record;
}

void Store::remove_connection(ConnectionRecord& record) {
  kho::Tx tx{arena_};
  if (ConnectionRecord* next = connection_at(record.next)) tx.set(next->previous, record.previous);
  ConnectionRecord* previous = connection_at(record.previous);
  tx.set(previous != nullptr ? previous->next : record_->connections, record.next);
  for (const BufferRecord* buffer : {&record.input, &record.output})
    if (buffer->block != 0) tx.release(PhysAddr{buffer->block});
  tx.release(arena_.ref_of(&record));
  tx.commit();
}

}  // namespace luo::cache
