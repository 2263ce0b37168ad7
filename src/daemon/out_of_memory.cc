#include "daemon/out_of_memory.h"

#include <time.h>
#include <unistd.h>

#include <new>
#include <string_view>

namespace luo::daemon {
namespace {

struct Blamed {
  PeerRec* peer = nullptr;
  pid_t process = 0;  ///< a child that this one forks has nothing to do with it
};
thread_local Blamed g_blamed;

/// The log would allocate.
void say(std::string_view line) noexcept {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

void end() {
  const bool request = g_blamed.peer != nullptr && g_blamed.process == getpid();
  if (request) g_blamed.peer->out_of_memory = 1;
  say(request ? "luod worker: no memory for a request; ending, the next worker refuses it\n"
              : "luod worker: no memory; ending, the next worker goes on\n");
  _exit(1);
}

void wait() {
  say("luod keeper: no memory; waiting for it\n");
  const timespec pause{0, 50'000'000};
  nanosleep(&pause, nullptr);
}

}  // namespace

void end_when_out_of_memory() noexcept { std::set_new_handler(&end); }
void wait_when_out_of_memory() noexcept { std::set_new_handler(&wait); }

UnderWork::UnderWork(PeerRec& peer) noexcept { g_blamed = {&peer, getpid()}; }
UnderWork::~UnderWork() { no_longer_under_work(); }
void no_longer_under_work() noexcept { g_blamed = {}; }
void no_longer_under_work(const PeerRec& peer) noexcept {
  if (g_blamed.peer == &peer) g_blamed = {};
}

}  // namespace luo::daemon
