#include "kho/arena_open.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "kho/heap.h"
#include "kho/memfd.h"
#include "kho/undo_log.h"

namespace luo::kho {

HeaderConstants constants_of(const Layout& layout, const Geometry& geometry, Pages pages) noexcept {
  HeaderConstants constants{.magic = kArenaMagic,
                            .byte_order = kByteOrder,
                            .format = kFormat,
                            .page_bytes = kPageBytes,
                            .chunk_bytes = kChunkBytes,
                            .record_bytes = sizeof(Chunk),
                            .header_bytes = sizeof(Header),
                            .layout = layout,
                            .pages = pages,
                            .log_at = kLogAt,
                            .log_bytes = kLogBytes,
                            .geometry = geometry,
                            .checksum = 0};
  constants.checksum = checksum_of(constants);
  return constants;
}

Result<> give_first_pages(FdRef memfd, const Geometry& geometry, Pages pages) {
  if (pages != Pages::Hugetlb) return give_memory(memfd, 0, kLogAt + kLogBytes);
  // All metadata: then no page fault there needs the pool, whatever the chunk table says.
  LUO_TRY_DURING("huge pages from the pool (vm.nr_hugepages)", give_memory(memfd, 0, geometry.heap_at));
  return {};
}

Result<> check_pages(Pages pages) {
  if (pages <= Pages::Hugetlb) return {};
  return fail(EPROTO, "pages of kind {}, this program knows 0 to 2", static_cast<std::uint32_t>(pages));
}

Result<Mapping> map_whole(FdRef memfd, const Geometry& geometry, Pages pages) {
  const auto kind = pages == Pages::Huge ? Mapping::Kind::SharedHuge : Mapping::Kind::Shared;
  return Mapping::map(memfd, geometry.file_bytes, kind);
}

namespace {

/// Memory of the two kinds of files obeys different rules, and the header decides which are followed.
Result<> check_file(FdRef memfd, Pages pages) {
  struct statfs fs {};
  if (::fstatfs(memfd.raw, &fs) != 0) return sys_fail("fstatfs(fd {})", memfd.raw);
  const bool hugetlb = fs.f_type == HUGETLBFS_MAGIC;
  if (hugetlb != (pages == Pages::Hugetlb))
    return fail(EBADMSG, "header: pages of kind {}, but the file {}", static_cast<std::uint32_t>(pages),
                hugetlb ? "is one of hugetlb pages" : "has no hugetlb pages");
  if (hugetlb && static_cast<std::uint64_t>(fs.f_bsize) != kHugeBytes)
    return fail(EBADMSG, "header: hugetlb pages of {} bytes, the file has such of {}", kHugeBytes, fs.f_bsize);
  return {};
}

}  // namespace

std::string to_string(const Layout& layout) {
  std::string text;
  for (const char c : layout.tag) {
    if (c == '\0') break;
    if (c > ' ' && c < '\x7f') text += c;
    else text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return fmt::format("{} version {}", text, layout.version);
}

Result<HeaderConstants> read_constants(FdRef memfd) {
  if (::fcntl(memfd.raw, F_GET_SEALS) < 0) {
    if (errno != EINVAL) return sys_fail("fcntl(fd {}, F_GET_SEALS)", memfd.raw);
    return fail(EINVAL, "fd {} is not a memfd", memfd.raw);
  }
  const HeaderConstants constants = LUO_TRY(read_constants_of_copy(memfd));
  LUO_TRY(check_file(memfd, constants.pages));
  return constants;
}

Result<HeaderConstants> read_constants_of_copy(FdRef file) {
  struct stat st {};
  if (::fstat(file.raw, &st) != 0) return sys_fail("fstat(fd {})", file.raw);
  const auto size = static_cast<std::uint64_t>(st.st_size);
  HeaderConstants c{};
  const ssize_t got = ::pread(file.raw, &c, sizeof c, 0);
  if (got < 0) return sys_fail("pread(fd {}, header)", file.raw);
  if (static_cast<std::size_t>(got) != sizeof c) return fail(EBADMSG, "header: the file has only {} bytes", size);
  if (c.magic == __builtin_bswap64(kArenaMagic) && c.byte_order == __builtin_bswap32(kByteOrder))
    return fail(EPROTO, "header: written in the other byte order");
  if (c.magic != kArenaMagic) return fail(EBADMSG, "header: magic is {:#018x}, not {:#018x}", c.magic, kArenaMagic);
  if (c.byte_order != kByteOrder) return fail(EBADMSG, "header: byte order mark is {:#010x}", c.byte_order);
  if (c.format != kFormat) return fail(EPROTO, "header: format {}, this program reads format {}", c.format, kFormat);
  if (c.checksum != checksum_of(c))
    return fail(EBADMSG, "header: checksum is {:#x}, not {:#x}", c.checksum, checksum_of(c));
  if (c.page_bytes != kPageBytes) return fail(EPROTO, "header: pages of {} bytes, here {}", c.page_bytes, kPageBytes);
  LUO_TRY_DURING("header", check_pages(c.pages));
  // From here on a difference means that another program, with the same format number, wrote it.
  const std::uint64_t heap = c.geometry.heap_bytes;
  if (heap < kMinHeapBytes || heap > kMaxHeapBytes || c.chunk_bytes != kChunkBytes || c.record_bytes != sizeof(Chunk) ||
      c.header_bytes != sizeof(Header) || c.log_at != kLogAt || c.log_bytes != kLogBytes ||
      c.geometry != geometry_of(heap, c.pages))
    return fail(EBADMSG, "header: sections are not where a heap of {} bytes has them", heap);
  if (size != c.geometry.file_bytes)
    return fail(EBADMSG, "header: the file should have {} bytes, it has {}", c.geometry.file_bytes, size);
  return c;
}

bool may_roll_back(const Geometry& geometry, std::uint64_t at, std::uint64_t length) noexcept {
  const auto in = [&](std::uint64_t begin, std::uint64_t bytes) {
    return at >= begin && at - begin < bytes && length <= bytes - (at - begin);
  };
  return in(offsetof(Header, state), sizeof(HeaderState)) || in(geometry.table_at, geometry.table_bytes) ||
         in(geometry.bitmap_at, geometry.bitmap_bytes) || in(geometry.heap_at, geometry.heap_bytes);
}

Result<> check_state(std::byte* base, const Geometry& geometry, FdRef memfd) {
  const HeaderState& state = reinterpret_cast<const Header*>(base)->state;
  // Chunks in use have records, and records have memory: bounds what a damaged count can make us read.
  const std::uint64_t memory = LUO_TRY(memory_of(memfd));
  if (state.frontier * (sizeof(Chunk) + kBitmapBytes) > memory)
    return fail(EBADMSG, "header: {} chunks in use, but the file has only {} bytes of memory", state.frontier, memory);
  UndoLog none;
  const Heap heap{base, geometry, none, memfd};
  LUO_TRY(heap.check_table());
  for (unsigned slot = 0; slot < Arena::kRoots; ++slot)
    if (state.roots[slot] != 0 && !heap.is_allocated(state.roots[slot], 1))
      return fail(EBADMSG, "header: root {} is {:#x}, where no block is", slot, state.roots[slot]);
  return {};
}

void bring_in(std::byte* base, const Geometry& geometry) noexcept {
  const auto populate = [&](std::uint64_t at, std::uint64_t bytes) {
    const std::uint64_t first = at & ~(kPageBytes - 1);
    const std::uint64_t end = (at + bytes + kPageBytes - 1) & ~(kPageBytes - 1);
    // What is a hole by now would get memory of its own, which the next punch takes back.
    return ::madvise(base + first, end - first, MADV_POPULATE_READ) == 0;
  };
  auto& state = reinterpret_cast<Header*>(base)->state;
  const std::uint64_t chunks =
      std::min<std::uint64_t>(std::atomic_ref{state.frontier}.load(std::memory_order_relaxed), geometry.chunks);
  // A failure here is also that of a page that nobody may touch: open() says why.
  if (!populate(0, kLogAt + kLogBytes) || chunks == 0 || !populate(geometry.backed_at, chunks / 8 + 8) ||
      !populate(geometry.table_at, chunks * sizeof(Chunk)) || !populate(geometry.bitmap_at, chunks * kBitmapBytes))
    return;
  auto* words = reinterpret_cast<std::uint64_t*>(base + geometry.backed_at);
  const auto backed = [&](std::uint64_t i) {
    return (std::atomic_ref{words[i / 64]}.load(std::memory_order_relaxed) >> (i % 64) & 1) != 0;
  };
  for (std::uint64_t from = 0; from < chunks; ++from) {
    if (!backed(from)) continue;
    std::uint64_t to = from + 1;
    while (to < chunks && backed(to)) ++to;
    populate(geometry.heap_at + from * kChunkBytes, (to - from) * kChunkBytes);
    from = to;
  }
}

}  // namespace luo::kho
