#include "kho/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "kho/format.h"

namespace luo::kho {

Result<Fd> create_memfd(std::string_view name, std::uint64_t bytes, Pages pages) {
  constexpr unsigned kOf2MiB = 21U << 26;  // MFD_HUGE_2MB, whatever the system's default is
  const std::string text{name};
  const unsigned hugetlb = pages == Pages::Hugetlb ? MFD_HUGETLB | kOf2MiB : 0;
  // Not MFD_NOEXEC_SEAL: Linux 7.3 gives such a file back sealed against writing after a kexec.
  Fd fd = Fd::adopt(::memfd_create(text.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | hugetlb));
  if (!fd.valid()) return sys_fail("memfd_create({}{})", name, hugetlb != 0 ? ", hugetlb pages of 2 MiB" : "");
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

void join_pages(std::byte* at, std::uint64_t bytes) noexcept {
#ifndef MADV_COLLAPSE
  constexpr int MADV_COLLAPSE = 25;  // Linux 6.1; glibc 2.36 does not know it
#endif
  // Not by page faults in a range with MADV_HUGEPAGE: those obey shmem_enabled, which is "never" on most systems.
  (void)::madvise(at, bytes, MADV_COLLAPSE);
}

Result<Mapping> Mapping::map(FdRef fd, std::uint64_t bytes, Kind kind) {
  if (kind == Kind::SharedHuge) return map_aligned(fd, bytes);
  const int flags = (kind == Kind::Shared ? MAP_SHARED : MAP_PRIVATE) | MAP_NORESERVE;
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd.raw, 0);
  if (at == MAP_FAILED) return sys_fail("mmap(fd {}, {} bytes)", fd.raw, bytes);
  return Mapping{static_cast<std::byte*>(at), bytes};
}

Result<Mapping> Mapping::anonymous(std::uint64_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return sys_fail("mmap({} bytes)", bytes);
  return Mapping{static_cast<std::byte*>(at), bytes};
}

Result<Mapping> Mapping::map_aligned(FdRef fd, std::uint64_t bytes) {
  // Addresses first, more than needed; the file over a part of them; the rest is given back.
  const std::uint64_t range = bytes + kHugeBytes;
  void* reserved = ::mmap(nullptr, range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return sys_fail("mmap({} bytes of addresses)", range);
  auto* begin = static_cast<std::byte*>(reserved);
  const std::uint64_t skip = -reinterpret_cast<std::uintptr_t>(begin) % kHugeBytes;
  std::byte* at = begin + skip;
  if (::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd.raw, 0) == MAP_FAILED) {
    auto failed = sys_fail("mmap(fd {}, {} bytes)", fd.raw, bytes);
    ::munmap(begin, range);
    return failed;
  }
  const std::uint64_t end = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (skip != 0) ::munmap(begin, skip);
  ::munmap(at + end, range - skip - end);
  (void)::madvise(at, bytes, MADV_HUGEPAGE);  // lets khugepaged do, too, where the system has it do
  return Mapping{at, bytes};
}

Mapping::~Mapping() {
  if (at_ != nullptr) ::munmap(at_, bytes_);
}

}  // namespace luo::kho
