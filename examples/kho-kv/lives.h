// A program whose arena outlives its processes: one process keeps the descriptor, another does the work and may be
// killed or replaced. As in kho-counter, apart from the store.
#pragma once
#include <fcntl.h>
#include <kho/arena.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

/// Replaces the program by the one that is installed under its name now; returns only if that fails.
inline luo::Result<> exec_with(const luo::kho::Arena& arena, char** argv) {
  ::fcntl(arena.fd().raw, F_SETFD, 0);  // it is CLOEXEC, but this exec is to keep it
  ::execlp(argv[0], argv[0], std::to_string(arena.fd().raw).c_str(), nullptr);
  return luo::sys_fail("exec {}", argv[0]);
}

/// Runs `live` in a child, and in the next one when that is killed. Returns in children only.
inline luo::Result<> supervise(luo::Fd memfd, luo::Result<> (*live)(luo::Fd memfd, char** argv), char** argv) {
  for (;;) {
    const pid_t child = ::fork();
    if (child < 0) return luo::sys_fail("fork");
    if (child == 0) return live(std::move(memfd), argv);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    if (!WIFSIGNALED(status)) std::exit(WEXITSTATUS(status));
    ::dprintf(STDERR_FILENO, "killed by signal %d; the next life begins\n", WTERMSIG(status));
  }
}
