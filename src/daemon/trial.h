// The guard of an update of luod: the old worker, which has stopped serving and waits.
//
//   old worker            keeper (same pid all the time)              new worker
//     trial = Trying
//     "exec"  ──────────→ exec of the new image; its table is
//     waits               its own now, the guard's is the guard's
//                         starts ─────────────────────────────────→  reads the arena, checks everything
//                                                                     trial: Trying → Serving
//     exits   ←───────────────────────────────────────────────────── "s"
//
// or: the keeper is dead, could not exec, or the deadline is over: trial: Trying → Abandoned, and the old
// worker, which has the whole descriptor table, becomes the keeper and starts a worker. One compare-and-
// swap decides; whoever loses it only exits.
#pragma once
#include "daemon/keeper.h"

namespace luo::daemon {

/// Keeps what the arena names over the coming exec: close-on-exec off. EBADF cannot happen.
void keep_over_exec(const std::vector<int>& fds) noexcept;

/// Called when the control page is filled and everything else is ready. Never returns.
[[noreturn]] void guard_trial(Control& control, WorkerMain worker_main, FdRef keeper_pidfd, FdRef report,
                              std::uint32_t timeout_ms);

}  // namespace luo::daemon
