// How a luod comes to be: afresh, with a directory, a lock, a socket and an empty arena; or as the new
// image of one that is being updated, with everything in place.
#pragma once
#include <string>

#include "daemon/keeper.h"

namespace luo::daemon {

struct Options {
  std::string socket;     ///< empty: LUO_SOCKET, else luod.sock in the state directory
  std::string state_dir;  ///< empty: /run/luo, or $XDG_RUNTIME_DIR/luo
  std::string handlers = "all";
  std::string medium = "auto";  ///< or "exec", "kernel"
};

/// Runs the keeper; returns the exit status. Errors: EBUSY another luod has the directory, or another process the
/// kernel's LUO (names it); those of the directory, the socket and the arena.
Result<int> start_fresh(const Options& options);

/// Whether luod is to be spared when systemd, as the first process, ends all others.
bool outlives_shutdown(const Options& options) noexcept;

/// `--resume FD`, as the keeper that has just been exec'd. The arena is only read until the worker serves.
Result<int> resume(int arena_fd);

}  // namespace luo::daemon
