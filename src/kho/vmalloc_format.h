// What of preserved memory is not in its header: chunks, lists through records, names.
#pragma once
#include "kho/device_tree.h"
#include "kho/vmalloc.h"

namespace luo::kho::preserved {

inline constexpr std::uint64_t kRootMagic = 0x544f4f5256525001;
inline constexpr std::uint64_t kSubtreeMagic = 0x5442555356525002;
inline constexpr std::uint64_t kItemMagic = 0x4d45544956525003;
inline constexpr std::uint64_t kFirstEpoch = 2;
inline constexpr std::size_t kChunkBlocks = 510;

/// Of a list's addresses. What lies behind `count` has no meaning.
struct Chunk {
  std::uint64_t next;
  std::uint64_t count;  ///< 1 .. 510; 0 only in what is being given up
  std::uint64_t at[kChunkBlocks];
};
static_assert(sizeof(Chunk) == 4096);

/// The names as they lie there. EBADMSG.
Result<std::vector<device_tree::Node>> read_names(const Arena& arena, const PreservedNames& names);
/// In their place. ENOMEM, if there are more than before: the caller takes the transaction back.
Result<> store_names(Tx& tx, const Arena& arena, PreservedNames& names, std::span<const device_tree::Node> nodes);

template <class Record>
void push_back(const Arena& arena, Tx& tx, PreservedLink& list, Record& record) {
  const std::uint64_t at = arena.ref_of(&record).at;
  tx.set(record.previous, list.last);
  tx.set(record.next, 0);
  if (list.last != 0) tx.set(arena.get(Ref<Record>{list.last})->next, at);
  tx.set(list, PreservedLink{list.first != 0 ? list.first : at, at});
}

template <class Record>
void remove(const Arena& arena, Tx& tx, PreservedLink& list, const Record& record) {
  if (record.previous != 0) tx.set(arena.get(Ref<Record>{record.previous})->next, record.next);
  else tx.set(list.first, record.next);
  if (record.next != 0) tx.set(arena.get(Ref<Record>{record.next})->previous, record.previous);
  else tx.set(list.last, record.previous);
}

}  // namespace luo::kho::preserved
