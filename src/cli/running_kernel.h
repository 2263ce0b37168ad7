// What the kernel that runs here would hand over. Any thread.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "inspect/kho.h"
#include "kexec/state_formats.h"

namespace luo::cli {

struct Range {
  std::uint64_t begin, end;  ///< physical, end is behind it
  bool operator==(const Range&) const = default;
};
/// Where /proc/iomem, whose text this is, says that the kernel has its constants. EBADMSG: nowhere; who is not root is
/// told so only.
Result<std::vector<Range>> constants_in(std::string_view iomem);

/// By what stands in those of `memory`. EBADMSG: none.
Result<kexec::StateFormats> formats_in(const inspect::PhysicalMemory& memory, const std::vector<Range>& constants);

/// Of the running kernel, through /proc/kcore; root's.
Result<kexec::StateFormats> running_formats();

}  // namespace luo::cli
