// Keeps the cache's files preserved in its luod session, on a thread of its own: luod may be killed or
// replaced at any moment, calls of libluo then wait for it, and the clients of the cache must not.
//
//   loop thread                          custodian's thread
//     preserve(fd, token)    ──────→       luo_preserve_many, in batches
//     give_up(fd, token)     ──────→       luo_unpreserve_fd, close
//                            ←──────       Notice::Prepare      stop, then
//     quiesced()             ──────→       (everything above first) luo_update_ready
//                            ←──────       Notice::HandedOver | Notice::Resumed
//
// The next kernel gets memory only, and no more than it needs: before quiesced(), the loop has an image of the arena
// take the arena's place (replace()), and afterwards, should the update be off, the arena the image's.
#pragma once
#include <atomic>
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
  std::uint64_t update = 0;    ///< Prepare: which one
  bool of_the_kernel = false;  ///< Prepare: no process and no socket will be there on the other side
};

/// A new session, still empty, is one that crosses to another kernel without its sockets. A luod that knows nothing of
/// that is not asked twice.
void let_cross_kernels(luo_connection* luod, int session);
/// After a crash the session waits for the next luo-cache of this user.
void hold_for_the_next(luo_connection* luod, int session);

/// Functions are for the loop thread and return at once, but for connect().
class Custodian {
 public:
  /// Connects to luod (`where` empty: libluo's default) and asks for its announcements. That comes before
  /// the session of that name is ours: an update may be announced from then on. Errors as luo_open().
  /// `shown` (may be null; outlives us) has the number of the session's descriptor at any time, -1 for none.
  static Result<std::unique_ptr<Custodian>> connect(std::string where, std::string session,
                                                    std::atomic<int>* shown = nullptr);
  /// With no luod there: one is looked for, and the session made anew, as after a loss.
  static Result<std::unique_ptr<Custodian>> unconnected(std::string where, std::string session,
                                                        std::atomic<int>* shown = nullptr);
  /// Ends the thread, if it runs. The session is given up with it, unless it was handed over.
  ~Custodian();

  /// For the caller's own calls, until begin(). nullptr: unconnected.
  luo_connection* luod() const noexcept;
  /// Starts the thread, which blocks all signals and waits for begin(). `kept` is what is in the session
  /// already; unconnected, what should be in it. EAGAIN.
  Result<> start(Fd session, const std::vector<KeptFile>& kept);
  /// From here on the connection to luod is the thread's.
  void begin();

  /// Polls readable when take_notices() has something.
  FdRef wakeup() const noexcept;
  std::vector<Notice> take_notices();

  void preserve(FdRef file, std::uint64_t token);
  /// Closes `file` (may be empty), and takes it out of the session first if it is in it.
  void give_up(Fd file, std::uint64_t token);
  /// Preserves `fresh`; then, and only if luod has it, gives `old` up and closes it (may be empty).
  void replace(FdRef fresh, std::uint64_t token, Fd old, std::uint64_t old_token);
  /// For that update; what was said for one that is over counts for no other.
  void quiesced(std::uint64_t update);
  /// Instead: that update cannot be. It will be called off.
  void unable(std::uint64_t update, std::string why);
  /// The service is being stopped: its session shall end with it, not wait for the next one. Waits a little for luod.
  void let_go();

 private:
  class Worker;
  explicit Custodian(std::unique_ptr<Worker> worker);
  std::unique_ptr<Worker> worker_;
};

}  // namespace luo::cache
