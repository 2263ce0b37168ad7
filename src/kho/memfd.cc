#include "kho/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

namespace luo::kho {

Result<Fd> create_memfd(std::string_view name, std::uint64_t bytes) {
  const std::string text{name};
  // Not MFD_NOEXEC_SEAL: Linux 7.3 gives such a file back sealed against writing after a kexec.
  Fd fd = Fd::adopt(::memfd_create(text.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return sys_fail("memfd_create({})", name);
  if (::ftruncate(fd.raw(), static_cast<off_t>(bytes)) != 0) return sys_fail("ftruncate(fd {}, {})", fd.raw(), bytes);
  if (::fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return sys_fail("fcntl(fd {}, F_ADD_SEALS, SHRINK | GROW)", fd.raw());
  return fd;
}

Result<> give_memory(FdRef fd, std::uint64_t at, std::uint64_t bytes) {
  while (::fallocate(fd.raw, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at), static_cast<off_t>(bytes)) != 0)
    if (errno != EINTR) return sys_fail("fallocate(fd {}, {} bytes at {})", fd.raw, bytes, at);
  return {};
}

Result<> take_memory(FdRef fd, std::uint64_t at, std::uint64_t bytes) {
  while (::fallocate(fd.raw, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                     static_cast<off_t>(bytes)) != 0)
    if (errno != EINTR) return sys_fail("fallocate(fd {}, PUNCH_HOLE, {} bytes at {})", fd.raw, bytes, at);
  return {};
}

Result<std::uint64_t> memory_of(FdRef fd) {
  struct stat st {};
  if (::fstat(fd.raw, &st) != 0) return sys_fail("fstat(fd {})", fd.raw);
  return static_cast<std::uint64_t>(st.st_blocks) * 512;
}

Result<Mapping> Mapping::map(FdRef fd, std::uint64_t bytes, Kind kind) {
  const int flags = (kind == Kind::Shared ? MAP_SHARED : MAP_PRIVATE) | MAP_NORESERVE;
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd.raw, 0);
  if (at == MAP_FAILED) return sys_fail("mmap(fd {}, {} bytes)", fd.raw, bytes);
  return Mapping{static_cast<std::byte*>(at), bytes};
}

Mapping::~Mapping() {
  if (at_ != nullptr) ::munmap(at_, bytes_);
}

}  // namespace luo::kho
