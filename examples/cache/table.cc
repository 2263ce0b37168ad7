#include "cache/table.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace luo::cache {
namespace {

constexpr std::uint64_t kSegmentBuckets = 8192;  // 64 KiB: a whole chunk of the arena
constexpr std::uint64_t kSegmentBytes = kSegmentBuckets * sizeof(std::uint64_t);
constexpr std::uint64_t kFirstDirectory = 64;
// A value up to this size is overwritten where it is: saving its old bytes costs less than a new block.
constexpr std::size_t kInPlace = 512;

template <class T>
T* at(const kho::Arena& arena, std::uint64_t offset) noexcept {
  return arena.get(kho::Ref<T>{offset});
}

Result<std::uint64_t> new_segment(const kho::Arena& arena, kho::Tx& tx) {
  const PhysAddr block = LUO_TRY(tx.allocate(kSegmentBytes));
  std::memset(at<std::byte>(arena, block.raw()), 0, kSegmentBytes);
  return block.raw();
}

}  // namespace

Result<> Table::format(kho::Arena& arena, kho::Tx& tx, TableRecord& record, HashKey key) {
  const kho::Tx::Mark start = tx.mark();
  const auto directory = tx.allocate(kFirstDirectory * sizeof(std::uint64_t));
  if (!directory) return fail(directory.error().code, "{}", directory.error().what);
  auto segment = new_segment(arena, tx);
  if (!segment) {
    tx.back_to(start);
    return std::unexpected(std::move(segment).error());
  }
  auto* slots = at<std::uint64_t>(arena, directory->raw());
  std::memset(slots, 0, kFirstDirectory * sizeof(std::uint64_t));
  slots[0] = *segment;
  tx.set(record, TableRecord{.key = key,
                             .directory = directory->raw(),
                             .directory_room = kFirstDirectory,
                             .buckets = kSegmentBuckets,
                             .entries = 0,
                             .expiring = 0,
                             .dead = record.dead});
  return {};
}

std::uint64_t Table::hash_of(std::string_view key) const noexcept {
  return siphash13(record_->key, std::as_bytes(std::span{key.data(), key.size()}));
}

std::uint64_t* Table::bucket(std::uint64_t index) const noexcept {
  const auto* directory = at<std::uint64_t>(*arena_, record_->directory);
  return at<std::uint64_t>(*arena_, directory[index / kSegmentBuckets]) + index % kSegmentBuckets;
}

std::uint64_t Table::index_of(std::uint64_t hash) const noexcept {
  const std::uint64_t mask = std::bit_ceil(record_->buckets) - 1;
  const std::uint64_t index = hash & mask;
  return index < record_->buckets ? index : index & (mask >> 1);  // its bucket has not been split off yet
}

Table::Place Table::find(kho::Tx& tx, std::string_view key, std::int64_t now_ms) {
  const std::uint64_t hash = hash_of(key);
  std::uint64_t* const head = bucket(index_of(hash));
  for (std::uint64_t* link = head; *link != 0;) {
    Entry* entry = entry_at(*link);
    if (entry->hash == hash && entry->key() == key) {
      if (entry->expire_ms == 0 || entry->expire_ms > now_ms) return {hash, link, entry};
      erase(tx, {hash, link, entry});
      return {hash, bucket(index_of(hash)), nullptr};
    }
    link = &entry->next;
  }
  return {hash, head, nullptr};
}

Entry* Table::peek(std::string_view key, std::int64_t now_ms) const noexcept {
  const std::uint64_t hash = hash_of(key);
  Entry* entry = entry_at(*bucket(index_of(hash)));
  while (entry != nullptr && (entry->hash != hash || entry->key() != key)) entry = entry_at(entry->next);
  return entry == nullptr || (entry->expire_ms != 0 && entry->expire_ms <= now_ms) ? nullptr : entry;
}

// Gives the entry a fresh block with value head + tail, and room for `slack` more.
Result<> Table::replace(kho::Tx& tx, Place place, std::string_view head, std::string_view tail, std::int64_t expire_ms,
                        std::size_t slack) {
  Entry* old = place.entry;
  const std::size_t bytes = sizeof(Entry) + old->key_bytes + head.size() + tail.size();
  const PhysAddr block = LUO_TRY(tx.allocate(bytes + slack));
  Entry* entry = entry_at(block.raw());
  *entry = *old;
  entry->expire_ms = expire_ms;
  entry->value_bytes = static_cast<std::uint32_t>(head.size() + tail.size());
  std::memcpy(entry->key_at(), old->key_at(), old->key_bytes);
  if (!head.empty()) std::memcpy(entry->value_at(), head.data(), head.size());
  if (!tail.empty()) std::memcpy(entry->value_at() + head.size(), tail.data(), tail.size());
  if ((expire_ms != 0) != (old->expire_ms != 0))
    tx.set(record_->expiring, record_->expiring + (expire_ms != 0 ? 1 : std::uint64_t(-1)));
  tx.release(arena_->ref_of(old));
  tx.set(*place.link, block.raw());
  return {};
}

