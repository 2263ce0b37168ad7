#include "support/tracer.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

namespace luo::test {

Result<Tracer> Tracer::start(const std::function<void(int to)>& life) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return sys_fail("pipe2(O_CLOEXEC)");
  Fd reports = Fd::adopt(ends[0]);
  const Fd to = Fd::adopt(ends[1]);
  const pid_t owner = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return sys_fail("fork()");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != owner) ::_exit(1);
    const auto keep = static_cast<unsigned>(to.raw());
    if (keep > 0) ::close_range(0, keep - 1, 0);
    ::close_range(keep + 1, ~0U, 0);
    life(to.raw());
    ::_exit(1);
  }
  return Tracer{pid, std::move(reports)};
}

Tracer::Tracer(pid_t pid, Fd reports) noexcept : pid_{pid}, reports_{std::move(reports)} {}
Tracer::Tracer(Tracer&& from) noexcept : pid_{std::exchange(from.pid_, -1)}, reports_{std::move(from.reports_)} {}

void Tracer::stop() noexcept {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {}
  pid_ = -1;
}

Result<> Tracer::read_whole(void* to, std::size_t bytes) const {
  if (::read(reports_.raw(), to, bytes) != static_cast<ssize_t>(bytes)) return fail(ECHILD, "the tracer is gone");
  return {};
}

void say_bytes(int to, const void* report, std::size_t bytes) noexcept {
  if (::write(to, report, bytes) != static_cast<ssize_t>(bytes)) ::_exit(1);
}

}  // namespace luo::test
