#include "compat/launch.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "compat/filter.h"
#include "compat/supervisor.h"
#include "sys/packet_socket.h"
#include "wire/message.h"

namespace luo::compat {
namespace {

struct Pair {
  Fd ours, theirs;
};
Result<Pair> packet_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) return sys_fail("socketpair");
  return Pair{Fd::adopt(fds[0]), Fd::adopt(fds[1])};
}

/// In the child that becomes the command.
[[noreturn]] void become(const std::vector<std::string>& argv, const Fd& to_supervisor, const sigset_t& mask) {
  const auto say = [&](int code) { (void)send(to_supervisor, std::as_bytes(std::span{&code, 1}), {}, 0); };
  std::vector<char*> words;
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  auto listener = install_filter();
  if (!listener) {
    say(listener.error().code);
    ::_exit(126);
  }
  const std::byte byte{0};
  const int number = listener->raw();
  const auto sent = send(to_supervisor, std::span{&byte, 1}, {&number, 1}, 0);
  listener->close();
  std::byte go{};
  const auto got = sent ? receive(to_supervisor, std::span{&go, 1}, 0) : Result<Received>{fail(EPIPE, "")};
  if (!got || got->eof) ::_exit(126);
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  ::execvp(words[0], words.data());
  const int code = errno;
  say(code);
  ::_exit(code == ENOENT ? 127 : 126);
}

/// The supervisor keeps nothing that its caller gave it: a pipe's reader would wait for its end, an unmount for its
/// folder.
void let_go_of_everything(Fd& to_foreground, Fd& to_command) {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int stream : {0, 1, 2}) ::dup2(null, stream);
  Fd first = Fd::adopt(::fcntl(to_foreground.raw(), F_DUPFD_CLOEXEC, 3));
  Fd second = Fd::adopt(::fcntl(to_command.raw(), F_DUPFD_CLOEXEC, 3));
  to_foreground = std::move(first);
  to_command = std::move(second);
  const auto low = static_cast<unsigned>(std::min(to_foreground.raw(), to_command.raw()));
  const auto high = static_cast<unsigned>(std::max(to_foreground.raw(), to_command.raw()));
  if (low > 3) ::syscall(SYS_close_range, 3U, low - 1, 0U);
  if (high > low + 1) ::syscall(SYS_close_range, low + 1, high - 1, 0U);
  ::syscall(SYS_close_range, high + 1, ~0U, 0U);
  (void)!::chdir("/");
  ::setsid();
}

/// In the child that becomes the supervisor.
[[noreturn]] void become_supervisor(const std::string& socket, const std::vector<std::string>& argv, Fd to_foreground,
                                    const sigset_t& mask) {
  ::prctl(PR_SET_NAME, "luo-run");
  auto pair = packet_pair();
  const pid_t command = pair ? ::fork() : -1;
  if (command == 0) {
    to_foreground.close();
    pair->ours.close();
    become(argv, pair->theirs, mask);
  }
  if (command < 0) {
    Report report{Report::NotReady, errno, "start a process"};
    (void)send(to_foreground, std::as_bytes(std::span{&report, 1}), {}, 0);
    ::_exit(1);
  }
  pair->theirs.close();
  let_go_of_everything(to_foreground, pair->ours);
  supervise({.socket = socket,
             .to_foreground = std::move(to_foreground),
             .to_command = std::move(pair->ours),
             .command = command});
  ::_exit(0);
}

sigset_t passed_on() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCONT}) sigaddset(&set, number);
  return set;
}

/// Until the supervisor has said how the command ended.
Result<RunOutcome> wait_for_end(const Fd& supervisor, const Fd& signals) {
  RunOutcome outcome{.status = 126, .note = {}};
  for (;;) {
    pollfd fds[] = {{supervisor.raw(), POLLIN, 0}, {signals.raw(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    signalfd_siginfo info;
    while (fds[1].revents != 0 && ::read(signals.raw(), &info, sizeof info) == sizeof info) {
      const int number = static_cast<int>(info.ssi_signo);
      // What the terminal sends, it has sent to the command as well.
      if (info.ssi_code <= 0) (void)send(supervisor, std::as_bytes(std::span{&number, 1}), {}, MSG_DONTWAIT);
    }
    if (fds[0].revents == 0) continue;
    Report report{};
    const auto got = receive(supervisor, std::as_writable_bytes(std::span{&report, 1}), 0);
    if (!got || got->eof || got->bytes != sizeof report)
      return fail(ECHILD, "the supervisor has died; the command's opens and ioctls get ENOSYS from now on");
    const std::string text{wire::text_in(report.text)};
    switch (report.kind) {
      case Report::Started: break;
      case Report::NotReady: return std::unexpected(Error{report.value, text});
      case Report::NotStarted: outcome.note = errno_text(report.value); break;
      case Report::Crossed: outcome.note = "killed, as by a kexec: everything has crossed an update"; break;
      case Report::Ended:
        outcome.status = WIFEXITED(report.value) ? WEXITSTATUS(report.value) : 128 + WTERMSIG(report.value);
        return outcome;
    }
  }
}

}  // namespace

Result<RunOutcome> run(const std::string& socket, const std::vector<std::string>& argv) {
  char* absolute = ::realpath(socket.c_str(), nullptr);
  const std::string path = absolute != nullptr ? absolute : socket;
  std::free(absolute);
  auto pair = LUO_TRY(packet_pair());
  const sigset_t wanted = passed_on();
  sigset_t before;
  ::sigprocmask(SIG_BLOCK, &wanted, &before);
  const Fd signals = Fd::adopt(::signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.valid()) return sys_fail("signalfd");
  const pid_t child = ::fork();
  if (child < 0) return sys_fail("fork");
  if (child == 0) {
    pair.ours.close();
    become_supervisor(path, argv, std::move(pair.theirs), before);
  }
  pair.theirs.close();
  return wait_for_end(pair.ours, signals);
}

}  // namespace luo::compat
