// What must hold in a heap. Nothing here trusts what it reads: an index is compared before it is used.
#include <algorithm>
#include <array>
#include <bit>

#include "kho/heap.h"
#include "kho/size_class.h"

namespace luo::kho {
namespace {

std::string_view name_of(ChunkState state) noexcept {
  switch (state) {
    case ChunkState::Inside: return "inside";
    case ChunkState::Free: return "free";
    case ChunkState::Small: return "small";
    case ChunkState::Large: return "large";
  }
  return "unknown";
}

/// Cheaper than comparing field by field: takeover asks it of most chunks.
bool is_zero(const Chunk& chunk) noexcept {
  const auto words = std::bit_cast<std::array<std::uint64_t, sizeof(Chunk) / 8>>(chunk);
  return (words[0] | words[1] | words[2] | words[3]) == 0;
}

}  // namespace

Result<> Heap::check_record(std::uint32_t index, const Chunk& chunk) const {
  const auto bad = [&](std::string_view what) {
    return fail(EBADMSG, "chunk {} ({}): {}", index, name_of(chunk.state), what);
  };
  const std::uint64_t chunks = std::uint64_t{1} << (chunk.order % 64);
  if (chunk.order >= kOrders || index % chunks != 0 || index + chunks > state_->frontier)
    return bad(fmt::format("order {} does not fit there", chunk.order));
  if (chunk.zero != 0 || chunk.zero2 != 0) return bad("a reserved field is used");
  switch (chunk.state) {
    case ChunkState::Free:
      if (chunk.size_class != 0 || chunk.used != 0 || chunk.open_words != 0)
        return bad("a field of another state is used");
      return {};
    case ChunkState::Large:
      if (chunk.size_class != 0 || chunk.open_words != 0 || chunk.previous != 0 || chunk.next != 0)
        return bad("a field of another state is used");
      if (chunk.used == 0 || chunk.used > chunks || std::bit_width(chunk.used - 1U) != chunk.order)
        return bad(fmt::format("{} chunks in use in a block of order {}", chunk.used, chunk.order));
      return {};
    case ChunkState::Small: {
      if (chunk.order != 0) return bad(fmt::format("order is {}", chunk.order));
      if (chunk.size_class >= kClasses) return bad(fmt::format("size class is {}", chunk.size_class));
      const SizeClass& size = kSizeClasses[chunk.size_class];
      if (chunk.used > size.blocks) return bad(fmt::format("{} of {} blocks are in use", chunk.used, size.blocks));
      if ((chunk.open_words & ~size.all_words) != 0 || (chunk.used == size.blocks) != (chunk.open_words == 0) ||
          (chunk.used == 0 && chunk.open_words != size.all_words))
        return bad(fmt::format("{} of {} blocks are in use, but words {:#x} have free ones", chunk.used, size.blocks,
                               chunk.open_words));
      if (chunk.open_words == 0 && (chunk.previous != 0 || chunk.next != 0)) return bad("is full, but in a list");
      if (chunk.used == 0 && (chunk.previous != 0 || chunk.next != 0))
        return bad("is empty, but not alone in its list");
      return {};
    }
    case ChunkState::Inside: break;
  }
  return bad(fmt::format("a block should start here; state is {}", static_cast<unsigned>(chunk.state)));
}

Result<> Heap::check_links(std::uint32_t index, const Chunk& chunk) const {
  const bool listed = chunk.state == ChunkState::Free || (chunk.state == ChunkState::Small && chunk.open_words != 0);
  if (!listed) return {};
  const std::uint32_t head =
      chunk.state == ChunkState::Free ? state_->order_head[chunk.order] : state_->class_head[chunk.size_class];
  const auto same_list = [&](const Chunk& other) {
    return other.state == chunk.state &&
           (chunk.state == ChunkState::Free ? other.order == chunk.order : other.size_class == chunk.size_class);
  };
  const std::uint32_t frontier = state_->frontier;
  if (chunk.next != 0 &&
      (chunk.next > frontier || table_[chunk.next - 1].previous != index + 1 || !same_list(table_[chunk.next - 1])))
    return fail(EBADMSG, "chunk {} ({}): chunk {} does not follow it", index, name_of(chunk.state), chunk.next - 1);
  if (chunk.previous == 0 ? head != index + 1
                          : chunk.previous > frontier || table_[chunk.previous - 1].next != index + 1 ||
                                !same_list(table_[chunk.previous - 1]))
    return fail(EBADMSG, "chunk {} ({}): its list does not lead to it", index, name_of(chunk.state));
  return {};
}

Result<> Heap::check_table() const {
  const HeaderState& state = *state_;
  if (state.zero != 0 || state.zero2 != 0) return fail(EBADMSG, "header: a reserved field is used");
  if (state.frontier > geometry_.chunks)
    return fail(EBADMSG, "header: {} chunks in use of {}", state.frontier, geometry_.chunks);
  std::uint64_t blocks = 0, bytes = 0;
  for (std::uint32_t index = 0; index < state.frontier;) {
    const Chunk& chunk = table_[index];
    LUO_TRY(check_record(index, chunk));
    LUO_TRY(check_links(index, chunk));
    const std::uint32_t end = index + (std::uint32_t{1} << chunk.order);
    for (std::uint32_t i = index + 1; i < end; ++i)
      if (!is_zero(table_[i]))
        return fail(EBADMSG, "chunk {}: has a record of its own inside the block of chunk {}", i, index);
    if (chunk.state == ChunkState::Large) {
      ++blocks;
      bytes += chunk.used * kChunkBytes;
    } else if (chunk.state == ChunkState::Small) {
      blocks += chunk.used;
      bytes += std::uint64_t{chunk.used} * kSizeClasses[chunk.size_class].bytes;
    }
    index = end;
  }
  if (blocks != state.blocks || bytes != state.used_bytes)
    return fail(EBADMSG, "header: counts {} blocks of {} bytes, the chunk table has {} of {}", state.blocks,
                state.used_bytes, blocks, bytes);
  // Every member of a list has been found to lead to its head; now the heads must lead to members.
  const auto check_head = [&](std::string_view kind, unsigned n, std::uint32_t head, auto fits) -> Result<> {
    if (head == 0) return {};
    if (head > state.frontier || !fits(table_[head - 1]) || table_[head - 1].previous != 0)
      return fail(EBADMSG, "header: list of {} {} starts at chunk {}, which is not of it", kind, n, head - 1);
    return {};
  };
  for (unsigned n = 0; n < kClassSlots; ++n)
    LUO_TRY(check_head("size class", n, state.class_head[n], [n](const Chunk& chunk) {
      return chunk.state == ChunkState::Small && chunk.size_class == n && chunk.open_words != 0;
    }));
  for (unsigned n = 0; n < kOrders; ++n)
    LUO_TRY(check_head("order", n, state.order_head[n],
                       [n](const Chunk& chunk) { return chunk.state == ChunkState::Free && chunk.order == n; }));
  return {};
}

Result<> Heap::check_bitmap(std::uint32_t index, const Chunk& chunk) const {
  const std::uint32_t blocks = chunk.state == ChunkState::Small ? kSizeClasses[chunk.size_class].blocks : 0;
  std::uint32_t used = 0;
  for (std::uint32_t w = 0; w < kBitmapWords; ++w) {
    const std::uint64_t word = bitmap(index)[w];
    const std::uint32_t first = w * 64;
    const std::uint32_t here = first >= blocks ? 0 : std::min<std::uint32_t>(64, blocks - first);
    const std::uint64_t valid = here == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << here) - 1;
    if ((word & ~valid) != 0)
      return fail(EBADMSG, "chunk {}: word {} of its bitmap names blocks that do not exist", index, w);
    if (chunk.state == ChunkState::Small && ((chunk.open_words >> w & 1U) != 0) != (word != valid))
      return fail(EBADMSG, "chunk {}: word {} of its bitmap is {:#x}, its record says otherwise", index, w, word);
    used += static_cast<std::uint32_t>(std::popcount(word));
  }
  if (chunk.state == ChunkState::Small && used != chunk.used)
    return fail(EBADMSG, "chunk {}: its bitmap has {} blocks in use, its record {}", index, used, chunk.used);
  return {};
}

