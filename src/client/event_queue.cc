#include "client/event_queue.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

namespace luo::client {

Result<std::unique_ptr<EventQueue>> EventQueue::open(FdRef socket) {
  Fd epoll = Fd::adopt(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return sys_fail("epoll_create1");
  Fd wakeup = Fd::adopt(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup.valid()) return sys_fail("eventfd");
  for (const int fd : {socket.raw, wakeup.raw()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (epoll_ctl(epoll.raw(), EPOLL_CTL_ADD, fd, &event) != 0) return sys_fail("epoll_ctl(ADD, {})", fd);
  }
  return std::unique_ptr<EventQueue>{new EventQueue{std::move(epoll), std::move(wakeup)}};
}

Result<> EventQueue::push(EventMessage message) {
  const std::lock_guard lock{mutex_};
  if (waiting_.size() >= kMostWaiting) return fail(ENOBUFS, "{} events wait for luo_dispatch()", waiting_.size());
  waiting_.push_back(std::move(message));
  if (waiting_.size() == 1) LUO_CHECK(eventfd_write(wakeup_.raw(), 1) == 0);
  return {};
}

std::optional<EventMessage> EventQueue::pop() {
  const std::lock_guard lock{mutex_};
  if (waiting_.empty()) return std::nullopt;
  EventMessage message = std::move(waiting_.front());
  waiting_.pop_front();
  eventfd_t count = 0;
  if (waiting_.empty()) LUO_CHECK(eventfd_read(wakeup_.raw(), &count) == 0);
  return message;
}

}  // namespace luo::client
