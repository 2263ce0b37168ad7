#include "compat/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "compat/device_path.h"
#include "compat/launch.h"
#include "compat/luod_side.h"
#include "sys/packet_socket.h"

namespace luo::compat {
namespace {

#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

constexpr unsigned kAlone = 32;  // calls of one thread in a row

class Supervisor {
 public:
  Supervisor(Supervision s, Device device) : s_{std::move(s)}, device_{std::move(device)} {}
  Result<> prepare();
  void run();
  void report(Report::Kind kind, int value, std::string_view text = {}) const;

 private:
  void on_call();
  void choose_wakeup(pid_t thread);
  void on_children();
  void on_command();
  void on_foreground();
  void kill_all();

  Supervision s_;
  Device device_;
  Fd listener_, children_;
  std::unique_ptr<LuodSide> luod_;
  bool ended_ = false;  ///< the command
  pid_t last_thread_ = 0;
  unsigned calls_of_last_thread_ = 0;
  bool wakes_beside_ = false;
};

void Supervisor::report(Report::Kind kind, int value, std::string_view text) const {
  if (!s_.to_foreground.valid()) return;
  Report report{kind, value, {}};
  wire::put_text(report.text, text);
  (void)send(s_.to_foreground, std::as_bytes(std::span{&report, 1}), {}, MSG_DONTWAIT);
}

Result<> Supervisor::prepare() {
  // Whoever loses its parent becomes ours, so that none of them escapes kill_all().
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0) return sys_fail("prctl(PR_SET_CHILD_SUBREAPER)");
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);  // only SIGKILL ends it before its targets
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  children_ = Fd::adopt(::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!children_.valid()) return sys_fail("signalfd");
  std::byte byte[4];
  Received got = LUO_TRY(receive(s_.to_command, byte, 0));
  if (got.fds.size() != 1) {
    int code = ECHILD;
    if (got.bytes == sizeof code) std::memcpy(&code, byte, sizeof code);
    const char* why = code == EBUSY ? "there is a seccomp listener already, and they cannot be nested; "
                                      "is this a luoctl run within another?"
                                    : "seccomp";
    return std::unexpected(Error{code, fmt::format("filter the command's system calls: {}", why)});
  }
  listener_ = std::move(got.fds[0]);
  auto connection = LUO_TRY(client::Connection::open(s_.socket, {kSupervisorName, 0}));
  luod_ = LUO_TRY(LuodSide::start(std::move(connection), device_));
  const std::byte go{1};
  LUO_TRY(send(s_.to_command, std::span{&go, 1}, {}, 0));
  return {};
}

void Supervisor::run() {
  report(Report::Started, s_.command);
  for (;;) {
    pollfd fds[] = {{listener_.raw(), POLLIN, 0},
                    {children_.raw(), POLLIN, 0},
                    {luod_->crossed() ? -1 : luod_->wakeup().raw, POLLIN, 0},
                    {s_.to_command.raw(), POLLIN, 0},
                    {s_.to_foreground.raw(), POLLIN, 0}};
    if (::poll(fds, std::size(fds), -1) < 0) continue;
    if ((fds[0].revents & POLLIN) != 0) on_call();
    if (fds[3].revents != 0) on_command();
    if (fds[1].revents != 0) on_children();
    if (fds[4].revents != 0) on_foreground();
    if (luod_->crossed()) return kill_all();
    if (ended_ && (fds[0].revents & POLLHUP) != 0) return;  // exactly when the last target has gone
    if ((fds[0].revents & POLLHUP) != 0 && !ended_) on_children();
  }
}

void Supervisor::on_call() {
  seccomp_notif request{};
  if (::ioctl(listener_.raw(), SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) return;  // ENOENT: it has died
  const Call call{listener_, request};
  choose_wakeup(call.thread());
  if (call.data().nr == SYS_ioctl) return luod_->carry_out(call);
  const auto asked = open_request(call);
  if (!asked || !names_device(call, *asked, device_)) return call.go_on();
  const auto device = device_.open();
  if (!device) return call.answer(call.table_is_full() ? EMFILE : device.error().code == EBUSY ? EBUSY : EIO);
  if (!call.answer_with(*device, (asked->flags & O_CLOEXEC) != 0)) call.answer(EMFILE);
}

/// While one task runs, an answer comes sooner if we run where it slept, on a machine that is otherwise idle much
/// sooner. If that were so for many, they would gather on one processor: 60 compiles took half as long again.
/// Linux 6.6.
void Supervisor::choose_wakeup(pid_t thread) {
  calls_of_last_thread_ = thread == last_thread_ ? calls_of_last_thread_ + 1 : 0;
  last_thread_ = thread;
  const bool alone = calls_of_last_thread_ >= kAlone;
  if (alone == wakes_beside_) return;
  wakes_beside_ = alone;
  (void)::ioctl(listener_.raw(), SECCOMP_IOCTL_NOTIF_SET_FLAGS, alone ? SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP : 0UL);
}

void Supervisor::on_children() {
  signalfd_siginfo info;
  while (::read(children_.raw(), &info, sizeof info) > 0) {}
  int status = 0;
  for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
    if (pid != s_.command) continue;
    ended_ = true;
    report(Report::Ended, status);
    s_.to_foreground.close();  // it leaves; what the command has left behind does not concern it
  }
}

/// The command could not be executed, or it was.
void Supervisor::on_command() {
  int code = 0;
  const auto got = receive(s_.to_command, std::as_writable_bytes(std::span{&code, 1}), MSG_DONTWAIT);
  if (got && !got->eof && got->bytes == sizeof code) report(Report::NotStarted, code);
  s_.to_command.close();
}

void Supervisor::on_foreground() {
  int signal = 0;
  const auto got = receive(s_.to_foreground, std::as_writable_bytes(std::span{&signal, 1}), MSG_DONTWAIT);
  if (!got || got->eof) return s_.to_foreground.close();
  if (got->bytes == sizeof signal && !ended_) ::kill(s_.command, signal);
}

/// As a kexec: nothing of the side before runs on. They may fork meanwhile, so until there is nobody.
void Supervisor::kill_all() {
  report(Report::Crossed, 0);
  for (;;) {
    std::vector<pid_t> found{::getpid()};
    for (std::size_t i = 0; i < found.size(); ++i) {
      // A thread's children are its own in this list.
      const std::string tasks = fmt::format("/proc/{}/task", found[i]);
      std::error_code error;
      for (const auto& task : std::filesystem::directory_iterator{tasks, error}) {
        std::ifstream children{task.path() / "children"};
        for (pid_t pid; children >> pid;) found.push_back(pid);
      }
    }
    for (std::size_t i = 1; i < found.size(); ++i) ::kill(found[i], SIGKILL);
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, 0);
    if (pid < 0 && errno == ECHILD) return;
    if (pid == s_.command) report(Report::Ended, status);
  }
}

}  // namespace

void supervise(Supervision supervision) {
  auto device = Device::of(supervision.socket);
  if (!device) {
    Report report{Report::NotReady, device.error().code, {}};
    wire::put_text(report.text, device.error().what);
    (void)send(supervision.to_foreground, std::as_bytes(std::span{&report, 1}), {}, 0);
    return;
  }
  Supervisor supervisor{std::move(supervision), *std::move(device)};
  if (const auto ready = supervisor.prepare(); !ready)
    return supervisor.report(Report::NotReady, ready.error().code, ready.error().what);
  supervisor.run();
}

}  // namespace luo::compat
