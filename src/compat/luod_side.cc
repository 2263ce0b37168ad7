#include "compat/luod_side.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace luo::compat {
namespace {

void wake(FdRef event) noexcept {
  const std::uint64_t one = 1;
  (void)!::write(event.raw, &one, sizeof one);
}

}  // namespace

Result<std::unique_ptr<LuodSide>> LuodSide::start(client::Connection luod, const Device& device) {
  Fd to_thread = Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  Fd to_supervisor = Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!to_thread.valid() || !to_supervisor.valid()) return sys_fail("eventfd");
  wire::Builder subscribe;
  subscribe.start(wire::Command::Subscribe, 0, 0).arg(wire::PlainArg{.size = 0, .reserved = 1});
  client::Answer answer = LUO_TRY(luod.call(subscribe));
  LUO_TRY(client::verdict(std::move(answer)));
  std::unique_ptr<LuodSide> side{new LuodSide{std::move(luod), device, std::move(to_thread), std::move(to_supervisor)}};
  side->thread_ = std::thread{[raw = side.get()] { raw->run(); }};
  return side;
}

LuodSide::~LuodSide() {
  stop_ = true;
  wake(to_thread_);
  thread_.join();
}

void LuodSide::carry_out(const Call& call) {
  {
    const std::lock_guard lock{mutex_};
    waiting_.push_back(call);
  }
  wake(to_thread_);
}

bool LuodSide::next(std::optional<Call>& call) {
  const std::lock_guard lock{mutex_};
  if (waiting_.empty()) return false;
  call.emplace(waiting_.front());
  waiting_.pop_front();
  return true;
}

void LuodSide::run() {
  for (std::optional<Call> call; !stop_;) {
    pollfd fds[] = {{to_thread_.raw(), POLLIN, 0}, {gone_ ? -1 : ioctls_.luod().events().poll_fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    std::uint64_t count = 0;
    (void)!::read(to_thread_.raw(), &count, sizeof count);
    if (!gone_ && !take_events()) on_end_of_luod();
    while (!stop_ && stopped_for_ == 0 && !crossed_ && next(call)) {
      if (gone_) call->answer(EIO);
      else if (!ioctls_.carry_out(*call)) on_end_of_luod();
      // An update is heard of before the next request, not after the last one.
      if (!gone_ && !take_events()) on_end_of_luod();
    }
  }
}

bool LuodSide::take_events() {
  const auto taken = ioctls_.luod().take_events();
  while (const auto event = ioctls_.luod().events().pop()) on_event(*event);
  return taken.has_value();
}

void LuodSide::on_event(const client::EventMessage& message) {
  if (message.event == static_cast<std::uint32_t>(wire::Event::Prepare)) {
    const auto event = wire::parse_arg<wire::PrepareEvent>(message.payload);
    if (!event) return;
    const bool everything = wire::takes_everything(event->kind);
    if (everything) stopped_for_ = event->update;
    if (!answer_prepare(event->update, everything)) on_end_of_luod();
  } else if (message.event == static_cast<std::uint32_t>(wire::Event::Resumed)) {
    const auto event = wire::parse_arg<wire::EndEvent>(message.payload);
    if (event && event->update == stopped_for_) stopped_for_ = 0;
  }
}

/// Who knows only /dev/liveupdate cannot be told that a successor takes over: it would write on.
Result<> LuodSide::answer_prepare(std::uint64_t update, bool ready) {
  wire::VerdictArg verdict{};
  verdict.refused = ready ? 0 : 1;
  verdict.update = update;
  if (!ready)
    wire::put_text(verdict.reason, "its owner runs under luoctl run: it knows only /dev/liveupdate, and no update");
  wire::Builder request;
  request.start(wire::Command::Prepared, 0, 0).arg(verdict);
  client::Answer answer = LUO_TRY(ioctls_.luod().call(request));
  (void)client::verdict(std::move(answer));  // called off meanwhile: its Resumed comes, or has come
  return {};
}

/// luod closes the connections of the side before when everything has crossed. At any other time it has ended.
void LuodSide::on_end_of_luod() {
  gone_ = true;
  if (stopped_for_ == 0) return;
  crossed_ = true;
  wake(to_supervisor_);
}

}  // namespace luo::compat
