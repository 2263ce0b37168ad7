// Watches the write ends of session pipes: POLLERR there is the last close of a session fd, however it was
// duplicated or passed on. One epoll for all of them, nested in the loop, so that a session costs one
// epoll_ctl and no memory of ours.
#pragma once
#include <functional>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "luo/engine.h"

namespace luo::daemon {

class HolderWatch {
 public:
  struct Hit {
    SessionId session;
    Role role;
  };

  static Result<HolderWatch> make();

  FdRef fd() const noexcept { return epoll_; }
  /// Closing the descriptor ends the watch. Errors: ENOMEM, ENOSPC (fs.epoll.max_user_watches).
  Result<> add(int write_fd, SessionId session, Role role);
  /// Knows whose it is; the watch itself, which costs a system call, waits for watch_some(): a worker that has just
  /// taken many sessions over serves first.
  void expect(int write_fd, SessionId session, Role role);
  bool some_expected() const noexcept { return !expected_.empty(); }
  /// Watches at most `count` of those that are still `held`, as their session says; whether some are left. Errors as
  /// add(), and then it may be called again.
  using IsHeld = std::function<bool(int write_fd, SessionId session, Role role)>;
  Result<bool> watch_some(std::size_t count, const IsHeld& held);
  /// Whose it is; {0, ..} if it is not watched.
  Hit find(int write_fd) const noexcept;
  /// The same pipe has another role now.
  void set_role(int write_fd, Role role) noexcept;
  /// Before it is closed: the kernel forgets a watch only with the last copy of the descriptor, and an old luod that is
  /// on its way out has one.
  void forget(int write_fd) noexcept;
  /// Write ends whose readers are all gone, at most 64; a false hit is possible, ask reader_gone().
  std::vector<int> closed();

 private:
  struct Expected {
    int write_fd;
    SessionId session;
  };

  explicit HolderWatch(Fd epoll) : epoll_{std::move(epoll)} {}
  void note(int write_fd, SessionId session, Role role);

  Fd epoll_;
  std::vector<Hit> by_fd_;
  std::vector<Expected> expected_;
};

}  // namespace luo::daemon
