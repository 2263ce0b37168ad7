#include "kho/vmalloc.h"

#include <algorithm>

#include "kho/vmalloc_format.h"

namespace luo::kho {

using namespace preserved;

namespace {
constexpr std::size_t kRoomForARelease = 1024;
constexpr std::size_t kRoomForABlock = 16 << 10;  // now and then an allocation grows the heap
}  // namespace

Result<Ref<PreservedRoot>> PreservedMemory::create(Tx& tx, Arena& arena) {
  const Ref<PreservedRoot> root = LUO_TRY_DURING("make preserved memory", tx.make<PreservedRoot>());
  arena.get(root)->magic = kRootMagic;
  arena.get(root)->epoch = kFirstEpoch;
  return root;
}

Result<PreservedMemory> PreservedMemory::open(Arena& arena, Ref<PreservedRoot> root) {
  PreservedRoot* at = arena.checked(root);
  if (at == nullptr) return fail(EBADMSG, "open preserved memory: no record at {:#x}", root.at);
  const PreservedMemory memory{arena, at};
  LUO_TRY_DURING("open preserved memory", memory.check());
  return memory;
}

std::uint64_t PreservedMemory::epoch() const noexcept { return root_->epoch; }

Result<> PreservedMemory::room(const Tx& tx) const {
  if (tx.room() >= kRoom) return {};
  return fail(ENOBUFS, "preserved memory: {} bytes of the transaction's log are left, {} may be needed", tx.room(),
              kRoom);
}

// ---- subtrees ----

PreservedLink& PreservedMemory::list_of(const PreservedSubtree& subtree) noexcept {
  return subtree.epoch == root_->epoch       ? root_->current
         : subtree.epoch + 1 == root_->epoch ? root_->incoming
                                             : root_->gone;
}

Result<PreservedSubtree*> PreservedMemory::find(Subtree subtree) const {
  PreservedSubtree* at = arena_->checked(subtree);
  if (at == nullptr || at->magic != kSubtreeMagic) return fail(ENOENT, "no preserved subtree at {:#x}", subtree.at);
  if (at->epoch + 1 < root_->epoch) return fail(ENOENT, "preserved subtree {:#x} has been given up", subtree.at);
  return at;
}

Result<PreservedSubtree*> PreservedMemory::find_ours(Subtree subtree) const {
  PreservedSubtree* at = LUO_TRY(find(subtree));
  if (at->epoch != root_->epoch) return fail(EBUSY, "preserved subtree {:#x} is not claimed", subtree.at);
  return at;
}

Result<> PreservedMemory::advance(Tx& tx) {
  LUO_TRY(room(tx));
  const Tx::Mark mark = tx.mark();
  if (root_->incoming.first != 0) {  // nobody wanted these
    if (root_->gone.last != 0) {
      tx.set(arena_->get(Subtree{root_->gone.last})->next, root_->incoming.first);
      tx.set(arena_->get(Subtree{root_->incoming.first})->previous, root_->gone.last);
    }
    tx.set(root_->gone,
           PreservedLink{root_->gone.first != 0 ? root_->gone.first : root_->incoming.first, root_->incoming.last});
  }
  tx.set(root_->incoming, root_->current);
  tx.set(root_->current, PreservedLink{});
  tx.set(root_->epoch, root_->epoch + 1);
  auto forgotten = forget_names(tx);
  if (!forgotten) tx.back_to(mark);
  return forgotten;
}

Result<PreservedMemory::Subtree> PreservedMemory::make_subtree(Tx& tx) {
  LUO_TRY(room(tx));
  const Subtree subtree = LUO_TRY_DURING("make preserved subtree", tx.make<PreservedSubtree>());
  PreservedSubtree& at = *arena_->get(subtree);
  at.magic = kSubtreeMagic;
  at.epoch = root_->epoch;
  push_back(*arena_, tx, root_->current, at);
  return subtree;
}

Result<> PreservedMemory::claim(Tx& tx, Subtree subtree, std::uint64_t claimer) {
  LUO_TRY(room(tx));
  if (claimer == 0) return fail(EINVAL, "claim preserved subtree {:#x}: by nobody", subtree.at);
  PreservedSubtree& at = *LUO_TRY(find(subtree));
  if (at.epoch == root_->epoch) {
    if (at.claimer == 0) return fail(EINVAL, "claim preserved subtree {:#x}: it is of this epoch", subtree.at);
    return fail(at.claimer == claimer ? EALREADY : EBUSY, "claim preserved subtree {:#x}: claimed by {}", subtree.at,
                at.claimer);
  }
  remove(*arena_, tx, root_->incoming, at);
  tx.set(at.epoch, root_->epoch);
  tx.set(at.claimer, claimer);
  push_back(*arena_, tx, root_->current, at);
  return {};
}

Result<> PreservedMemory::drop(Tx& tx, Subtree subtree) {
  LUO_TRY(room(tx));
  PreservedSubtree& at = *LUO_TRY(find(subtree));
  const Tx::Mark mark = tx.mark();
  remove(*arena_, tx, list_of(at), at);
  tx.set(at.epoch, 0);
  push_back(*arena_, tx, root_->gone, at);
  if (at.blob == 0) return {};
  auto forgotten = forget_names(tx);
  if (!forgotten) tx.back_to(mark);
  return forgotten;
}

// ---- items ----

Result<PreservedItem*> PreservedMemory::find(Item item, bool scattered) const {
  PreservedItem* at = arena_->checked(item);
  if (at == nullptr || at->magic != kItemMagic || at->subtree == 0)
    return fail(ENOENT, "nothing preserved at {:#x}", item.at);
  LUO_TRY(find(Subtree{at->subtree}));
  if ((at->scattered != 0) != scattered)
    return fail(EINVAL, "preserved item {:#x} is {}", item.at, scattered ? "one block" : "scattered");
  return at;
}

Result<PreservedItem*> PreservedMemory::find_on_side(Item item, bool scattered, bool earlier) const {
  PreservedItem* at = LUO_TRY(find(item, scattered));
  const PreservedSubtree* tree = LUO_TRY(find_ours(Subtree{at->subtree}));
  if (tree->blob == item.at) return fail(EBUSY, "preserved item {:#x} is what a name leads to", item.at);
  if ((at->epoch < root_->epoch) != earlier)
    return fail(EINVAL, "preserved item {:#x} is of {} epoch", item.at, earlier ? "this" : "an earlier");
  return at;
}

Result<PreservedMemory::Item> PreservedMemory::add(Tx& tx, Subtree subtree, const PreservedItem& item) {
  PreservedSubtree& tree = *arena_->get(subtree);
  const Item made = LUO_TRY(tx.make<PreservedItem>());
  PreservedItem& at = *arena_->get(made);
  at = item;
  at.magic = kItemMagic;
  at.subtree = subtree.at;
  at.epoch = root_->epoch;
  push_back(*arena_, tx, tree.items, at);
  tx.set(tree.count, tree.count + 1);
  return made;
}

void PreservedMemory::take_out(Tx& tx, PreservedItem& item) {
  PreservedSubtree& tree = *arena_->get(Subtree{item.subtree});
  remove(*arena_, tx, tree.items, item);
  tx.set(tree.count, tree.count - 1);
}

/// Out of its subtree already.
void PreservedMemory::give_up(Tx& tx, PreservedItem& item) {
  tx.set(item.subtree, 0);
  tx.set(item.next, root_->garbage);
  tx.set(root_->garbage, arena_->ref_of(&item).at);
}

Result<PreservedMemory::Item> PreservedMemory::alloc_preserve(Tx& tx, Subtree subtree, Bytes size) {
  LUO_TRY(room(tx));
  LUO_TRY(find_ours(subtree));
  const Tx::Mark mark = tx.mark();
  const auto make = [&]() -> Result<Item> {
    const PhysAddr block = LUO_TRY(tx.allocate(size.raw()));
    std::memset(arena_->get(Ref<std::byte>{block.raw()}), 0, size.raw());
    PreservedItem item{};
    item.first = block.raw();
    item.size = size.raw();
    return add(tx, subtree, item);
  };
  auto made = make();
  if (!made) tx.back_to(mark);
  return made;
}

PhysAddr PreservedMemory::address(Item item) const noexcept {
  const auto at = find(item, false);
  return at ? PhysAddr{(*at)->first} : PhysAddr{};
}

Result<> PreservedMemory::unpreserve_free(Tx& tx, Item item) {
  LUO_TRY(room(tx));
  PreservedItem& at = *LUO_TRY(find_on_side(item, false, false));
  take_out(tx, at);
  tx.set(at.magic, 0);
  tx.release(PhysAddr{at.first});
  tx.release(item);
  return {};
}

Result<PhysAddr> PreservedMemory::restore(Tx& tx, Item item) {
  LUO_TRY(room(tx));
  PreservedItem& at = *LUO_TRY(find_on_side(item, false, true));
  take_out(tx, at);
  tx.set(at.magic, 0);
  tx.release(item);
  return PhysAddr{at.first};
}

Result<> PreservedMemory::restore_free(Tx& tx, Item item) {
  tx.release(LUO_TRY(restore(tx, item)));
  return {};
}

// ---- scattered memory ----

Result<PreservedMemory::Item> PreservedMemory::alloc_preserve_scattered(Tx& tx, Subtree subtree, std::uint64_t blocks,
                                                                        unsigned order) {
  LUO_TRY(room(tx));
  LUO_TRY(find_ours(subtree));
  if (blocks == 0) return fail(EINVAL, "scattered memory of no blocks");
  if (order > kMaxOrder) return fail(E2BIG, "scattered memory: blocks of order {}, at most {}", order, kMaxOrder);
  PreservedItem item{};
  item.size = blocks;
  item.scattered = 1;
  item.order = order;
  const Tx::Mark mark = tx.mark();
  auto made = add(tx, subtree, item);
  if (!made) tx.back_to(mark);
  return made;
}

Result<bool> PreservedMemory::fill(Tx& tx, Item item) {
  LUO_TRY(room(tx));
  PreservedItem& at = *LUO_TRY(find_on_side(item, true, false));
  const Tx::Mark mark = tx.mark();
  const std::size_t bytes = std::size_t{4096} << at.order;
  const auto add_blocks = [&]() -> Result<bool> {
    std::uint64_t have = at.have;
    while (have < at.size && tx.room() > kRoom / 2 + kRoomForABlock) {
      Chunk* chunk = arena_->get(Ref<Chunk>{at.last});
      if (chunk == nullptr || chunk->count == kChunkBlocks) {
        const Ref<Chunk> fresh = LUO_TRY(tx.make<Chunk>());
        if (chunk != nullptr) tx.set(chunk->next, fresh.at);
        else tx.set(at.first, fresh.at);
        tx.set(at.last, fresh.at);
        chunk = arena_->get(fresh);
      }
      // Addresses behind the count have no meaning, and need no log.
      std::uint64_t count = chunk->count;
      while (count < kChunkBlocks && have < at.size && tx.room() > kRoom / 2 + kRoomForABlock) {
        const PhysAddr block = LUO_TRY(tx.allocate(bytes));
        std::memset(arena_->get(Ref<std::byte>{block.raw()}), 0, bytes);
        chunk->at[count++] = block.raw();
        ++have;
      }
      tx.set(chunk->count, count);
    }
    tx.set(at.have, have);
    return have == at.size;
  };
  auto done = add_blocks();
  if (!done) tx.back_to(mark);
  return done;
}

Result<> PreservedMemory::unpreserve_free_scattered(Tx& tx, Item item) {
  LUO_TRY(room(tx));
  PreservedItem& at = *LUO_TRY(find_on_side(item, true, false));
  take_out(tx, at);
  give_up(tx, at);
  return {};
}

Result<ScatteredMemory> PreservedMemory::restore_scattered(Tx& tx, Item item) {
  LUO_TRY(room(tx));
  PreservedItem& at = *LUO_TRY(find_on_side(item, true, true));
  if (at.have != at.size) return fail(EINVAL, "scattered memory {:#x}: {} of {} blocks", item.at, at.have, at.size);
  const ScatteredMemory memory{at.first, at.have, at.order, 0};
  take_out(tx, at);
  tx.set(at.magic, 0);
  tx.release(item);
  return memory;
}

Result<> PreservedMemory::restore_free_scattered(Tx& tx, Item item) {
  LUO_TRY(room(tx));
  PreservedItem& at = *LUO_TRY(find_on_side(item, true, true));
  take_out(tx, at);
  give_up(tx, at);
  return {};
}

Result<> PreservedMemory::walk(std::uint64_t chunk, std::uint64_t blocks, unsigned order,
                               const std::function<void(PhysAddr)>& block) const {
  const auto bad = [&] { return fail(EBADMSG, "scattered memory: chunk {:#x} leads elsewhere", chunk); };
  if (order > kMaxOrder || blocks > arena_->stats().blocks)  // more than there are: its chunks may form a ring
    return fail(EBADMSG, "scattered memory: {} blocks of order {}", blocks, order);
  while (blocks != 0) {
    const Chunk* at = arena_->checked(Ref<Chunk>{chunk});
    if (at == nullptr || at->count == 0 || at->count > std::min<std::uint64_t>(kChunkBlocks, blocks)) return bad();
    for (std::uint64_t n = 0; n < at->count; ++n) {
      if (arena_->usable_size(PhysAddr{at->at[n]}) < std::size_t{4096} << order) return bad();
      block(PhysAddr{at->at[n]});
    }
    blocks -= at->count;
    if ((blocks == 0) != (at->next == 0)) return bad();
    chunk = at->next;
  }
  return {};
}

Result<> PreservedMemory::for_each_block(Item item, const std::function<void(PhysAddr)>& block) const {
  const PreservedItem& at = *LUO_TRY(find(item, true));
  return walk(at.first, at.have, at.order, block);
}

Result<> PreservedMemory::for_each_block(const ScatteredMemory& memory,
                                         const std::function<void(PhysAddr)>& block) const {
  return walk(memory.first, memory.blocks, memory.order, block);
}

void PreservedMemory::for_each_subtree(const std::function<void(Subtree)>& subtree) const {
  for (const PreservedLink& list : {root_->current, root_->incoming})
    for (Subtree at{list.first}; at; at = Subtree{arena_->get(at)->next}) subtree(at);
}

Result<> PreservedMemory::for_each_item(Subtree subtree, const std::function<void(Item)>& item) const {
  for (Item at{LUO_TRY(find(subtree))->items.first}; at; at = Item{arena_->get(at)->next}) item(at);
  return {};
}

Result<> PreservedMemory::free_scattered(Tx& tx, const ScatteredMemory& memory) {
  LUO_TRY(room(tx));
  LUO_TRY(for_each_block(memory, [](PhysAddr) {}));
  const Item item = LUO_TRY(tx.make<PreservedItem>());
  PreservedItem& at = *arena_->get(item);
  at.magic = kItemMagic;
  at.epoch = root_->epoch;
  at.first = memory.first;
  at.size = at.have = memory.blocks;
  at.scattered = 1;
  at.order = memory.order;
  give_up(tx, at);
  return {};
}

Result<bool> PreservedMemory::tidy(Tx& tx) {
  LUO_TRY(room(tx));
  const auto enough = [&](std::size_t blocks) { return tx.room() >= kRoom + blocks * kRoomForARelease; };
  while (enough(3)) {
    if (root_->garbage == 0) {
      if (root_->gone.first == 0) return true;
      PreservedSubtree& tree = *arena_->get(Subtree{root_->gone.first});
      if (tree.items.first != 0) {
        PreservedItem& item = *arena_->get(Item{tree.items.first});
        take_out(tx, item);
        give_up(tx, item);
        continue;
      }
      // Not before its items: they name it.
      remove(*arena_, tx, root_->gone, tree);
      tx.set(tree.magic, 0);
      tx.release(arena_->ref_of(&tree));
      continue;
    }
    PreservedItem& item = *arena_->get(Item{root_->garbage});
    if (item.scattered != 0 && item.first != 0) {
      Chunk& chunk = *arena_->get(Ref<Chunk>{item.first});
      const std::uint64_t before = chunk.count;
      std::uint64_t count = before;
      for (; count > 0 && enough(3); --count) tx.release(PhysAddr{chunk.at[count - 1]});
      tx.set(item.have, item.have - (before - count));
      if (count != 0) {
        tx.set(chunk.count, count);
        continue;
      }
      tx.set(item.first, chunk.next);
      tx.release(arena_->ref_of(&chunk));
      continue;
    }
    tx.set(root_->garbage, item.next);
    if (item.scattered == 0) tx.release(PhysAddr{item.first});
    tx.set(item.magic, 0);
    tx.release(arena_->ref_of(&item));
  }
  return root_->garbage == 0 && root_->gone.first == 0;
}

}  // namespace luo::kho
