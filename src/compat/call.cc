#include "compat/call.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

namespace luo::compat {
namespace {

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

/// A thread may have a table of its own; before Linux 6.9 only the leader's can be had: then `of_leader`.
Fd pidfd_of(pid_t thread, bool& of_leader) {
  of_leader = false;
  Fd own = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, thread, PIDFD_THREAD)));
  if (own.valid() || errno != EINVAL) return own;
  Fd leader = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, thread, 0)));
  if (leader.valid() || (errno != EINVAL && errno != ENOENT)) return leader;
  std::array<char, 4096> text{};
  const Fd status = Fd::adopt(::open(fmt::format("/proc/{}/status", thread).c_str(), O_RDONLY | O_CLOEXEC));
  if (!status.valid() || ::read(status.raw(), text.data(), text.size() - 1) <= 0) return {};
  const char* line = std::strstr(text.data(), "\nTgid:\t");
  if (line == nullptr) return {};
  of_leader = true;
  return Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, std::atoi(line + 7), 0)));
}

}  // namespace

bool Call::is_pending() const { return ::ioctl(listener_, SECCOMP_IOCTL_NOTIF_ID_VALID, &request_.id) == 0; }

bool Call::copy(std::uint64_t address, std::span<std::byte> into) const {
  const iovec local{into.data(), into.size()};
  const iovec remote{reinterpret_cast<void*>(address), into.size()};
  return ::process_vm_readv(thread(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(into.size());
}

bool Call::read(std::uint64_t address, std::span<std::byte> into) const {
  return copy(address, into) && is_pending();  // only now: before, the number may have been another process's already
}

bool Call::write(std::uint64_t address, std::span<const std::byte> bytes) const {
  if (!is_pending()) return false;
  const iovec local{const_cast<std::byte*>(bytes.data()), bytes.size()};
  const iovec remote{reinterpret_cast<void*>(address), bytes.size()};
  return ::process_vm_writev(thread(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes.size());
}

std::optional<std::string> Call::read_path(std::uint64_t address) const {
  std::array<char, PATH_MAX> path;
  std::size_t length = 0;
  while (length < path.size()) {
    // Not over the end of a page: the next one need not be there.
    const std::size_t in_page = 4096 - (address + length) % 4096;
    const std::size_t n = std::min({in_page, std::size_t{256}, path.size() - length});
    if (!copy(address + length, std::as_writable_bytes(std::span{path}.subspan(length, n)))) return std::nullopt;
    if (std::memchr(path.data() + length, 0, n) != nullptr) return std::string{path.data()};
    length += n;
  }
  return std::nullopt;
}

Result<Fd> Caller::descriptor(pid_t thread, int number) {
  for (;;) {
    const bool kept = pidfd_.valid() && thread_ == thread;
    if (!kept) {
      bool of_leader = false;
      pidfd_ = pidfd_of(thread, of_leader);
      thread_ = of_leader ? 0 : thread;  // which may live on when the number is another process's thread
    }
    if (!pidfd_.valid()) return sys_fail("pidfd_open({})", thread);
    Fd copy = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd_.raw(), number, 0)));
    if (copy.valid()) return copy;
    // A pidfd stays with its thread; the number may be another's by now, whose pidfd is another one.
    const Error error = Error{errno, fmt::format("fetch descriptor {} of process {}", number, thread)};
    if (error.code != EBADF) pidfd_.close();
    if (!kept || error.code != ESRCH) return std::unexpected(error);
  }
}

Result<Fd> Call::descriptor(int number, Caller& last) const {
  Fd copy = LUO_TRY(last.descriptor(thread(), number));
  if (!is_pending()) return fail(ESRCH, "process {} has died", thread());
  return copy;
}

bool Call::table_is_full() const {
  rlimit limit{};
  if (::prlimit(thread(), RLIMIT_NOFILE, nullptr, &limit) != 0) return false;
  DIR* listing = ::opendir(fmt::format("/proc/{}/fd", thread()).c_str());
  if (listing == nullptr) return false;
  rlim_t used = 0;
  while (const dirent* entry = ::readdir(listing)) {
    std::uint64_t number = 0;
    const char* end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, number).ptr == end && number < limit.rlim_cur) ++used;
  }
  ::closedir(listing);
  return used >= limit.rlim_cur;
}

Result<int> Call::give(FdRef fd, bool close_on_exec) const {
  seccomp_notif_addfd add{};
  add.id = request_.id;
  add.srcfd = static_cast<std::uint32_t>(fd.raw);
  add.newfd_flags = close_on_exec ? O_CLOEXEC : 0;
  const int number = ::ioctl(listener_, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
  if (number < 0) return sys_fail("give a descriptor to process {}", thread());
  return number;
}

Result<> Call::answer_with(FdRef fd, bool close_on_exec) const {
  seccomp_notif_addfd add{};
  add.id = request_.id;
  add.flags = SECCOMP_ADDFD_FLAG_SEND;
  add.srcfd = static_cast<std::uint32_t>(fd.raw);
  add.newfd_flags = close_on_exec ? O_CLOEXEC : 0;
  if (::ioctl(listener_, SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0) return {};
  if (errno == EMFILE) return sys_fail("give a descriptor to process {}", thread());
  answer(errno);
  return {};
}

void Call::send(int error, std::uint32_t flags) const {
  seccomp_notif_resp response{};
  response.id = request_.id;
  response.error = -error;
  response.flags = flags;
  (void)::ioctl(listener_, SECCOMP_IOCTL_NOTIF_SEND, &response);  // ENOENT: it has died
}

void Call::answer(int error) const { send(error, 0); }
void Call::go_on() const { send(0, SECCOMP_USER_NOTIF_FLAG_CONTINUE); }

}  // namespace luo::compat
