// `luoctl run -- COMMAND`: a command for whom luod is the kernel's /dev/liveupdate.
#pragma once
#include <string>
#include <vector>

#include "base/error.h"

namespace luo::compat {

/// How a supervisor names itself to luod.
inline constexpr const char* kSupervisorName = "luoctl run";

/// How the command ended, as a shell says it: its exit status, 128 + the signal that ended it, 126 and 127 if it
/// could not be executed or found; and a sentence about what went wrong around it, if something did.
struct RunOutcome {
  int status;
  std::string note;
};

/// Runs `argv` (argv[0] is looked up in PATH) under a supervisor that talks to the luod at `socket`; returns when the
/// command has ended. The supervisor is a process of its own, which goes on as long as anything that the command
/// has started; it holds no terminal, no pipe and no folder. The command has our standard streams, process group and
/// signal mask; signals that are sent to us are passed on. Single-threaded callers. Errors: nothing was started;
/// ECONNREFUSED, ENOENT: no luod there; EBUSY: this process is under such a filter itself.
Result<RunOutcome> run(const std::string& socket, const std::vector<std::string>& argv);

}  // namespace luo::compat
