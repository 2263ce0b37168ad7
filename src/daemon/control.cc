#include "daemon/control.h"

#include <time.h>

#include <algorithm>
#include <span>

namespace luo::daemon {

Control& control_of(const kho::Arena& arena) noexcept { return *reinterpret_cast<Control*>(arena.control().data()); }

Result<Control*> checked_control(const kho::Arena& arena) {
  Control& control = control_of(arena);
  if (control.magic != Control::kMagic) return fail(EBADMSG, "control page of the arena: magic differs");
  const auto terminated = [](std::span<const char> field) { return std::ranges::find(field, '\0') != field.end(); };
  if (!terminated(control.state_dir) || !terminated(control.socket_path) || !terminated(control.handlers) ||
      !terminated(control.trial_why) || !terminated(control.trial_from) || !terminated(control.trial_to))
    return fail(EBADMSG, "control page of the arena: a text has no end");
  return &control;
}

void append_control_fds(const Control& control, std::vector<int>& out) {
  for (const int fd : {control.arena_fd, control.listen_fd, control.lock_fd, control.log_fd})
    if (fd >= 0) out.push_back(fd);
  if (control.medium == static_cast<std::uint32_t>(MediumKind::Kernel))
    for (const int fd : {control.device_fd, control.own_fd, control.image_fd > 0 ? control.image_fd : -1})
      if (fd >= 0) out.push_back(fd);
  if (control.trial.load() == static_cast<std::uint32_t>(Trial::None)) return;
  for (const int fd : {control.trial_image_fd, control.trial_words_fd, control.trial_report_fd})
    if (fd >= 0) out.push_back(fd);
}

namespace {
timespec now(clockid_t clock) noexcept {
  timespec t{};
  clock_gettime(clock, &t);
  return t;
}
}  // namespace

std::uint64_t monotonic_ns() noexcept {
  const timespec t = now(CLOCK_MONOTONIC);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(t.tv_nsec);
}

std::uint64_t realtime_ms() noexcept {
  const timespec t = now(CLOCK_REALTIME);
  return static_cast<std::uint64_t>(t.tv_sec) * 1000 + static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

}  // namespace luo::daemon
