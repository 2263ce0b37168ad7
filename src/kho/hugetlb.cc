#include "kho/hugetlb.h"

#include <algorithm>

namespace luo::kho {
namespace {

/// Of each huge page's chunks.
constexpr std::uint64_t kBits = (std::uint64_t{1} << kHugeChunks) - 1;
static_assert(64 % kHugeChunks == 0);

}  // namespace

Result<Mapping> copy_metadata(const Mapping& arena, const Geometry& geometry, std::uint64_t log_bytes) {
  const std::uint64_t chunks = ArenaParts{arena.at()}.frontier();
  if (chunks > geometry.chunks) return fail(EBADMSG, "header: {} chunks in use of {}", chunks, geometry.chunks);
  Mapping copy = LUO_TRY(Mapping::anonymous(geometry.heap_at));
  const auto part = [&](std::uint64_t at, std::uint64_t bytes) { std::memcpy(copy.at() + at, arena.at() + at, bytes); };
  part(0, kLogAt + sizeof(LogHeader) + log_bytes);
  part(geometry.table_at, chunks * sizeof(Chunk));
  part(geometry.bitmap_at, chunks * kBitmapBytes);
  return copy;
}

Result<> check_copy(const Mapping& copy, const Mapping& arena) {
  const std::uint32_t before = ArenaParts{arena.at()}.frontier(), after = ArenaParts{copy.at()}.frontier();
  if (after <= before) return {};
  return fail(EBADMSG, "undo log: it would bring chunks {} to {} into use", before, after - 1);
}

Result<> give_noted(const Mapping& arena, const std::byte* settled, const std::vector<Extent>& written, FdRef memfd) {
  const Geometry geometry = ArenaParts{arena.at()}.geometry();
  auto* const words = reinterpret_cast<std::uint64_t*>(arena.at() + geometry.backed_at);
  const std::uint64_t pages = geometry.heap_bytes / kHugeBytes;
  std::vector<bool> needed(pages);
  for (std::uint64_t page = 0; page < pages; ++page)
    needed[page] = (words[page * kHugeChunks / 64] >> (page * kHugeChunks % 64) & kBits) != 0;
  const auto need = [&](const std::vector<Extent>& runs) {
    for (const Extent& run : runs)
      for (std::uint64_t at = std::max(run.at, geometry.heap_at) - geometry.heap_at;
           geometry.heap_at + at < run.at + run.bytes; at = (at / kHugeBytes + 1) * kHugeBytes)
        needed[at / kHugeBytes] = true;
  };
  need(chunks_in_use({settled}));
  need(written);
  for (std::uint64_t from = 0; from < pages; ++from) {
    std::uint64_t to = from;
    while (to < pages && needed[to]) ++to;
    if (to == from) continue;
    LUO_TRY_DURING("huge pages from the pool (vm.nr_hugepages)",
                   give_memory(memfd, geometry.heap_at + from * kHugeBytes, (to - from) * kHugeBytes));
    from = to;
  }
  for (std::uint64_t page = 0; page < pages; ++page) {
    if (!needed[page]) continue;
    std::uint64_t& word = words[page * kHugeChunks / 64];
    const std::uint64_t noted = word | kBits << (page * kHugeChunks % 64);
    if (word != noted) word = noted;
  }
  return {};
}

}  // namespace luo::kho
