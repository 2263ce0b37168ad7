// The process behind `luoctl run`: answers what its targets' filter traps.
#pragma once
#include <sys/types.h>

#include <functional>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace luo::compat {

/// What the supervisor has to tell the process in the foreground; one datagram each.
struct Report {
  enum Kind : std::uint32_t { Started, Ended, NotStarted, NotReady, Crossed };
  Kind kind;
  int value;       ///< Ended: of waitpid; NotStarted, NotReady: an errno; Started: the pid
  char text[400];  ///< NotStarted, NotReady: a sentence
};

struct Supervision {
  std::string socket;  ///< luod's, an absolute path
  Fd to_foreground;    ///< SEQPACKET: Reports out, numbers of signals to pass on (int) in
  Fd to_command;       ///< SEQPACKET: the listener comes in first; a byte lets it go on; then an errno, or the end
  pid_t command;
};

/// Serves until the last target has ended, then returns. The caller has no other threads, holds no terminal, and is
/// the command's parent.
void supervise(Supervision supervision);

}  // namespace luo::compat
