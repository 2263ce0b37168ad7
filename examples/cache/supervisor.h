// luo-cache --supervise: a parent that starts the server again when it dies, and has its descriptors meanwhile.
//
//   parent        waits; opens nothing, parses nothing
//     ‖   one descriptor table, shared: clone(CLONE_FILES), no CLONE_VM, no exec
//   server        all else; what it accepts is in the parent's table in the same instant
//
// So a server that is killed loses nothing, be it connected to a luod or not: the next one has the memory, the
// listeners, the session and every connection under the same numbers, those included that no session has yet.
#pragma once
#include <atomic>
#include <functional>
#include <vector>

#include "base/error.h"

namespace luo::cache {

/// What a server leaves to the next one beside the table: which number is what. In memory that all of them share.
struct Heritage {
  std::atomic<bool> served{false};  ///< the rest is there
  std::atomic<int> arena{-1};
  std::atomic<int> tcp{-1};
  std::atomic<int> unix_socket{-1};  ///< -1: none
  std::atomic<int> session{-1};      ///< -1: none at the moment
  std::atomic<int> spare{-1};        ///< opened before the first server, closed by it: --ready-fd
};

/// The descriptors that are open now, except the one used to find out.
Result<std::vector<int>> open_descriptors();

/// Runs `serve` in a child, and in another one whenever one that had served dies by a signal; it is passed what was
/// open before the first. SIGTERM and SIGINT (blocked by the caller, who has one thread) are passed on.
/// Returns the exit status of the last one.
using Serve = std::function<int(Heritage&, const std::vector<int>& inherited)>;
Result<int> supervise(const Serve& serve);

}  // namespace luo::cache
