// Events from luod that wait for luo_dispatch(), and the one descriptor that says so. Any thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace luo::client {

struct EventMessage {
  std::uint32_t event;
  std::vector<std::byte> payload;
};

class EventQueue {
 public:
  /// Watches `socket` too, which must live as long as this.
  static Result<std::unique_ptr<EventQueue>> open(FdRef socket);

  /// ENOBUFS: kMostWaiting are waiting already; nobody dispatches and luod does not stop.
  Result<> push(EventMessage message);
  std::optional<EventMessage> pop();
  /// Polls readable while an event waits or the socket has something. Owned by this.
  int poll_fd() const noexcept { return epoll_.raw(); }

  static constexpr std::size_t kMostWaiting = 4096;

 private:
  EventQueue(Fd epoll, Fd wakeup) : epoll_{std::move(epoll)}, wakeup_{std::move(wakeup)} {}

  Fd epoll_, wakeup_;
  std::mutex mutex_;
  std::deque<EventMessage> waiting_;
};

}  // namespace luo::client
