// Physical memory by way of /proc/kcore, and the kernel's map of preserved memory in it.
#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <vector>

#include "inspect/kho.h"

namespace luo::inspect {
namespace {

constexpr std::size_t kMaxSegments = 65536;
constexpr std::uint64_t kPage = 4096;

// A key of the map: below a set bit, whose place tells how large the block is, the block's number. The lowest bits of
// keys are places in a bitmap of one page; tables of pages lead there, with nine bits for each level.
constexpr unsigned kTopBit = 52, kBitmapBits = 15, kTableBits = 9, kTables = 5;
constexpr std::uint64_t kMaxNodes = std::uint64_t{1} << 20;  // of 4 KiB: more than 100 TiB of single pages

Result<> read_exactly(FdRef file, std::uint64_t offset, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t n = ::pread(file.raw, into.data(), into.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return sys_fail("read {} bytes at {:#x}", into.size(), offset);
    if (n == 0) return fail(EBADMSG, "it ends at {:#x}, {} bytes too early", offset, into.size());
    into = into.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

class Walk {
 public:
  explicit Walk(const PhysicalMemory& memory) : memory_{memory} {}

  /// `level` tables lie between this one and the bitmaps; `key`: what the way here says of the keys' upper bits.
  Result<> table(std::uint64_t at, unsigned level, std::uint64_t key) {
    std::vector<std::uint64_t> words(kPage / 8);
    LUO_TRY(node(at, words));
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (words[i] == 0) continue;
      const std::uint64_t below = key << kTableBits | i;
      if (level == 0) LUO_TRY(bitmap(words[i], below << kBitmapBits));
      else LUO_TRY(table(words[i], level - 1, below));
    }
    return {};
  }
  Preserved found;

 private:
  Result<> node(std::uint64_t at, std::span<std::uint64_t> words) {
    if (at % kPage != 0) return fail(EBADMSG, "a part of it at {:#x}, which is no page", at);
    if (found.map_bytes / kPage == kMaxNodes) return fail(EBADMSG, "more than {} pages of it", kMaxNodes);
    found.map_bytes += kPage;
    return memory_.read(at, std::as_writable_bytes(words));
  }
  Result<> bitmap(std::uint64_t at, std::uint64_t first) {
    std::vector<std::uint64_t> words(kPage / 8);
    LUO_TRY(node(at, words));
    for (std::size_t i = 0; i < words.size(); ++i) {
      for (std::uint64_t bits = words[i]; bits != 0; bits &= bits - 1) {
        const std::uint64_t key = first + i * 64 + static_cast<unsigned>(std::countr_zero(bits));
        if (key == 0 || key >> (kTopBit + 1) != 0) return fail(EBADMSG, "{:#x} is in it, which is no block", key);
        const unsigned order = kTopBit - (63 - static_cast<unsigned>(std::countl_zero(key)));
        if (order > kTopBit - 12) return fail(EBADMSG, "{:#x} is in it, which is no block", key);
        found.bytes += kPage << order;
        ++found.blocks;
      }
    }
    return {};
  }
  const PhysicalMemory& memory_;
};

}  // namespace

Result<CoreMemory> CoreMemory::open(const std::string& path) {
  Fd file = Fd::adopt(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return sys_fail("open {}", path);
  CoreMemory memory{std::move(file)};
  Elf64_Ehdr header;
  LUO_TRY_DURING(path, read_exactly(memory.file_, 0, std::as_writable_bytes(std::span{&header, 1})));
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_type != ET_CORE || header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum > kMaxSegments)
    return fail(EBADMSG, "{}: no core file of 64 bits", path);
  std::vector<Elf64_Phdr> segments(header.e_phnum);
  LUO_TRY_DURING(path, read_exactly(memory.file_, header.e_phoff, std::as_writable_bytes(std::span{segments})));
  for (const Elf64_Phdr& segment : segments)  // those of no physical address have the highest one
    if (segment.p_type == PT_LOAD && segment.p_paddr != ~std::uint64_t{0})
      memory.segments_.push_back({segment.p_paddr, segment.p_memsz, segment.p_offset});
  return memory;
}

Result<> CoreMemory::read(std::uint64_t at, std::span<std::byte> into) const {
  for (const Segment& segment : segments_)
    if (at >= segment.physical && at - segment.physical < segment.bytes &&
        into.size() <= segment.bytes - (at - segment.physical))
      return read_exactly(file_, segment.offset + (at - segment.physical), into);
  return fail(EBADMSG, "there is no memory at {:#x}", at);
}

Result<Preserved> count_preserved(const PhysicalMemory& memory, std::uint64_t root) {
  Walk walk{memory};
  LUO_TRY_DURING("map of preserved memory", walk.table(root, kTables - 1, 0));
  return walk.found;
}

}  // namespace luo::inspect
