// What is behind a `struct luo_connection`: a connection to luod or the kernel's device, the handles that
// this process's session descriptors have at luod, and what is known of an update under way.
#pragma once
#include <sys/types.h>

#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "base/fd.h"
#include "client/connection.h"
#include "client/failure.h"
#include "luo/luo.h"

namespace luo::client {

/// A session descriptor is known to luod by a handle. Descriptors are numbers of the application, which
/// may close one and get another file under it: so an entry counts only while the number is still that pipe.
struct KnownSession {
  std::uint64_t inode, device, handle;
  std::string name;  ///< for sentences, empty if it came from elsewhere
};

/// Where a session fd leads, checked for this call.
struct SessionRef {
  bool in_kernel = false;  ///< an ioctl decides (also what it is not: ENOTTY)
  std::uint64_t inode = 0, device = 0;
};

}  // namespace luo::client

struct luo_connection {
  explicit luo_connection(luo::Fd kernel_device);
  explicit luo_connection(luo::client::Connection to_luod);

  bool is_kernel() const noexcept { return device.valid(); }

  // --- with `mutex` held ---------------------------------------------------------------------------

  /// Sends a request that is about no session. Errors: luod's verdict, and those of Connection::call().
  luo::Result<luo::client::Answer> ask(luo::wire::Builder& request);
  /// Sends a request about `session`; presents the descriptor first if luod does not know it from us, and
  /// once more if luod has forgotten it. Errors: the same; EBADF, ENOTTY: it is no session of this luod.
  luo::Result<luo::client::Answer> ask_about(int session, luo::wire::Builder& request);
  /// The same, but an errno that luod gave is in the answer; an Error comes from this side.
  luo::Result<luo::client::Answer> exchange_about(int session, luo::wire::Builder& request);
  /// luod's handle of `session`; presents the descriptor first if luod does not know it from us. Errors as ask_about().
  struct Handle {
    std::uint64_t number;
    bool from_memory;  ///< luod may have forgotten it since: then it answers EBADF
  };
  luo::Result<Handle> handle_of(int session);
  /// EOPNOTSUPP: that luod, as it was when this connection began, cannot do it.
  luo::Result<> expect(luo::wire::Capability capability) const;
  /// What `session` is. EBADF: not open. Only of those in luod does one need a handle.
  luo::Result<luo::client::SessionRef> look_at(int session) const;
  /// Takes the session fd out of an answer that hands one out, accepts it, and remembers its handle.
  luo::Result<luo::Fd> receive_session(luo::client::Answer answer, std::string_view name);
  /// The two halves of it, for several at once: what was handed out, and, when ACCEPT has been answered, that it is
  /// ours.
  struct HandedOut {
    luo::Fd fd;
    luo::client::KnownSession known;
  };
  luo::Result<HandedOut> session_in(luo::client::Answer answer, std::string_view name) const;
  luo::Fd remember(HandedOut session);

  /// "session 'vm-7'" or "session fd 5".
  std::string describe(int session) const;

  // --- fixed -----------------------------------------------------------------------------------------

  const pid_t owner;  ///< the process that made it
  const bool successor;
  const luo::Fd device;
  std::mutex mutex;
  std::optional<luo::client::Connection> connection;  ///< guarded by mutex, but for events()
  luo::wire::Builder request;                         ///< guarded by mutex

  // --- updates: guarded by update_mutex, which is never held over a request or a callback --------------

  std::mutex update_mutex;
  luo_update_callbacks callbacks{};
  void* context = nullptr;
  std::uint64_t preparing = 0;  ///< the update whose prepare was passed on and that has not ended; 0: none
  std::optional<luo::wire::VerdictArg> verdict;  ///< given for it: luod asks again if a crash made it forget

 private:
  luo::Result<std::uint64_t> present(int session, const luo::client::SessionRef& ref);

  std::unordered_map<int, luo::client::KnownSession> sessions_;
};

namespace luo::client {

/// One call of the C API: refuses a connection of another process, takes the mutex, runs `body`
/// (→ Result<int>), and turns a failure into this thread's sentence and a negative errno. `goal()` is
/// called, with the mutex held, only after a failure.
template <class Goal, class Body>
int api_call(luo_connection* c, Operation operation, Goal&& goal, Body&& body) noexcept {
  if (c == nullptr) return report(operation, "luo", Error{EINVAL, "no connection (NULL)"});
  if (c->owner != getpid()) return report(operation, "luo", Error{EOWNERDEAD, ""});
  try {
    const std::lock_guard lock{c->mutex};
    Result<int> result = body();
    if (result) return *result;
    return report(operation, goal(), result.error());
  } catch (const std::bad_alloc&) {
    return report(operation, "luo", Error{ENOMEM, ""});
  }
}

/// The Error of an operation that only luod has.
inline std::unexpected<Error> only_luod() { return std::unexpected(Error{ENOTSUP, ""}); }

}  // namespace luo::client