Result<> Table::put(kho::Tx& tx, Place place, std::string_view key, std::string_view value, std::int64_t expire_ms) {
  const std::size_t bytes = sizeof(Entry) + key.size() + value.size();
  if (Entry* entry = place.entry; entry != nullptr) {
    const std::size_t usable = arena_->usable_size(arena_->ref_of(entry).addr());
    if (bytes > usable || usable > 2 * bytes + 64 || entry->value_bytes > kInPlace)
      return replace(tx, place, value, {}, expire_ms, 0);
    if (entry->expire_ms != expire_ms) set_expire(tx, *entry, expire_ms);
    // All of it, also what a shorter one leaves alone: that is free then, and written by an append in the same
    // transaction.
    tx.save(entry->value_at(), entry->value_bytes);
    if (entry->value_bytes != value.size()) tx.set(entry->value_bytes, static_cast<std::uint32_t>(value.size()));
    if (!value.empty()) std::memcpy(entry->value_at(), value.data(), value.size());
    return {};
  }
  const PhysAddr block = LUO_TRY(tx.allocate(bytes));
  Entry* entry = entry_at(block.raw());
  *entry = Entry{.next = *place.link,
                 .hash = place.hash,
                 .expire_ms = expire_ms,
                 .key_bytes = static_cast<std::uint32_t>(key.size()),
                 .value_bytes = static_cast<std::uint32_t>(value.size())};
  if (!key.empty()) std::memcpy(entry->key_at(), key.data(), key.size());
  if (!value.empty()) std::memcpy(entry->value_at(), value.data(), value.size());
  tx.set(*place.link, block.raw());
  tx.set(record_->entries, record_->entries + 1);
  if (expire_ms != 0) tx.set(record_->expiring, record_->expiring + 1);
  if (record_->entries > record_->buckets) grow(tx);
  return {};
}

Result<> Table::append(kho::Tx& tx, Place place, std::string_view more) {
  Entry* entry = place.entry;
  const std::size_t bytes = sizeof(Entry) + entry->key_bytes + entry->value_bytes + more.size();
  if (bytes <= arena_->usable_size(arena_->ref_of(entry).addr())) {
    if (!more.empty()) std::memcpy(entry->value_at() + entry->value_bytes, more.data(), more.size());
    tx.set(entry->value_bytes, static_cast<std::uint32_t>(entry->value_bytes + more.size()));
    return {};
  }
  const std::size_t slack = std::min<std::size_t>(bytes, 1 << 20);
  return replace(tx, place, entry->value(), more, entry->expire_ms, slack);
}

void Table::set_expire(kho::Tx& tx, Entry& entry, std::int64_t expire_ms) noexcept {
  if ((expire_ms != 0) != (entry.expire_ms != 0))
    tx.set(record_->expiring, record_->expiring + (expire_ms != 0 ? 1 : std::uint64_t(-1)));
  tx.set(entry.expire_ms, expire_ms);
}

void Table::erase(kho::Tx& tx, Place place) noexcept {
  Entry* entry = place.entry;
  tx.set(*place.link, entry->next);
  tx.set(record_->entries, record_->entries - 1);
  if (entry->expire_ms != 0) tx.set(record_->expiring, record_->expiring - 1);
  tx.release(arena_->ref_of(entry));
  // Four, so that the table keeps up with its keys going away.
  for (int i = 0; i < 4 && record_->buckets > kSegmentBuckets && record_->entries < record_->buckets / 4; ++i)
    shrink(tx);
}

// Adds one bucket and moves to it what belongs there from the bucket that it splits. Without memory
// for it the chains just stay longer.
void Table::grow(kho::Tx& tx) noexcept {
  const std::uint64_t fresh = record_->buckets;
  const std::uint64_t slot = fresh / kSegmentBuckets;
  if (slot == record_->directory_room) {
    const auto bigger = tx.allocate(2 * slot * sizeof(std::uint64_t));
    if (!bigger) return;
    auto* slots = at<std::uint64_t>(*arena_, bigger->raw());
    std::memcpy(slots, at<std::uint64_t>(*arena_, record_->directory), slot * sizeof(std::uint64_t));
    std::memset(slots + slot, 0, slot * sizeof(std::uint64_t));
    tx.release(PhysAddr{record_->directory});
    tx.set(record_->directory, bigger->raw());
    tx.set(record_->directory_room, 2 * slot);
  }
  if (fresh % kSegmentBuckets == 0) {
    const auto segment = new_segment(*arena_, tx);
    if (!segment) return;
    tx.set(at<std::uint64_t>(*arena_, record_->directory)[slot], *segment);
  }
  const std::uint64_t mask = std::bit_ceil(fresh + 1) - 1;
  std::uint64_t* stays = bucket(fresh & (mask >> 1));
  std::uint64_t* moves = bucket(fresh);
  std::uint64_t next = 0;
  for (std::uint64_t here = *stays; here != 0; here = next) {
    Entry* entry = entry_at(here);
    next = entry->next;
    std::uint64_t*& tail = (entry->hash & mask) == fresh ? moves : stays;
    if (*tail != here) tx.set(*tail, here);
    tail = &entry->next;
  }
  if (*stays != 0) tx.set(*stays, 0);
  if (*moves != 0) tx.set(*moves, 0);
  tx.set(record_->buckets, fresh + 1);
}

