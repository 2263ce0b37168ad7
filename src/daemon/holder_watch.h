// Watches the write ends of session pipes: POLLERR there is the last close of a session fd, however it was
// duplicated or passed on. One epoll for all of them, nested in the loop, so that a session costs one
// epoll_ctl and no memory of ours.
#pragma once
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
  /// Whose it is; {0, ..} if it is not watched.
  Hit find(int write_fd) const noexcept;
  /// The same pipe has another role now.
  void set_role(int write_fd, Role role) noexcept;
  void forget(int write_fd) noexcept;
  /// Write ends whose readers are all gone, at most 64; a false hit is possible, ask reader_gone().
  std::vector<int> closed();

 private:
  explicit HolderWatch(Fd epoll) : epoll_{std::move(epoll)} {}
  Fd epoll_;
  std::vector<Hit> by_fd_;
};

}  // namespace luo::daemon
