// One system call of a target, which waits for our answer.
#pragma once
#include <linux/seccomp.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace luo::compat {

/// The thread that called last, as a pidfd: most calls come from the one that made the call before. Not by several
/// threads at once.
class Caller {
 public:
  /// EBADF; EPERM: it is not dumpable; ESRCH.
  Result<Fd> descriptor(pid_t thread, int number);

 private:
  pid_t thread_ = 0;
  Fd pidfd_;
};

/// What a target says may be a lie, and may change while it is looked at: everything is read once. Copyable; the
/// listener must live as long as it. Exactly one of answer(), answer_with() and go_on() ends it; for a target that has
/// died all of them do nothing.
class Call {
 public:
  Call(FdRef listener, const seccomp_notif& request) noexcept : listener_{listener.raw}, request_{request} {}

  const seccomp_data& data() const noexcept { return request_.data; }
  std::uint64_t argument(unsigned i) const noexcept { return request_.data.args[i]; }
  /// The thread that called, as we see it.
  pid_t thread() const noexcept { return static_cast<pid_t>(request_.pid); }

  /// All of it or nothing. false: EFAULT there, or the target has died.
  bool read(std::uint64_t address, std::span<std::byte> into) const;
  bool write(std::uint64_t address, std::span<const std::byte> bytes) const;
  /// A NUL-terminated string of at most PATH_MAX bytes with its NUL. Nothing: EFAULT or ENAMETOOLONG, which the kernel
  /// will say. May be another process's, which has the number of a target that has died: ask is_pending() before more
  /// follows from it than go_on().
  std::optional<std::string> read_path(std::uint64_t address) const;

  /// Whether it still waits: what was read before is its own.
  bool is_pending() const;

  /// A copy of a descriptor of the target: same open file. EBADF; EPERM: the target is not dumpable; ESRCH.
  Result<Fd> descriptor(int number, Caller& last) const;
  /// Whether the next open would be EMFILE. O(descriptors): for errors only.
  bool table_is_full() const;

  /// Puts a copy of `fd` into the target: its number there. EMFILE; ENOENT: the target has died.
  Result<int> give(FdRef fd, bool close_on_exec) const;

  /// The call fails with that errno (0: returns 0).
  void answer(int error) const;
  /// The call returns a copy of `fd`. EMFILE: not answered yet; anything else is answered for.
  Result<> answer_with(FdRef fd, bool close_on_exec) const;
  /// The kernel carries the call out as if we were not there.
  void go_on() const;

 private:
  bool copy(std::uint64_t address, std::span<std::byte> into) const;
  void send(int error, std::uint32_t flags) const;

  int listener_;
  seccomp_notif request_;
};

}  // namespace luo::compat
