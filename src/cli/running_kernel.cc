#include "cli/running_kernel.h"

#include <fcntl.h>

#include <algorithm>
#include <charconv>

#include "base/strong.h"
#include "sys/memfd.h"

namespace luo::cli {
namespace {

constexpr std::uint64_t kPiece = 1 << 20;
constexpr std::uint64_t kMost = 256 << 20;  ///< of constants

}  // namespace

Result<std::vector<Range>> constants_in(std::string_view iomem) {
  std::vector<Range> found;
  while (!iomem.empty()) {
    std::string_view line = iomem.substr(0, iomem.find('\n'));
    iomem.remove_prefix(std::min(line.size() + 1, iomem.size()));
    if (!line.ends_with(" : Kernel rodata")) continue;
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    Range range{};
    const char* const end = line.data() + line.size();
    const auto first = std::from_chars(line.data(), end, range.begin, 16);
    if (first.ec != std::errc{} || first.ptr == end || *first.ptr != '-') continue;
    const auto second = std::from_chars(first.ptr + 1, end, range.end, 16);
    if (second.ec != std::errc{} || range.end <= range.begin || range.end - range.begin >= kMost) continue;
    ++range.end;
    found.push_back(range);
  }
  if (found.empty()) return fail(EBADMSG, "/proc/iomem does not say where the kernel's constants are");
  return found;
}

Result<kexec::StateFormats> formats_in(const inspect::PhysicalMemory& memory, const std::vector<Range>& constants) {
  kexec::FormatFinder finder;
  std::vector<std::byte> piece(kPiece);
  for (const Range& range : constants) {
    for (std::uint64_t at = range.begin; at < range.end; at += kPiece) {
      const auto part = std::span{piece}.first(std::min(kPiece, range.end - at));
      LUO_TRY(memory.read(at, part));
      finder.feed(part);
    }
  }
  if (finder.found().empty()) return fail(EBADMSG, "no format of KHO or LUO is among the kernel's constants");
  return finder.found();
}

Result<kexec::StateFormats> running_formats() {
  const Fd file = Fd::adopt(open("/proc/iomem", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return sys_fail("open('/proc/iomem')");
  const std::string iomem = LUO_TRY(read_all(file, 1024_KiB));
  const auto constants = LUO_TRY(constants_in(iomem));
  const auto memory = LUO_TRY(inspect::CoreMemory::open());
  return formats_in(memory, constants);
}

}  // namespace luo::cli
