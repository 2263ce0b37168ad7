#include "cache/supervisor.h"

#include <dirent.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <new>

#include "base/log.h"
#include "sys/process.h"

namespace luo::cache {
namespace {

constexpr long kShortLifeMs = 5;
constexpr long kLongestDelayMs = 1000;
constexpr long kLeastDelayMs = 16;  // five deaths at once in a row

long now_ms() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

sigset_t awaited() noexcept {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, number);
  return set;
}

/// Passes signals on until the child has ended; how it ended.
int wait_for(pid_t child) {
  const sigset_t signals = awaited();
  for (;;) {
    int status = 0;
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (ended == child) return status;
    if (ended < 0 && errno != EINTR) return 1 << 8;
    siginfo_t info{};
    const int number = ::sigwaitinfo(&signals, &info);
    if (number == SIGTERM || number == SIGINT) ::kill(child, number);
  }
}

}  // namespace

Result<std::vector<int>> open_descriptors() {
  DIR* listing = ::opendir("/proc/self/fd");
  if (listing == nullptr) return sys_fail("open /proc/self/fd");
  std::vector<int> numbers;
  while (const dirent* entry = ::readdir(listing)) {
    int number = -1;
    std::from_chars(entry->d_name, entry->d_name + std::strlen(entry->d_name), number);
    if (number >= 0 && number != ::dirfd(listing)) numbers.push_back(number);
  }
  ::closedir(listing);
  return numbers;
}

Result<int> supervise(const Serve& serve) {
  const std::vector<int> inherited = LUO_TRY(open_descriptors());
  void* page = ::mmap(nullptr, sizeof(Heritage), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return sys_fail("mmap {} bytes", sizeof(Heritage));
  Heritage& heritage = *new (page) Heritage;
  const sigset_t signals = awaited();
  sigset_t before;
  ::sigprocmask(SIG_BLOCK, &signals, &before);
  for (long delay_ms = 0;;) {
    const long started = now_ms();
    const pid_t child = LUO_TRY_DURING("start the server", clone_sharing_files());
    if (child == 0) {
      ::sigprocmask(SIG_SETMASK, &before, nullptr);
      ::_exit(serve(heritage, inherited));
    }
    const int status = wait_for(child);
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    const char* what = ::strsignal(WTERMSIG(status));
    if (!heritage.served) return fail(ECHILD, "the server died before it served: {}", what);
    log(Level::Error, "the server (pid {}) died: {}; the next one goes on", child, what);
    // One that dies at once, again and again, gets a pause, but no end.
    delay_ms = now_ms() - started >= kShortLifeMs ? 0 : std::clamp(2 * delay_ms, 1L, kLongestDelayMs);
    if (delay_ms < kLeastDelayMs) continue;
    const timespec pause{.tv_sec = delay_ms / 1000, .tv_nsec = delay_ms % 1000 * 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace luo::cache
