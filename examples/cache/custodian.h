// Keeps the cache's files preserved in its luod session, on a thread of its own: luod may be killed or
// replaced at any moment, calls of libluo then wait for it, and the clients of the cache must not.
//
//   loop thread                          custodian's thread
//     preserve(fd, token)    ──────→       luo_preserve_many, in batches
//     give_up(fd, token)     ──────→       luo_unpreserve_fd, close
//                            ←──────       Notice::Prepare      stop, then
//     quiesced()             ──────→       (everything above first) luo_update_ready
//                            ←──────       Notice::HandedOver | Notice::Resumed
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

struct luo_connection;

namespace luo::cache {

/// A file and its token in the session.
struct KeptFile {
  int fd;  ///< lent: stays open until it is given up
  std::uint64_t token;
};

struct Notice {
  enum Kind {
    Prepare,       ///< an update: stop changing what is kept, then say quiesced()
    Resumed,       ///< it was called off, `text` says why: go on
    HandedOver,    ///< the successor has everything: exit
    Connected,     ///< luod is there (again)
    Disconnected,  ///< luod is gone for good, `text` says how it was seen; a new one is being looked for
  };
  Kind kind;
  std::string text;
  std::uint64_t update = 0;  ///< Prepare: which one
};

/// Functions are for the loop thread and return at once.
class Custodian {
 public:
  struct Start {
    std::string where;    ///< luod's socket; empty: libluo's default
    std::string session;  ///< its name
    luo_connection* luod; ///< owned from here on
    Fd session_fd;
    std::vector<KeptFile> kept;  ///< already in the session
  };
  /// Starts the thread, which blocks all signals.
  static Result<std::unique_ptr<Custodian>> start(Start start);
  /// Ends the thread. The session is given up with it, unless it was handed over.
  ~Custodian();

  /// Polls readable when take_notices() has something.
  FdRef wakeup() const noexcept;
  std::vector<Notice> take_notices();

  void preserve(FdRef file, std::uint64_t token);
  /// Closes `file`, and takes it out of the session first if it is in it.
  void give_up(Fd file, std::uint64_t token);
  /// For that update; what was said for one that is over counts for no other.
  void quiesced(std::uint64_t update);

 private:
  class Worker;
  explicit Custodian(std::unique_ptr<Worker> worker);
  std::unique_ptr<Worker> worker_;
};

}  // namespace luo::cache
