// What a kernel that is to be started tells about itself before it is. Any thread.
#pragma once
#include <optional>
#include <string>

#include "base/fd.h"
#include "kexec/configuration.h"
#include "kexec/image.h"
#include "kexec/state_formats.h"

namespace luo::kexec {

struct Target {
  Format format = Format::Elf;
  std::string machine, release, unloadable;  ///< as in Image
  std::uint32_t page_size = 0, longest_line = 0;
  std::uint64_t size = 0;  ///< of the file, in bytes
  std::string unread;      ///< why the kernel could not be unpacked, and its configuration not be looked for
  Configuration configuration;
  StateFormats formats;  ///< that it knows; empty: it has none, or could not be unpacked
  Verdict has_luo_by_age = Verdict::NotKnown;  ///< its version is at least 6.19, the first with LUO
};

/// Reads the kernel image in `file`, which stays untouched, and what lies beside its `path`. The whole image is
/// unpacked, so that damage shows. Errors: EBADMSG it is no kernel image, or a damaged one; EINVAL it is no regular
/// file; EFBIG; those of reading it. No memory is taken because an image asks for it, beyond fixed limits.
Result<Target> examine(FdRef file, const std::string& path);

/// Of "6.19.3-rc1+": whether it is at least 6.19. NotKnown: it is no version.
Verdict has_luo_by_age(std::string_view release) noexcept;

}  // namespace luo::kexec