/// Links that fit in both directions leave one thing open: a ring of chunks to which no head leads.
Result<> Heap::check_lists() const {
  std::uint64_t listed = 0, reached = 0;
  for (std::uint32_t index = 0; index < state_->frontier; index += std::uint32_t{1} << table_[index].order) {
    const Chunk& chunk = table_[index];
    if (chunk.state == ChunkState::Free || (chunk.state == ChunkState::Small && chunk.open_words != 0)) ++listed;
  }
  const auto walk = [&](std::uint32_t at) {
    for (; at != 0 && reached <= listed; at = table_[at - 1].next) ++reached;
  };
  std::ranges::for_each(state_->class_head, walk);
  std::ranges::for_each(state_->order_head, walk);
  if (reached != listed)
    return fail(EBADMSG, "chunk table: {} chunks are in lists, their heads lead to {}: some form a cycle", listed,
                reached);
  return {};
}

Result<> Heap::check_blocks() const {
  LUO_TRY(check_table());
  LUO_TRY(check_lists());
  for (std::uint32_t index = 0; index < state_->frontier; ++index) {
    const Chunk& chunk = table_[index];
    LUO_TRY(check_bitmap(index, chunk));
    const std::uint32_t used = chunk.state == ChunkState::Large ? chunk.used : chunk.state == ChunkState::Small ? 1 : 0;
    for (std::uint32_t i = index; i < index + used; ++i)
      if (!backed(i)) return fail(EBADMSG, "chunk {}: is in use, but not noted as having memory", i);
  }
  return {};
}

}  // namespace luo::kho
