// Images that `luoctl update luod` must survive. Which one this is, its build says (BAD_*).
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/control.h"
#include "daemon/probe.h"
#include "daemon/start.h"
#include "handlers/handlers.h"
#include "luo/engine.h"

namespace {

int probe() {
#if defined(BAD_PROBE_EXITS)
  fputs("last words: I will not be asked\n", stderr);
  return 1;
#elif defined(BAD_PROBE_TALKS_NONSENSE)
  puts("Hello, world");
#elif defined(BAD_PROBE_CRASHES)
  raise(SIGSEGV);
#elif defined(BAD_PROBE_HANGS)
  fputs("last words: what was the question?\n", stderr);
  for (;;) pause();
#elif defined(BAD_OTHER_LAYOUT)
  puts(R"({"program": "luod", "version": "99", "layouts": [{"tag": "luod", "read": [98, 99], "write": 99}]})");
#else
  puts(luo::daemon::probe_text().c_str());
#endif
  return 0;
}

[[maybe_unused]] void read_everything(int arena_fd) {
  auto arena = luo::kho::Arena::open(luo::Fd::adopt(arena_fd), luo::Engine::kLayout);
  if (!arena) return;
  auto handlers = luo::make_handlers(luo::daemon::control_of(*arena).handlers);
  if (!handlers) return;
  auto engine = luo::Engine::open(*arena, (*handlers)->registry(), [](int) { return false; });
  fprintf(stderr, "last words: read %llu sessions\n",
          engine ? static_cast<unsigned long long>(engine->session_count()) : 0ULL);
}

/// A luod that serves, but has lost a descriptor on the way, or brought one along.
[[maybe_unused]] int serve_with_other_descriptors(int arena_fd, bool lose) {
  if (lose) {
    auto arena = luo::kho::Arena::open(luo::Fd::adopt(fcntl(arena_fd, F_DUPFD_CLOEXEC, 3)), luo::Engine::kLayout);
    auto handlers = luo::make_handlers(luo::daemon::control_of(*arena).handlers);
    auto engine = luo::Engine::open(
        *arena, (*handlers)->registry(), [](int) { return false; }, luo::Engine::Take::Later);
    std::vector<int> held;
    engine->append_fds(held);
    close(held.back());
  } else {
    open("/dev/null", O_RDONLY);
  }
  const auto status = luo::daemon::resume(arena_fd);
  if (!status) fprintf(stderr, "%s\n", luo::to_string(status.error()).c_str());
  return status.value_or(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "--probe") == 0) return probe();
  [[maybe_unused]] const int arena = argc > 2 ? atoi(argv[2]) : -1;
  signal(SIGABRT, SIG_DFL);
#if defined(BAD_START_CRASHES)
  signal(SIGSEGV, SIG_DFL);
  raise(SIGSEGV);
#elif defined(BAD_AFTER_READING)
  read_everything(arena);
  abort();
#elif defined(BAD_LOSES) || defined(BAD_BRINGS)
#ifdef BAD_LOSES
  return serve_with_other_descriptors(arena, true);
#else
  return serve_with_other_descriptors(arena, false);
#endif
#elif defined(BAD_HANGS)
  fputs("last words: let me think\n", stderr);
  for (;;) pause();
#endif
  fputs("last words: I do not want to\n", stderr);
  return 1;
}
