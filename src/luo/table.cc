#include "luo/table.h"

#include <bit>
#include <cstring>

namespace luo {
namespace {

constexpr std::uint64_t kSmallest = 16;

void place(TableSlot* slots, std::uint64_t mask, TableSlot slot) noexcept {
  std::uint64_t i = slot.hash & mask;
  while (slots[i].ref != 0) i = (i + 1) & mask;
  slots[i] = slot;
}

}  // namespace

Result<> Table::reserve(kho::Tx& tx) {
  if ((record_->count + 1) * 2 <= record_->capacity) return {};
  return rebuild(tx, record_->capacity == 0 ? kSmallest : record_->capacity * 2);
}

Result<> Table::rebuild(kho::Tx& tx, std::uint64_t capacity) {
  const PhysAddr block = LUO_TRY(tx.allocate(capacity * sizeof(TableSlot)));
  const Ref<TableSlot> fresh{block.raw()};
  TableSlot* to = arena_->get(fresh);
  std::memset(to, 0, capacity * sizeof(TableSlot));
  const TableSlot* from = arena_->get(record_->slots);
  for (std::uint64_t i = 0; i < record_->capacity; ++i)
    if (from[i].ref != 0) place(to, capacity - 1, from[i]);
  if (record_->slots) tx.release(record_->slots);
  tx.set(*record_, TableRecord{fresh, capacity, record_->count});
  return {};
}

void Table::insert(kho::Tx& tx, std::uint64_t hash, std::uint64_t ref) noexcept {
  LUO_CHECK(ref != 0 && (record_->count + 1) * 2 <= record_->capacity);
  TableSlot* slots = arena_->get(record_->slots);
  const std::uint64_t mask = record_->capacity - 1;
  std::uint64_t i = hash & mask;
  while (slots[i].ref != 0) i = (i + 1) & mask;
  tx.set(slots[i], TableSlot{hash, ref});
  tx.set(record_->count, record_->count + 1);
}

bool Table::remove(kho::Tx& tx, std::uint64_t hash, std::uint64_t ref) noexcept {
  if (record_->capacity == 0) return false;
  TableSlot* slots = arena_->get(record_->slots);
  const std::uint64_t mask = record_->capacity - 1;
  std::uint64_t hole = hash & mask;
  while (slots[hole].ref != 0 && !(slots[hole].hash == hash && slots[hole].ref == ref)) hole = (hole + 1) & mask;
  if (slots[hole].ref == 0) return false;
  // Move up what would no longer be found across the hole.
  for (std::uint64_t i = (hole + 1) & mask; slots[i].ref != 0; i = (i + 1) & mask) {
    const std::uint64_t home = slots[i].hash & mask;
    if (((i - home) & mask) < ((i - hole) & mask)) continue;
    tx.set(slots[hole], slots[i]);
    hole = i;
  }
  tx.set(slots[hole], TableSlot{});
  tx.set(record_->count, record_->count - 1);
  if (record_->capacity > 4 * kSmallest && record_->count * 8 < record_->capacity)
    (void)rebuild(tx, record_->capacity / 2);  // without memory it stays as large as it is
  return true;
}

void Table::release(kho::Tx& tx) noexcept {
  if (record_->slots) tx.release(record_->slots);
  tx.set(*record_, TableRecord{});
}

Result<> Table::check_shape(std::string_view name) const {
  const std::uint64_t capacity = record_->capacity;
  if (capacity == 0) {
    if (record_->slots || record_->count != 0) return fail(EBADMSG, "table of {}: no slots, yet a count", name);
    return {};
  }
  // The bound on the capacity keeps the product from wrapping.
  if (!std::has_single_bit(capacity) || capacity > (std::uint64_t{1} << 40) || record_->count * 2 > capacity ||
      record_->count > capacity)
    return fail(EBADMSG, "table of {}: {} entries in {} slots", name, record_->count, capacity);
  if (arena_->usable_size(record_->slots.addr()) < capacity * sizeof(TableSlot))
    return fail(EBADMSG, "table of {}: its slots at {:#x} are no block", name, record_->slots.at);
  return {};
}

Result<> Table::check(std::string_view name) const {
  LUO_TRY(check_shape(name));
  const std::uint64_t capacity = record_->capacity;
  const TableSlot* slots = arena_->get(record_->slots);
  std::uint64_t occupied = 0;
  for (std::uint64_t i = 0; i < capacity; ++i) occupied += slots[i].ref != 0 ? 1 : 0;
  if (occupied != record_->count)
    return fail(EBADMSG, "table of {}: {} slots occupied, {} counted", name, occupied, record_->count);
  return {};
}

}  // namespace luo
