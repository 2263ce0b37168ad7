// Images that `luoctl update luod` must survive. Which one this is, its build says (BAD_*).
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/control.h"
#include "daemon/probe.h"
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
#elif defined(BAD_HANGS)
  fputs("last words: let me think\n", stderr);
  for (;;) pause();
#endif
  fputs("last words: I do not want to\n", stderr);
  return 1;
}
