#include "handlers/mend.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include <fmt/format.h>

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace luo::handlers {
namespace {

constexpr unsigned kMode = 07777;

/// The same content, position and nothing else.
Result<Fd> copy_of(const Fd& file, off_t size, unsigned flags) {
  Fd copy = Fd::adopt(memfd_create("luo", flags | MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!copy.valid()) return sys_fail("memfd_create");
  if (ftruncate(copy.raw(), size) != 0) return sys_fail("ftruncate({})", size);
  off_t from = 0;
  while (from < size) {
    const ssize_t n = sendfile(copy.raw(), file.raw(), &from, static_cast<std::size_t>(size - from));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return sys_fail("sendfile({} of {} bytes)", size - from, size);
    if (n == 0) return fail(EIO, "sendfile({} of {} bytes) copied nothing", size - from, size);
  }
  const off_t position = lseek(file.raw(), 0, SEEK_CUR);
  if (position < 0 || lseek(copy.raw(), position, SEEK_SET) != position) return sys_fail("lseek({})", position);
  return copy;
}

/// The same file and position. The kernel brings every file open for reading and writing.
Result<Fd> reopened(const Fd& file, int access) {
  Fd again = Fd::adopt(open(fmt::format("/proc/self/fd/{}", file.raw()).c_str(), access | O_CLOEXEC));
  if (!again.valid()) return sys_fail("open a memfd again, with access mode {}", access);
  const off_t position = lseek(file.raw(), 0, SEEK_CUR);
  if (position < 0 || lseek(again.raw(), position, SEEK_SET) != position) return sys_fail("lseek({})", position);
  return again;
}

}  // namespace

Properties properties_of(int fd, mode_t mode) noexcept {
  const int seals = fcntl(fd, F_GET_SEALS);
  const int flags = fcntl(fd, F_GETFL);
  return {seals < 0 ? 0U : static_cast<unsigned>(seals), static_cast<unsigned>(mode) & kMode,
          flags < 0 ? O_RDWR : flags & (O_ACCMODE | O_APPEND)};
}

Result<Fd> mend(Fd file, const struct stat& now, Properties before) {
  if (!S_ISREG(now.st_mode)) return file;
  const int sealed = fcntl(file.raw(), F_GET_SEALS);
  if (sealed < 0) return file;
  auto seals = static_cast<unsigned>(sealed);
  unsigned mode = now.st_mode & kMode;
  if ((seals & ~before.seals) != 0) {
    const unsigned flags = (before.seals & F_SEAL_EXEC) != 0 ? MFD_NOEXEC_SEAL : 0U;
    file = LUO_TRY_DURING("copy a memfd that came back with seals that it did not have",
                          copy_of(file, now.st_size, flags));
    struct stat copy {};
    if (fstat(file.raw(), &copy) != 0) return sys_fail("fstat of a copy");
    mode = copy.st_mode & kMode;
    seals = flags != 0 ? F_SEAL_EXEC : 0;
  }
  // Executable or not before F_SEAL_EXEC, which fixes that, and seals one that is against writing. Until it has been
  // opened again the owner may do so.
  const int access = before.open & O_ACCMODE;
  const bool other_mode = mode != before.mode || access != O_RDWR;  // also for the time being
  if (other_mode && fchmod(file.raw(), before.mode | S_IRUSR | S_IWUSR) != 0)
    return sys_fail("make a memfd one that can be opened, with mode {:o}", before.mode | S_IRUSR | S_IWUSR);
  const unsigned missing = before.seals & ~seals;
  if (missing != 0 && fcntl(file.raw(), F_ADD_SEALS, missing) != 0)
    return sys_fail("give a memfd its seals {:#x} back", missing);
  if (access != O_RDWR) file = LUO_TRY(reopened(file, access));  // seals take one that can be written
  if ((before.open & O_APPEND) != 0 && fcntl(file.raw(), F_SETFL, O_APPEND) != 0)
    return sys_fail("open a memfd for appending again");
  if (other_mode && fchmod(file.raw(), before.mode) != 0)
    return sys_fail("give a memfd its mode {:o} back", before.mode);
  return file;
}

}  // namespace luo::handlers
