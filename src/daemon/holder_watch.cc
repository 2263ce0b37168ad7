#include "daemon/holder_watch.h"

#include <sys/epoll.h>

#include <array>

namespace luo::daemon {

Result<HolderWatch> HolderWatch::make() {
  Fd epoll = Fd::adopt(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return sys_fail("epoll_create1");
  return HolderWatch{std::move(epoll)};
}

Result<> HolderWatch::add(int write_fd, SessionId session, Role role) {
  epoll_event event{};
  event.events = 0;  // EPOLLERR is always reported
  event.data.fd = write_fd;
  if (epoll_ctl(epoll_.raw(), EPOLL_CTL_ADD, write_fd, &event) != 0)
    return sys_fail("watch a session: epoll_ctl(ADD, {})", write_fd);
  note(write_fd, session, role);
  return {};
}

void HolderWatch::expect(int write_fd, SessionId session, Role role) {
  note(write_fd, session, role);
  expected_.push_back({write_fd, session});
}

Result<bool> HolderWatch::watch_some(std::size_t count, const IsHeld& held) {
  for (; count > 0 && !expected_.empty(); --count) {
    const auto [write_fd, session] = expected_.back();
    const Hit now = find(write_fd);
    // It may have gone meanwhile, and its number may be another's.
    if (now.session == session && held(write_fd, session, now.role))
      if (auto added = add(write_fd, session, now.role); !added && added.error().code != EEXIST)
        return std::unexpected(std::move(added).error());
    expected_.pop_back();
  }
  return !expected_.empty();
}

void HolderWatch::note(int write_fd, SessionId session, Role role) {
  const auto slot = static_cast<std::size_t>(write_fd);
  if (by_fd_.size() <= slot) by_fd_.resize(slot + 1, Hit{SessionId{}, Role::Owner});
  by_fd_[slot] = {session, role};
}

HolderWatch::Hit HolderWatch::find(int write_fd) const noexcept {
  const auto slot = static_cast<std::size_t>(write_fd);
  return slot < by_fd_.size() ? by_fd_[slot] : Hit{SessionId{}, Role::Owner};
}

void HolderWatch::set_role(int write_fd, Role role) noexcept {
  const auto slot = static_cast<std::size_t>(write_fd);
  if (slot < by_fd_.size()) by_fd_[slot].role = role;
}

void HolderWatch::forget(int write_fd) noexcept {
  const auto slot = static_cast<std::size_t>(write_fd);
  if (slot >= by_fd_.size() || by_fd_[slot].session == SessionId{}) return;
  by_fd_[slot] = {SessionId{}, Role::Owner};
  epoll_ctl(epoll_.raw(), EPOLL_CTL_DEL, write_fd, nullptr);  // ENOENT, EBADF: it is not watched, or closed already
}

std::vector<int> HolderWatch::closed() {
  std::array<epoll_event, 64> events;
  const int n = epoll_wait(epoll_.raw(), events.data(), static_cast<int>(events.size()), 0);
  std::vector<int> out;
  for (int i = 0; i < n; ++i) out.push_back(events[static_cast<std::size_t>(i)].data.fd);
  return out;
}

}  // namespace luo::daemon
