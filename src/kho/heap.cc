// Small blocks, and what an address means. Chunks and their memory: heap_chunks.cc.
#include "kho/heap.h"

#include <bit>

#include "kho/size_class.h"

namespace luo::kho {

Heap::Heap(std::byte* base, const Geometry& geometry, UndoLog& log, FdRef fd) noexcept
    : base_{base},
      geometry_{geometry},
      state_{&reinterpret_cast<Header*>(base)->state},
      table_{reinterpret_cast<Chunk*>(base + geometry.table_at)},
      bitmaps_{reinterpret_cast<std::uint64_t*>(base + geometry.bitmap_at)},
      backed_{reinterpret_cast<std::uint64_t*>(base + geometry.backed_at)},
      log_{&log},
      fd_{fd.raw},
      pages_{reinterpret_cast<const Header*>(base)->constants.pages} {}

Result<std::uint64_t> Heap::allocate(std::uint64_t bytes) {
  if (bytes == 0) return fail(EINVAL, "allocate 0 bytes");
  if (bytes < kSmallLimit) return allocate_small(class_for(bytes));
  if (bytes > geometry_.heap_bytes)
    return fail(ENOMEM, "allocate {} bytes: the arena has {} at most", bytes, geometry_.heap_bytes);
  const auto units = static_cast<std::uint32_t>((bytes + kChunkBytes - 1) >> kChunkShift);
  const auto order = static_cast<unsigned>(std::bit_width(units - 1U));
  const auto before = log_->tail();
  const auto index = take_chunks(order, units);
  if (!index) {
    log_->roll_back_to(before);
    return std::unexpected(Error{index.error()}.during(fmt::format("allocate {} bytes", bytes)));
  }
  Chunk& chunk = table_[*index];
  log_->save(offset(chunk), sizeof chunk);
  chunk = Chunk{.state = ChunkState::Large,
                .order = static_cast<std::uint8_t>(order),
                .size_class = 0,
                .zero = 0,
                .used = units,
                .open_words = 0,
                .previous = 0,
                .next = 0,
                .zero2 = 0};
  count(static_cast<std::int64_t>(units * kChunkBytes), 1);
  return address(*index);
}

Result<std::uint64_t> Heap::allocate_small(unsigned size_class) {
  const SizeClass& size = kSizeClasses[size_class];
  std::uint32_t index = state_->class_head[size_class];
  if (index != 0) [[likely]] {
    --index;
  } else {
    const auto before = log_->tail();
    auto opened = open_chunk(size_class);
    if (!opened) {
      log_->roll_back_to(before);
      return std::unexpected(std::move(opened).error().during(fmt::format("allocate {} bytes", size.bytes)));
    }
    index = *opened;
  }
  LUO_CHECK(index < state_->frontier);
  Chunk& chunk = table_[index];
  const auto w = static_cast<unsigned>(std::countr_zero(chunk.open_words));
  if (chunk.state != ChunkState::Small || chunk.size_class != size_class || w >= kBitmapWords) [[unlikely]]
    return fail(EBADMSG, "chunk {}: is in the list of {} byte blocks, but has none free", index, size.bytes);
  std::uint64_t& word = bitmap(index)[w];
  const auto b = static_cast<unsigned>(std::countr_one(word));
  const std::uint32_t block = w * 64 + b;
  if (b == 64 || block >= size.blocks) [[unlikely]]
    return fail(EBADMSG, "chunk {}: word {} of its bitmap has no free block", index, w);

  log_->save(offset(word), sizeof word);
  log_->save(offset(chunk), 16);  // used and open_words
  word |= std::uint64_t{1} << b;
  ++chunk.used;
  const std::uint32_t blocks_in_word = size.blocks - w * 64 < 64 ? size.blocks - w * 64 : 64;
  if (static_cast<std::uint32_t>(std::countr_one(word)) >= blocks_in_word) {
    chunk.open_words &= ~(std::uint64_t{1} << w);
    if (chunk.open_words == 0) unlink(state_->class_head[size_class], index);
  }
  count(size.bytes, 1);
  return address(index) + std::uint64_t{block} * size.bytes;
}

Result<std::uint32_t> Heap::open_chunk(unsigned size_class) {
  const std::uint32_t index = LUO_TRY(take_chunks(0, 1));
  Chunk& chunk = table_[index];
  log_->save(offset(chunk), sizeof chunk);
  // The bitmap of a chunk that is not Small is all zero, so there is nothing to build.
  chunk = Chunk{.state = ChunkState::Small,
                .order = 0,
                .size_class = static_cast<std::uint8_t>(size_class),
                .zero = 0,
                .used = 0,
                .open_words = kSizeClasses[size_class].all_words,
                .previous = 0,
                .next = 0,
                .zero2 = 0};
  link(state_->class_head[size_class], index);
  return index;
}

std::optional<Heap::Hole> Heap::release(std::uint64_t at) noexcept {
  const auto place = locate(at);
  LUO_CHECK(place && place->at == at);
  Chunk& chunk = table_[place->chunk];
  count(-static_cast<std::int64_t>(place->bytes), -1);
  if (chunk.state == ChunkState::Large) {
    Hole hole{place->chunk, chunk.used};
    // What is left of the block's last huge page is nobody else's.
    if (pages_ != Pages::Normal && (std::uint32_t{1} << chunk.order) >= kHugeChunks)
      hole.count = (hole.count + kHugeChunks - 1) / kHugeChunks * kHugeChunks;
    free_chunks(place->chunk, chunk.order);
    if (place->bytes < kPunchFrom) return {};
    return hole;
  }
  const SizeClass& size = kSizeClasses[chunk.size_class];
  std::uint32_t& head = state_->class_head[chunk.size_class];
  std::uint64_t& word = bitmap(place->chunk)[place->block / 64];
  log_->save(offset(word), sizeof word);
  log_->save(offset(chunk), 16);
  word &= ~(std::uint64_t{1} << (place->block % 64));
  --chunk.used;
  const bool was_full = chunk.open_words == 0;
  chunk.open_words |= std::uint64_t{1} << (place->block / 64);
  if (was_full) {
    // An empty chunk is kept only while it is alone in its list: against going back and forth.
    const std::uint32_t other = head;
    if (other != 0 && table_[other - 1].used == 0) {
      unlink(head, other - 1);
      free_chunks(other - 1, 0);
    }
    link(head, place->chunk);
  }
  if (chunk.used == 0 && (chunk.previous != 0 || chunk.next != 0)) {
    LUO_CHECK(chunk.open_words == size.all_words);
    unlink(head, place->chunk);
    free_chunks(place->chunk, 0);
  }
  return {};
}

std::optional<Heap::Place> Heap::locate(std::uint64_t at) const noexcept {
  if (at < geometry_.heap_at) return {};
  const std::uint64_t in_heap = at - geometry_.heap_at;
  if (in_heap >= std::uint64_t{state_->frontier} << kChunkShift) return {};
  auto index = static_cast<std::uint32_t>(in_heap >> kChunkShift);
  // The first chunk of a block has the lower bits clear; those between are Inside. At most 28 steps.
  while (table_[index].state == ChunkState::Inside && index != 0) index &= index - 1;
  const Chunk& chunk = table_[index];
  const std::uint64_t in_block = in_heap - index * kChunkBytes;
  if (chunk.state == ChunkState::Large) {
    const std::uint64_t bytes = chunk.used * kChunkBytes;
    if (in_block >= bytes) return {};
    return Place{index, 0, address(index), bytes};
  }
  if (chunk.state != ChunkState::Small || in_block >= kChunkBytes || chunk.size_class >= kClasses) return {};
  const SizeClass& size = kSizeClasses[chunk.size_class];
  const auto block = static_cast<std::uint32_t>(in_block * size.reciprocal >> 32);
  if (block >= size.blocks || (bitmap(index)[block / 64] >> (block % 64) & 1U) == 0) return {};
  return Place{index, block, address(index) + std::uint64_t{block} * size.bytes, size.bytes};
}

bool Heap::is_allocated(std::uint64_t at, std::uint64_t bytes) const noexcept {
  const auto place = locate(at);
  return place && bytes <= place->bytes - (at - place->at);
}

bool Heap::is_block_start(std::uint64_t at) const noexcept {
  const auto place = locate(at);
  return place && place->at == at;
}

std::size_t Heap::usable_size(std::uint64_t at) const noexcept {
  const auto place = locate(at);
  return place && place->at == at ? place->bytes : 0;
}

void Heap::count(std::int64_t bytes, std::int64_t blocks) noexcept {
  log_->save(offset(state_->used_bytes), 2 * sizeof(std::uint64_t));
  state_->used_bytes += static_cast<std::uint64_t>(bytes);
  state_->blocks += static_cast<std::uint64_t>(blocks);
}

void Heap::link(std::uint32_t& head, std::uint32_t index) noexcept {
  Chunk& chunk = table_[index];
  if (head != 0) set(table_[head - 1].previous, index + 1);
  log_->save(offset(chunk.previous), 2 * sizeof(std::uint32_t));
  chunk.previous = 0;
  chunk.next = head;
  set(head, index + 1);
}

void Heap::unlink(std::uint32_t& head, std::uint32_t index) noexcept {
  Chunk& chunk = table_[index];
  const std::uint32_t previous = chunk.previous, next = chunk.next;
  LUO_CHECK(previous <= state_->frontier && next <= state_->frontier);
  if (previous != 0) set(table_[previous - 1].next, next);
  else set(head, next);
  if (next != 0) set(table_[next - 1].previous, previous);
  log_->save(offset(chunk.previous), 2 * sizeof(std::uint32_t));
  chunk.previous = chunk.next = 0;
}

}  // namespace luo::kho
