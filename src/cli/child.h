// The process that luoctl starts as a service's successor: in the background, its output in a log.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace luo::cli {

/// Where the successor's output goes, and from where on it is its own.
struct Log {
  std::string path;
  Fd file;              ///< to write to
  Fd reader;            ///< to read from; none if that is not allowed
  std::uint64_t begin;  ///< its size when it was opened
};

/// Opens `chosen`; if that is empty, the file that stderr of `owner` (0: unknown) is, if it is a regular
/// file; else SESSION.log beside `socket`.
Result<Log> open_log(const std::string& chosen, pid_t owner, const std::string& socket, const std::string& session);

/// What was written since the log was opened: its end, at most 4 KiB of whole lines.
std::string last_words(const Log& log);

struct Program {
  std::vector<std::string> argv;                                 ///< not empty; argv[0] is looked up in PATH
  std::vector<std::pair<std::string, std::string>> environment;  ///< on top of ours
};

struct Child {
  pid_t pid;
  Fd pidfd;  ///< polls readable when it has ended
};

/// Starts it in a session of its own, stdin from /dev/null, output to `log`, no other descriptor
/// of ours. Errors: those of execve, e.g. ENOENT, EACCES, ENOEXEC; nothing runs then.
Result<Child> start_detached(const Program& program, const Log& log);

/// Whether it has ended, or does so within that time.
bool ends_within(const Child& child, std::chrono::milliseconds time);

/// Takes note of a child that has ended: "exited with status 3", "was killed by signal 9 (Killed)". Once.
std::string how_it_ended(const Child& child);

/// SIGTERM, and SIGKILL for one that is still there after `grace`. Returns when it has ended; reaps it.
void terminate(const Child& child, std::chrono::milliseconds grace);

}  // namespace luo::cli
