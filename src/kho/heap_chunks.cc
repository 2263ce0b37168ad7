// Whole chunks: the buddy allocator, growth, and the memory behind them.
#include <algorithm>
#include <bit>

#include "base/log.h"
#include "kho/heap.h"
#include "kho/memfd.h"
#include "kho/size_class.h"

namespace luo::kho {
namespace {

constexpr std::uint32_t kMinStep = 32;   ///< chunks that get memory at once: 2 MiB ..
constexpr std::uint32_t kMaxStep = 256;  ///< .. 16 MiB
/// Free blocks from this order on (4 MiB) are worth giving back.
constexpr unsigned kTrimOrder = 6;
/// Of the log, for one more free block joined and the result put into its list.
constexpr std::uint64_t kJoinRoom = 512;

/// Doubling, within bounds: few calls while the heap is large, little taken while it is small.
std::uint32_t step_at(std::uint32_t frontier) noexcept {
  return std::bit_floor(std::clamp(frontier / 8, kMinStep, kMaxStep));
}

std::uint64_t page_end(std::uint64_t at) noexcept { return (at + kPageBytes - 1) & ~(kPageBytes - 1); }

/// Memory for records [from, to) of a section; the page that holds the end of those before has it already.
Result<> give_records(FdRef fd, std::uint64_t section, std::uint64_t from, std::uint64_t to) {
  const std::uint64_t begin = page_end(section + from), end = page_end(section + to);
  if (begin == end) return {};
  return give_memory(fd, begin, end - begin);
}

}  // namespace

Result<std::uint32_t> Heap::take_chunks(unsigned order, std::uint32_t units) {
  const auto find = [&] {
    unsigned found = order;
    while (found < kOrders && state_->order_head[found] == 0) ++found;
    return found;
  };
  unsigned found = find();
  while (found == kOrders) {
    if (auto grown = grow(order); !grown) {
      if (grown.error().code != ENOMEM || !reclaim_empty()) return std::unexpected(std::move(grown).error());
    }
    found = find();
  }
  const std::uint32_t index = state_->order_head[found] - 1;
  LUO_CHECK(index < state_->frontier && table_[index].state == ChunkState::Free && table_[index].order == found);
  LUO_TRY(back(index, units, std::uint32_t{1} << found));
  unlink(state_->order_head[found], index);
  while (found > order) {
    --found;
    push_free(index + (std::uint32_t{1} << found), found);
  }
  return index;
}

Result<> Heap::grow(unsigned order) {
  const std::uint32_t from = state_->frontier;
  const unsigned want = std::max(order, static_cast<unsigned>(std::countr_zero(step_at(from))));
  // A piece is as large as the alignment of its place allows, so that after at most 28 pieces, joined with
  // what is free before them, there is a block of the order asked for.
  std::uint32_t to = from;
  while (true) {
    unsigned piece = std::min(want, to == 0 ? kOrders - 1 : static_cast<unsigned>(std::countr_zero(to)));
    while (piece > 0 && to + (std::uint64_t{1} << piece) > geometry_.chunks) --piece;
    if (to + (std::uint64_t{1} << piece) > geometry_.chunks)
      return fail(ENOMEM, "no {} chunks in a row are left of {}", std::uint64_t{1} << order, geometry_.chunks);
    const std::uint32_t end = to + (std::uint32_t{1} << piece);
    if (pages_ != Pages::Hugetlb) {  // there they have it from the start
      LUO_TRY(give_records(FdRef::borrow(fd_), geometry_.backed_at, to / 64 * 8, end / 64 * 8 + 8));
      LUO_TRY(give_records(FdRef::borrow(fd_), geometry_.table_at, to * sizeof(Chunk), end * sizeof(Chunk)));
      LUO_TRY(give_records(FdRef::borrow(fd_), geometry_.bitmap_at, to * kBitmapBytes, end * kBitmapBytes));
    }
    set(state_->frontier, end);
    free_chunks(to, piece);
    to = end;
    for (unsigned found = order; found < kOrders; ++found)
      if (state_->order_head[found] != 0) return {};
  }
}

Result<> Heap::back(std::uint32_t first, std::uint32_t units, std::uint32_t available) {
  const auto all_backed = [&](std::uint32_t n) {
    for (std::uint32_t i = first; i < first + n; ++i)
      if (!backed(i)) return false;
    return true;
  };
  if (all_backed(units)) return {};
  const std::uint32_t step = std::min(step_at(state_->frontier), available);
  std::uint32_t give = std::max(units, step);
  auto given = give_chunks(first, give);
  if (!given && give > units) {
    give = units;
    given = give_chunks(first, give);
  }
  if (!given) return std::unexpected(Error{ENOMEM, std::move(given).error().what});
  join(first, give);
  return {};
}

Result<> Heap::give_chunks(std::uint32_t first, std::uint32_t count) {
  const bool hugetlb = pages_ == Pages::Hugetlb;
  const std::uint32_t unit = hugetlb ? kHugeChunks : 1;
  const std::uint32_t begin = first / unit * unit, end = (first + count + unit - 1) / unit * unit;
  auto given = give_memory(FdRef::borrow(fd_), address(begin), (end - begin) * kChunkBytes);
  if (given) {
    for (std::uint32_t i = begin; i < end; ++i) backed_[i / 64] |= std::uint64_t{1} << (i % 64);
    return {};
  }
  // Of hugetlb memory the kernel keeps what it had given before there was no more: others may need it.
  for (std::uint32_t i = begin; hugetlb && i < end; i += unit)
    if (!backed(i)) punch({i, unit});  // the notes of a huge page are all alike
  return given;
}

void Heap::join(std::uint32_t first, std::uint32_t count) noexcept {
  if (pages_ != Pages::Huge) return;
  const auto whole = [&](std::uint64_t at) {
    if (at < geometry_.heap_at) return false;
    const std::uint64_t begin = (at - geometry_.heap_at) >> kChunkShift;
    if (begin + kHugeChunks > state_->frontier) return false;
    for (std::uint64_t i = begin; i < begin + kHugeChunks; ++i)
      if (!backed(static_cast<std::uint32_t>(i))) return false;
    return true;
  };
  const std::uint64_t end = address(first + count);
  for (std::uint64_t from = address(first) & ~(kHugeBytes - 1); from < end;) {
    std::uint64_t to = from;
    while (to < end && whole(to)) to += kHugeBytes;
    if (to != from) join_pages(base_ + from, to - from);
    from = to + kHugeBytes;
  }
}

// A part of a huge page cannot be punched, or would split it. What is left out keeps its memory and its bits.
Heap::Hole Heap::whole_huge_pages(Hole hole) const noexcept {
  const std::uint64_t from = (address(hole.first) + kHugeBytes - 1) & ~(kHugeBytes - 1);
  const std::uint64_t to = address(hole.first + hole.count) & ~(kHugeBytes - 1);
  if (from >= to) return {hole.first, 0};
  return {static_cast<std::uint32_t>((from - geometry_.heap_at) >> kChunkShift),
          static_cast<std::uint32_t>((to - from) >> kChunkShift)};
}

bool Heap::reclaim_empty() noexcept {
  bool any = false;
  for (unsigned c = 0; c < kClasses; ++c) {
    const std::uint32_t head = state_->class_head[c];
    if (head == 0 || table_[head - 1].used != 0) continue;
    unlink(state_->class_head[c], head - 1);
    free_chunks(head - 1, 0);
    any = true;
  }
  return any;
}

void Heap::push_free(std::uint32_t index, unsigned order) noexcept {
  Chunk& chunk = table_[index];
  log_->save(offset(chunk), sizeof chunk);
  chunk = Chunk{.state = ChunkState::Free,
                .order = static_cast<std::uint8_t>(order),
                .size_class = 0,
                .zero = 0,
                .used = 0,
                .open_words = 0,
                .previous = 0,
                .next = 0,
                .zero2 = 0};
  link(state_->order_head[order], index);
}

void Heap::free_chunks(std::uint32_t index, unsigned order) noexcept {
  const auto clear = [&](std::uint32_t at) {
    log_->save(offset(table_[at]), sizeof(Chunk));
    table_[at] = Chunk{};
  };
  std::uint32_t first = index;
  while (order + 1 < kOrders && log_->room() > keep_log_room_ + kJoinRoom) {
    const std::uint32_t buddy = first ^ (std::uint32_t{1} << order);
    if (std::uint64_t{buddy} + (std::uint64_t{1} << order) > state_->frontier) break;
    if (table_[buddy].state != ChunkState::Free || table_[buddy].order != order) break;
    unlink(state_->order_head[order], buddy);
    clear(buddy);
    first = std::min(first, buddy);
    ++order;
  }
  if (first != index) clear(index);
  push_free(first, order);
  if (order >= kTrimOrder) grown_free_ = first + 1;
}

void Heap::punch(Hole hole) noexcept {
  if (pages_ != Pages::Normal) hole = whole_huge_pages(hole);
  if (hole.count == 0) return;
  // The bits first: a chunk without its bit is given memory again before it is used.
  for (std::uint32_t i = hole.first; i < hole.first + hole.count; ++i)
    backed_[i / 64] &= ~(std::uint64_t{1} << (i % 64));
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (auto taken = take_memory(FdRef::borrow(fd_), address(hole.first), hole.count * kChunkBytes); !taken)
    log(Level::Warning, "arena: memory of a released block stays: {}", taken.error());
}

void Heap::trim() noexcept {
  if (grown_free_ == 0) return;
  const std::uint32_t first = std::exchange(grown_free_, 0) - 1;
  const Chunk& chunk = table_[first];
  if (first >= state_->frontier || chunk.state != ChunkState::Free || chunk.order < kTrimOrder) return;
  const std::uint64_t has = backed_bytes(), used = state_->used_bytes;
  if (has < used + used / 2 + kKeepFree) return;
  const std::uint32_t end = first + (std::uint32_t{1} << chunk.order);
  for (std::uint32_t from = first; from < end;) {
    if (!backed(from)) {
      ++from;
      continue;
    }
    std::uint32_t to = from + 1;
    while (to < end && backed(to)) ++to;
    punch({from, to - from});
    from = to;
  }
}

std::uint64_t Heap::backed_bytes() const noexcept {
  std::uint64_t chunks = 0;
  for (std::uint32_t w = 0; w * 64 < state_->frontier; ++w) {
    const std::uint32_t here = state_->frontier - w * 64;  // growth that was taken back leaves bits behind the frontier
    const std::uint64_t valid = here >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << here) - 1;
    chunks += static_cast<std::uint64_t>(std::popcount(backed_[w] & valid));
  }
  return chunks * kChunkBytes;
}

}  // namespace luo::kho
