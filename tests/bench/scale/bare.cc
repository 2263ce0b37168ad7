// The yardstick of `update luod`: fork and exec of a process that has as many descriptors, kept open over exec.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "scale.h"

namespace bench {
namespace {

constexpr char kExecuted[] = "--executed";

struct Answer {
  int error;
  BareProcess::Times times;
};

Answer fork_once() {
  int pipe[2];
  if (::pipe2(pipe, 0) != 0) return {errno, {}};
  char number[16];
  *fmt::format_to_n(number, sizeof number - 1, "{}", pipe[1]).out = '\0';
  char name[] = "luo-scale", flag[sizeof kExecuted];
  std::memcpy(flag, kExecuted, sizeof kExecuted);
  char* const argv[] = {name, flag, number, nullptr};
  const std::uint64_t began = now_ns();
  const pid_t child = ::fork();
  if (child == 0) {
    ::execve("/proc/self/exe", argv, environ);
    _exit(127);
  }
  if (child < 0) return {errno, {}};
  ::close(pipe[1]);
  char byte = 0;
  const bool ran = ::read(pipe[0], &byte, 1) == 1;
  const double running_ms = us_each(began, 1000);
  int status = 0;
  ::waitpid(child, &status, 0);
  const double ended_ms = us_each(began, 1000);
  ::close(pipe[0]);
  return {ran && status == 0 ? 0 : ECHILD, {running_ms, ended_ms}};
}

[[noreturn]] void serve(int socket, std::size_t files) {
  int error = 0;
  for (std::size_t i = 0; i < files && error == 0; ++i)
    if (memfd_create("bare", 0) < 0) error = errno;
  char byte = 0;
  if (::send(socket, &error, sizeof error, MSG_NOSIGNAL) != sizeof error) _exit(0);
  while (::recv(socket, &byte, 1, 0) == 1) {
    const Answer answer = fork_once();
    if (::send(socket, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer) break;
  }
  _exit(0);
}

}  // namespace

luo::Result<BareProcess> BareProcess::start(std::size_t files) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return luo::sys_fail("socketpair");
  luo::Fd ours = luo::Fd::adopt(pair[0]);
  luo::Fd theirs = luo::Fd::adopt(pair[1]);
  const pid_t child = ::fork();
  if (child < 0) return luo::sys_fail("fork");
  if (child == 0) {
    const int own = ::dup2(theirs.raw(), 3);
    ::close_range(4, ~0U, 0);  // the session descriptors of luo-scale
    ::fcntl(own, F_SETFD, FD_CLOEXEC);
    serve(own, files);
  }
  BareProcess process{std::move(ours), child};
  int error = 0;
  if (::recv(process.socket_.raw(), &error, sizeof error, 0) != sizeof error)
    return luo::fail(ECHILD, "a process died");
  if (error != 0) return luo::fail(error, "make {} memfds", files);
  return process;
}

BareProcess::~BareProcess() {
  if (pid_ < 0) return;
  socket_.close();
  ::waitpid(pid_, nullptr, 0);
}

luo::Result<BareProcess::Times> BareProcess::fork_and_exec() {
  Answer answer{};
  if (::send(socket_.raw(), "f", 1, MSG_NOSIGNAL) != 1 ||
      ::recv(socket_.raw(), &answer, sizeof answer, 0) != sizeof answer)
    return luo::sys_fail("ask the bare process");
  if (answer.error != 0) return luo::fail(answer.error, "bare fork and exec");
  return answer.times;
}

void be_the_executed(std::span<char*> args) {
  if (args.size() != 3 || std::strcmp(args[1], kExecuted) != 0) return;
  _exit(::write(std::atoi(args[2]), "r", 1) == 1 ? 0 : 1);
}

}  // namespace bench
