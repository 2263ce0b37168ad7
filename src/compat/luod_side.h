// The supervisor's thread that talks to luod, so that opens of other files never wait for it.
#pragma once
#include <atomic>
#include <deque>
#include <mutex>
#include <thread>

#include "compat/ioctls.h"

namespace luo::compat {

/// Carries ioctls out, one after the other, and hears of updates. Before a simulated one it says "ready" and stops:
/// ioctls wait, as they do in a kernel that has frozen, until the update is called off or the targets are killed.
class LuodSide {
 public:
  /// Errors: eventfd's.
  static Result<std::unique_ptr<LuodSide>> start(client::Connection luod, const Device& device);
  ~LuodSide();
  LuodSide(const LuodSide&) = delete;
  LuodSide& operator=(const LuodSide&) = delete;

  /// From any thread. It will be answered.
  void carry_out(const Call& call);
  /// Polls readable once crossed() is true.
  FdRef wakeup() const noexcept { return to_supervisor_; }
  /// Everything has crossed: the targets belong to the side before.
  bool crossed() const noexcept { return crossed_; }

 private:
  LuodSide(client::Connection luod, const Device& device, Fd to_thread, Fd to_supervisor)
      : ioctls_{std::move(luod), device}, to_thread_{std::move(to_thread)}, to_supervisor_{std::move(to_supervisor)} {}
  void run();
  bool take_events();
  void on_event(const client::EventMessage& event);
  Result<> answer_prepare(std::uint64_t update, bool ready);
  void on_end_of_luod();
  bool next(std::optional<Call>& call);

  Ioctls ioctls_;
  Fd to_thread_, to_supervisor_;
  std::mutex mutex_;
  std::deque<Call> waiting_;  ///< guarded by mutex_
  std::atomic<bool> stop_ = false, crossed_ = false;
  std::uint64_t stopped_for_ = 0;  ///< the simulated update that we are ready for
  bool gone_ = false;
  std::thread thread_;
};

}  // namespace luo::compat