// The reverse: the last bucket's chain goes back to the bucket that it came from.
void Table::shrink(kho::Tx& tx) noexcept {
  const std::uint64_t last = record_->buckets - 1;
  std::uint64_t* from = bucket(last);
  if (*from != 0) {
    std::uint64_t* to = bucket(last & ((std::bit_ceil(last + 1) - 1) >> 1));
    std::uint64_t* tail = to;
    while (*tail != 0) tail = &entry_at(*tail)->next;
    tx.set(*tail, *from);
    tx.set(*from, 0);
  }
  tx.set(record_->buckets, last);
  if (last % kSegmentBuckets == 0) {
    std::uint64_t& slot = at<std::uint64_t>(*arena_, record_->directory)[last / kSegmentBuckets];
    tx.release(PhysAddr{slot});
    tx.set(slot, 0);
  }
}

Result<> Table::flush(kho::Tx& tx) {
  if (record_->entries == 0) return {};
  const kho::Tx::Mark start = tx.mark();
  const auto dead = LUO_TRY(tx.make<DeadTable>());
  *arena_->get(dead) = {.next = record_->dead, .directory = record_->directory, .buckets = record_->buckets};
  tx.set(record_->dead, dead.at);
  auto formatted = format(*arena_, tx, *record_, record_->key);
  if (!formatted) tx.back_to(start);
  return formatted;
}

std::size_t Table::sweep(kho::Tx& tx, std::int64_t now_ms, std::size_t buckets) {
  if (record_->expiring == 0) return 0;
  std::size_t removed = 0;
  for (std::size_t i = 0; i < buckets && tx.room() > kLogPerCall; ++i) {
    if (swept_ >= record_->buckets) swept_ = 0;
    std::uint64_t* link = bucket(swept_++);
    while (*link != 0) {
      Entry* entry = entry_at(*link);
      if (entry->expire_ms == 0 || entry->expire_ms > now_ms) {
        link = &entry->next;
        continue;
      }
      ++removed;
      const std::uint64_t before = record_->buckets;
      erase(tx, {entry->hash, link, entry});
      if (record_->buckets != before) break;  // the chain may have moved; the next round sees the rest
    }
  }
  return removed;
}

bool Table::bury(kho::Tx& tx, std::size_t entries) {
  if (record_->dead == 0) return false;
  DeadTable& dead = *at<DeadTable>(*arena_, record_->dead);
  auto* directory = at<std::uint64_t>(*arena_, dead.directory);
  std::size_t steps = 0;
  std::uint64_t left = dead.buckets;
  tx.save(&dead, sizeof dead);
  for (; left > 0 && steps < 4 * entries && tx.room() > kLogPerCall; ++steps) {
    std::uint64_t& segment = directory[(left - 1) / kSegmentBuckets];
    std::uint64_t& head = at<std::uint64_t>(*arena_, segment)[(left - 1) % kSegmentBuckets];
    if (head != 0) {
      Entry* entry = entry_at(head);
      tx.set(head, entry->next);
      tx.release(arena_->ref_of(entry));
      steps += 3;  // an empty bucket costs less than an entry
      continue;
    }
    if ((left - 1) % kSegmentBuckets == 0) {
      tx.release(PhysAddr{segment});
      tx.set(segment, 0);
    }
    --left;
  }
  dead.buckets = left;
  if (left == 0) {
    tx.release(PhysAddr{dead.directory});
    const std::uint64_t gone = record_->dead;
    tx.set(record_->dead, dead.next);
    tx.release(PhysAddr{gone});
  }
  return record_->dead != 0;
}

Result<> Table::check() const {
  std::uint64_t entries = 0;
  std::uint64_t expiring = 0;
  for (std::uint64_t i = 0; i < record_->buckets; ++i) {
    for (std::uint64_t here = *bucket(i); here != 0; ++entries) {
      if (entries > record_->entries) return fail(EBADMSG, "table: more entries than the {} counted", record_->entries);
      Entry* entry = arena_->checked(kho::Ref<Entry>{here});
      if (entry == nullptr ||
          !arena_->is_allocated(PhysAddr{here}, sizeof(Entry) + entry->key_bytes + entry->value_bytes))
        return fail(EBADMSG, "table: bucket {}: entry @{:#x} is not a block", i, here);
      if (entry->hash != hash_of(entry->key()) || index_of(entry->hash) != i)
        return fail(EBADMSG, "table: bucket {}: entry @{:#x} belongs elsewhere", i, here);
      if (entry->expire_ms != 0) ++expiring;
      here = entry->next;
    }
  }
  if (entries != record_->entries || expiring != record_->expiring)
    return fail(EBADMSG, "table: {} entries, {} expiring; counted {}, {}", entries, expiring, record_->entries,
                record_->expiring);
  return {};
}

}  // namespace luo::cache
