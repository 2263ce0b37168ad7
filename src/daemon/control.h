// The control page of luod's arena: what keeper, worker, and the keeper of a newer luod tell each other.
// It lies outside all transactions; every field has one writer at a time, said below, and is written
// before the event that makes another process look. Its layout belongs to the arena's layout version.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "kho/arena.h"

namespace luo::daemon {

/// An update of luod, from the moment the worker stops serving for it.
enum class Trial : std::uint32_t {
  None = 0,
  Trying = 1,     ///< the keeper execs the new image; the old worker waits and guards
  Serving = 2,    ///< the new worker has taken over; set by it, only from Trying
  Abandoned = 3,  ///< the old one takes back; set by the guard (or the keeper: exec failed), only from Trying
};

enum class MediumKind : std::uint32_t { Exec = 0, Kernel = 1 };

/// Whether what the kernel before left has been looked for and taken in.
enum class Arrival : std::uint32_t {
  Over = 0,
  ToLook = 1,     ///< to be looked for, from the start
  Populated = 2,  ///< the arena is what came; its files are to be brought. A worker that is killed then begins again
};

struct Control {
  static constexpr std::uint64_t kMagic = 0x316c72746e6f4375ULL;  // "uContrl1"

  std::uint64_t magic;
  std::uint64_t instance;                             ///< random, one for each life of the arena
  std::uint64_t started_ms;                           ///< CLOCK_REALTIME
  std::int32_t arena_fd, listen_fd, lock_fd, log_fd;  ///< log_fd: what stderr was when luod started
  std::int32_t listen_activated;                      ///< the socket came from systemd: not ours to unlink

  // Written by whoever makes the process, and by the process itself at its start.
  std::atomic<std::int32_t> keeper_pid, worker_pid;
  std::atomic<std::uint32_t> stopping;  ///< worker: the next exit is wanted
  std::atomic<std::uint32_t> damaged;   ///< worker: the arena does not pass its checks; do not start another
  std::atomic<std::uint64_t> worker_starts, keeper_starts, luod_updates;
  std::atomic<std::uint32_t> early_deaths;  ///< keeper: workers in a row that died before they served

  // The trial. Filled by the worker before it sets Trying.
  std::atomic<std::uint32_t> trial;
  std::int32_t trial_guard_pid, trial_image_fd, trial_words_fd, trial_report_fd, trial_requester_fd;
  std::uint64_t trial_peer, trial_nonce;  ///< whose request it is: answered by the next worker, old or new
  std::uint64_t trial_begin_ns;           ///< CLOCK_MONOTONIC, when the old worker stopped serving
  std::int32_t trial_errno;               ///< with Abandoned: why
  char trial_why[256];
  char trial_from[32], trial_to[32];  ///< versions

  // Fixed at the first start, NUL-terminated.
  char state_dir[512];
  char socket_path[108];
  char handlers[1024];

  // The kernel medium, at the end: an older luod does not know of it.
  std::uint32_t medium;                ///< MediumKind
  std::atomic<std::uint32_t> arrival;  ///< Arrival; worker
  std::int32_t device_fd;              ///< /dev/liveupdate
  std::int32_t own_fd;                 ///< the session that came in for luod itself, until it has arrived; worker
  std::atomic<std::uint32_t> leaving;  ///< worker: this kernel is being left; what ends all others does not end luod
  std::uint64_t start_cycles, start_raw_ns;  ///< one moment on two clocks, see sys/cycles.h
  std::int32_t image_fd;  ///< worker: luod's own session for the next kernel, while this one is left; 0: none
};
static_assert(sizeof(Control) <= kho::Arena::kControlBytes);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::int32_t>::is_always_lock_free);

/// The page of an arena; not checked.
Control& control_of(const kho::Arena& arena) noexcept;
/// The same, checked: EBADMSG if it is not a control page or its strings have no end.
Result<Control*> checked_control(const kho::Arena& arena);

/// Every descriptor that the control page names.
void append_control_fds(const Control& control, std::vector<int>& out);

std::uint64_t monotonic_ns() noexcept;
std::uint64_t realtime_ms() noexcept;

}  // namespace luo::daemon
