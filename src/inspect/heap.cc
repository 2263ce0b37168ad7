// What the heap's memory is used for.
#include <map>

#include "inspect/parts.h"
#include "kho/size_class.h"

namespace luo::inspect {
namespace {

using kho::Chunk;
using kho::ChunkState;

struct ClassUse {
  std::uint64_t chunks = 0, used = 0;
};

Json chunk_of(const Chunk& chunk, std::uint64_t at) {
  const std::uint64_t bytes = kho::kChunkBytes << chunk.order;
  switch (chunk.state) {
    case ChunkState::Small: {
      const kho::SizeClass& size = kho::kSizeClasses[chunk.size_class];
      return {{"at", at},
              {"bytes", bytes},
              {"state", "small"},
              {"block_bytes", size.bytes},
              {"blocks", size.blocks},
              {"used_blocks", chunk.used}};
    }
    case ChunkState::Large:
      return {{"at", at}, {"bytes", bytes}, {"state", "large"}, {"used_bytes", chunk.used * kho::kChunkBytes}};
    default: return {{"at", at}, {"bytes", bytes}, {"state", "free"}};
  }
}

}  // namespace

Json heap_of(const kho::Snapshot& arena, bool all) {
  const std::span<const Chunk> chunks = arena.chunks();
  const kho::HeaderState& state = arena.state();
  std::map<std::uint64_t, ClassUse> classes;
  std::map<std::uint64_t, std::uint64_t> large, free;  // number by size
  std::uint64_t with_memory = 0, free_chunks = 0;
  Json each = Json::array();
  for (std::uint32_t i = 0; i < chunks.size(); i += std::uint32_t{1} << chunks[i].order) {
    const Chunk& chunk = chunks[i];
    if (chunk.state == ChunkState::Small) {
      ClassUse& use = classes[chunk.size_class];
      ++use.chunks;
      use.used += chunk.used;
    } else if (chunk.state == ChunkState::Large) {
      ++large[chunk.used * kho::kChunkBytes];
    } else {
      ++free[kho::kChunkBytes << chunk.order];
      free_chunks += std::uint64_t{1} << chunk.order;
    }
    if (all) each.push_back(chunk_of(chunk, arena.constants().geometry.heap_at + i * kho::kChunkBytes));
  }
  for (std::uint32_t i = 0; i < chunks.size(); ++i) with_memory += arena.has_memory(i) ? 1 : 0;

  Json small = Json::array();
  for (const auto& [number, use] : classes) {
    const kho::SizeClass& size = kho::kSizeClasses[number];
    const std::uint64_t blocks = use.chunks * size.blocks;
    small.push_back({{"block_bytes", size.bytes},
                     {"chunks", use.chunks},
                     {"used_blocks", use.used},
                     {"free_blocks", blocks - use.used},
                     {"used_bytes", use.used * size.bytes},
                     {"free_bytes", (blocks - use.used) * size.bytes}});
  }
  const auto list_of = [](const std::map<std::uint64_t, std::uint64_t>& sizes) {
    Json list = Json::array();
    for (const auto& [bytes, number] : sizes) list.push_back({{"block_bytes", bytes}, {"blocks", number}});
    return list;
  };
  const std::uint64_t memory = with_memory * kho::kChunkBytes;
  Json heap = {{"max_bytes", arena.constants().geometry.heap_bytes},
               {"used_bytes", state.used_bytes},
               {"free_bytes", memory - std::min(memory, state.used_bytes)},
               {"memory_bytes", memory},
               {"blocks", state.blocks},
               {"chunk_bytes", kho::kChunkBytes},
               {"chunks", chunks.size()},
               {"free_chunks", free_chunks},
               {"small", std::move(small)},
               {"large", list_of(large)},
               {"free", list_of(free)}};
  if (all) heap["chunk_list"] = std::move(each);
  return heap;
}

}  // namespace luo::inspect
