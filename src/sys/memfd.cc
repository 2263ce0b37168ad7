#include "sys/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace luo {

Result<Fd> make_memfd(const std::string& name, unsigned flags) {
  Fd fd = Fd::adopt(memfd_create(name.c_str(), flags | MFD_CLOEXEC));
  if (!fd.valid()) return sys_fail("memfd_create('{}', {:#x})", name, flags);
  return fd;
}

Result<> write_all(FdRef file, std::string_view content) {
  while (!content.empty()) {
    const ssize_t n = write(file.raw, content.data(), content.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return sys_fail("write(fd {}, {} bytes)", file.raw, content.size());
    }
    content.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

Result<Fd> sealed_memfd(const std::string& name, std::string_view content) {
  Fd fd = LUO_TRY(make_memfd(name, MFD_ALLOW_SEALING));
  LUO_TRY_DURING("fill a memfd", write_all(fd, content));
  if (lseek(fd.raw(), 0, SEEK_SET) != 0) return sys_fail("lseek(memfd '{}')", name);
  constexpr int kAll = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (fcntl(fd.raw(), F_ADD_SEALS, kAll) != 0) return sys_fail("fcntl(memfd '{}', F_ADD_SEALS, {:#x})", name, kAll);
  return fd;
}

Result<std::string> read_all(FdRef file, Bytes limit) {
  constexpr std::size_t kChunk = 64 * 1024;
  std::string content;
  bool seekable = true;
  for (;;) {
    const std::size_t had = content.size();
    // One byte more than allowed is asked for, so that "exactly the limit" and "more" differ.
    const std::size_t want = static_cast<std::size_t>(std::min<std::uint64_t>(kChunk, limit.raw() - had + 1));
    content.resize(had + want);
    ssize_t n = seekable ? pread(file.raw, content.data() + had, want, static_cast<off_t>(had))
                         : read(file.raw, content.data() + had, want);
    if (n < 0 && errno == ESPIPE && seekable) {
      seekable = false;
      content.resize(had);
      continue;
    }
    if (n < 0 && errno != EINTR) return sys_fail("read(fd {}, {} bytes @{})", file.raw, want, had);
    const bool interrupted = n < 0;
    if (interrupted) n = 0;
    content.resize(had + static_cast<std::size_t>(n));
    if (content.size() > limit.raw()) return fail(EFBIG, "read fd {}: more than {} bytes", file.raw, limit.raw());
    if (n == 0 && !interrupted) return content;
  }
}

}  // namespace luo
