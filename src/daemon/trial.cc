#include "daemon/trial.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"
#include "daemon/out_of_memory.h"
#include "sys/process.h"
#include "wire/message.h"

namespace luo::daemon {
namespace {

constexpr std::uint64_t kTickNs = 100'000'000;
/// Our copy of the table may have a million descriptors to close: the new luod goes first, without us taking for ever.
constexpr int kWhenDone = 10;
constexpr int kMostForWorkerMs = 10'000;
constexpr int kEndGrace = 10;  // ticks for which a keeper that runs may leave a signal that ends it alone

/// Whether somebody wants luod to end and the keeper has not taken the signal: one that hangs, or dies, never will.
bool end_is_wanted(const Control& control) noexcept {
  sigset_t ours;
  if (sigpending(&ours) == 0 && (sigismember(&ours, SIGTERM) == 1 || sigismember(&ours, SIGINT) == 1)) return true;
  char path[32], text[4096];
  *fmt::format_to_n(path, sizeof path - 1, "/proc/{}/status", control.keeper_pid.load()).out = '\0';
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const ssize_t n = read(file, text, sizeof text - 1);
  close(file);
  text[std::max<ssize_t>(n, 0)] = '\0';
  constexpr const char* kPending = "ShdPnd:\t";
  const char* at = strstr(text, kPending);
  const unsigned long pending = at != nullptr ? strtoul(at + strlen(kPending), nullptr, 16) : 0;
  return (pending & (1UL << (SIGTERM - 1) | 1UL << (SIGINT - 1))) != 0;
}

bool move_trial(Control& control, Trial to) noexcept {
  auto expected = static_cast<std::uint32_t>(Trial::Trying);
  return control.trial.compare_exchange_strong(expected, static_cast<std::uint32_t>(to));
}

/// The new keeper died about when its worker began to serve: did that one outlive it? Our descriptors are
/// our own since the exec, so once we have closed our end of the report, its end is the last one.
bool said_so(const Control& control, FdRef report) noexcept {
  const int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (null >= 0) dup3(null, control.trial_report_fd, O_CLOEXEC);  // the number stays taken, the arena names it
  pollfd wait{report.raw, POLLIN, 0};
  while (poll(&wait, 1, -1) < 0 && errno == EINTR) {}
  return (wait.revents & POLLIN) != 0;
}

[[noreturn]] void take_back(Control& control, WorkerMain worker_main) {
  dup3(control.log_fd, STDERR_FILENO, 0);
  log(Level::Error, "update of luod: {} ({}); the old one goes on", control.trial_why, errno_text(control.trial_errno));
  log_as("luod keeper");
  use_all_descriptors();
  prctl(PR_SET_NAME, "luod-keeper");
  prctl(PR_SET_PDEATHSIG, 0);
  // A worker that has died with its keeper may still be ending: what we close is closed when its copies are, too.
  if (const auto worker = open_pidfd(control.worker_pid.load()); worker && control.worker_pid.load() != getpid()) {
    pollfd ended{worker->raw(), POLLIN, 0};
    while (poll(&ended, 1, kMostForWorkerMs) < 0 && errno == EINTR) {}
  }
  Keeper keeper{.control = control, .worker_main = worker_main};
  _exit(keeper.run());
}

}  // namespace

void keep_over_exec(const std::vector<int>& fds) noexcept {
  for (const int fd : fds) fcntl(fd, F_SETFD, 0);
}

void guard_trial(Control& control, WorkerMain worker_main, FdRef keeper_pidfd, FdRef report, std::uint32_t timeout_ms) {
  no_longer_under_work();  // the arena is the new luod's, if it can read it
  wait_when_out_of_memory();
  control.trial.store(static_cast<std::uint32_t>(Trial::Trying));
  syscall(SYS_pidfd_send_signal, keeper_pidfd.raw, kExecRequest, nullptr, 0);

  const std::uint64_t deadline = monotonic_ns() + std::uint64_t{timeout_ms} * 1'000'000;
  for (int wanted = 0;;) {
    const std::uint64_t now = monotonic_ns();
    pollfd waits[] = {{keeper_pidfd.raw, POLLIN, 0}, {report.raw, POLLIN, 0}};
    const int left_ms = deadline > now ? static_cast<int>(std::min(deadline - now, kTickNs) / 1'000'000 + 1) : 0;
    const int n = poll(waits, 2, left_ms);
    if (n < 0 && errno == EINTR) continue;
    const auto trial = static_cast<Trial>(control.trial.load());
    const bool keeper_died = (waits[0].revents & POLLIN) != 0;
    if (control.trial_guard_pid != getpid() || trial == Trial::None) _exit(0);
    if (trial == Trial::Serving) {
      if (!keeper_died || said_so(control, report)) {
        setpriority(PRIO_PROCESS, 0, kWhenDone);
        _exit(0);
      }
      control.trial_errno = ECHILD;
      wire::put_text(control.trial_why, "the new luod died as soon as it served");
      control.trial.store(static_cast<std::uint32_t>(Trial::Abandoned));
      take_back(control, worker_main);
    }
    // The keeper could not exec: it is the old one still, and starts the next worker when this one is gone.
    if (trial == Trial::Abandoned) _exit(0);
    wanted = end_is_wanted(control) ? wanted + 1 : 0;
    const bool late = n == 0 && (monotonic_ns() >= deadline || wanted > kEndGrace);
    if (!keeper_died && !late) continue;
    if (wanted > 0) control.stopping.store(1);

    control.trial_errno = late ? ETIMEDOUT : ECHILD;
    wire::put_text(control.trial_why, late ? fmt::format("the new luod did not serve within {} ms", timeout_ms)
                                           : std::string{"the new luod died before it served"});
    if (!move_trial(control, Trial::Abandoned)) continue;  // it serves after all
    if (late) {
      syscall(SYS_pidfd_send_signal, keeper_pidfd.raw, SIGKILL, nullptr, 0);
      pollfd dead{keeper_pidfd.raw, POLLIN, 0};
      while (poll(&dead, 1, -1) < 0 && errno == EINTR) {}
    }
    take_back(control, worker_main);
  }
}

}  // namespace luo::daemon
