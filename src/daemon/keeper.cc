#include "daemon/keeper.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "daemon/out_of_memory.h"
#include "sys/process.h"
#include "wire/message.h"

namespace luo::daemon {
namespace {

constexpr int kParentDied = SIGUSR1;
/// Workers in a row that died before they served: from here on the next start waits a little longer each time.
constexpr std::uint32_t kPatience = 5;

sigset_t keeper_signals() noexcept {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP, kParentDied, kExecRequest}) sigaddset(&set, signal);
  return set;
}

void reap_strangers(pid_t worker) noexcept {
  // The old worker of an update that succeeded, or a probe whose parent was killed.
  siginfo_t info{};
  while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0 && info.si_pid != worker) {
    waitpid(info.si_pid, nullptr, WNOHANG);
    info = {};
  }
}

}  // namespace

void use_all_descriptors() noexcept {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
    log(Level::Warning, "raise RLIMIT_NOFILE to {}: {}", limit.rlim_max, errno_text(errno));
}

void block_keeper_signals() noexcept {
  const sigset_t set = keeper_signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
}

int Keeper::run() {
  wait_when_out_of_memory();
  const int status = keep();
  // A worker that stops removes it; one that was a guard, or was killed, has not.
  if (control.listen_activated == 0) unlink(control.socket_path);
  return status;
}

int Keeper::keep() {
  block_keeper_signals();
  control.keeper_pid.store(getpid());
  control.keeper_starts.fetch_add(1);
  const sigset_t set = keeper_signals();
  if (control.stopping.load() != 0 && worker > 0) kill(worker, SIGTERM);  // the keeper before us may not have told it
  for (;;) {
    if (control.stopping.load() != 0 && (worker < 0 || worker_gone())) return 0;
    if (worker < 0) start_worker();
    if (const auto trial = static_cast<Trial>(control.trial.load()); trial == Trial::None || trial == Trial::Serving)
      new_image = false;
    if (worker < 0 || worker_gone()) {
      if (!stop_or_restart()) return 0;
      continue;
    }
    siginfo_t info{};
    const int signal = sigwaitinfo(&set, &info);
    if ((signal == SIGTERM || signal == SIGINT) && control.leaving.load() == 0) {
      control.stopping.store(1);  // also for the one after this worker, should it die before it hears of it
      kill(worker, SIGTERM);
    } else if (signal == kExecRequest && info.si_pid == worker &&
               control.trial.load() == static_cast<std::uint32_t>(Trial::Trying)) {
      new_image = false;  // what is tried now is another one
      exec_new_image();
    }
    reap_strangers(worker_is_child ? worker : 0);
  }
}

bool Keeper::worker_gone() {
  if (!worker_is_child) return getppid() != worker;
  return waitpid(worker, nullptr, WNOHANG) != 0;
}

void Keeper::start_worker() {
  const pid_t me = getpid();
  const Result<pid_t> child = clone_sharing_files();
  if (child && *child == 0) {
    control.worker_pid.store(getpid());
    if (new_image) {
      // Until it serves, a worker of the new image must not outlive its keeper: the guard kills only that.
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != me) _exit(1);
    }
    worker_main(control, new_image ? WorkerKind::OfNewImage : WorkerKind::Ordinary);
    _exit(1);
  }
  if (!child) log(Level::Error, "keeper: start a worker: {}", child.error());
  worker = child.value_or(-1);
  worker_is_child = true;
}

bool Keeper::stop_or_restart() {
  worker = -1;
  if (control.stopping.load() != 0) return false;
  const auto trial = static_cast<Trial>(control.trial.load());
  if (new_image) waitpid(control.trial_guard_pid, nullptr, WNOHANG);  // a zombie guards nothing
  const bool guarded = trial == Trial::Abandoned || (trial == Trial::Trying && kill(control.trial_guard_pid, 0) == 0);
  if (new_image && guarded) {
    log(Level::Error, "keeper: the worker of this image died before it served; the old luod takes back");
    _exit(1);
  }
  const sigset_t set = keeper_signals();
  if (control.damaged.load() != 0) {
    log(Level::Error,
        "keeper: the arena is damaged, so no worker can serve; everything is held as it is. SIGHUP tries again, "
        "SIGTERM gives up everything that is preserved");
    int signal = 0;
    while (signal != SIGHUP && signal != SIGTERM && signal != SIGINT) signal = sigwaitinfo(&set, nullptr);
    if (signal != SIGHUP) return false;
    control.damaged.store(0);
  }
  const std::uint32_t early = control.early_deaths.fetch_add(1);
  if (early >= kPatience) {
    const std::uint32_t shift = std::min(early - kPatience, 5U);
    const timespec pause{shift / 5, (100'000'000L << shift) % 1'000'000'000L};
    if (sigtimedwait(&set, nullptr, &pause) == SIGTERM) return false;
  }
  log(Level::Warning, "keeper: the worker died; starting the next");
  start_worker();
  return true;
}

void Keeper::exec_new_image() {
  const auto refuse = [this](int code, std::string_view why) {
    control.trial_errno = code;
    wire::put_text(control.trial_why, why);
    auto expected = static_cast<std::uint32_t>(Trial::Trying);
    control.trial.compare_exchange_strong(expected, static_cast<std::uint32_t>(Trial::Abandoned));
    [[maybe_unused]] const ssize_t told = write(control.trial_report_fd, "x", 1);
  };
  if (auto allowed = check_image(FdRef::borrow(control.trial_image_fd), FdRef::borrow(control.trial_requester_fd));
      !allowed)
    return refuse(allowed.error().code, allowed.error().what);

  // From here on the new image's words go where luoctl can read them. The table is still shared with the
  // guard; it keeps log_fd to go back.
  dup3(control.trial_words_fd, STDERR_FILENO, 0);
  char arena_arg[16];
  *fmt::format_to_n(arena_arg, sizeof arena_arg - 1, "{}", control.arena_fd).out = '\0';
  char program[] = "luod";
  char resume[] = "--resume";
  char* const argv[] = {program, resume, arena_arg, nullptr};
  // It decides by this whether a shutdown is to spare it. An older one does not know the variable.
  setenv("LUO_MEDIUM", control.medium == static_cast<std::uint32_t>(MediumKind::Kernel) ? "kernel" : "exec", 1);
  fcntl(control.trial_image_fd, F_SETFD, 0);  // a script is opened once more, by its interpreter
  const Error error = exec_fd(FdRef::borrow(control.trial_image_fd), argv, environ);
  dup3(control.log_fd, STDERR_FILENO, 0);
  refuse(error.code, error.what);
}

Result<pid_t> make_keeper(Control& control, WorkerMain worker_main) {
  const pid_t me = getpid();
  const pid_t child = LUO_TRY(clone_sharing_files());
  if (child != 0) {
    control.keeper_pid.store(child);
    return child;
  }
  log_as("luod keeper");
  use_all_descriptors();
  prctl(PR_SET_NAME, "luod-keeper");
  prctl(PR_SET_PDEATHSIG, kParentDied);
  // Whatever the worker did to signal dispositions is not the keeper's.
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::signal(signal, SIG_DFL);
  Keeper keeper{.control = control, .worker_main = worker_main, .worker = me, .worker_is_child = false};
  _exit(keeper.run());
}

Result<> check_image(FdRef image, FdRef requester) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(requester.raw, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
    return sys_fail("check who asks for the update: getsockopt(SO_PEERCRED)");
  if (peer.uid != 0 && peer.uid != geteuid())
    return fail(EACCES, "only root or uid {} may update this luod; uid {} asked", geteuid(), peer.uid);
  struct stat st {};
  if (fstat(image.raw, &st) != 0) return sys_fail("check the new image: fstat");
  if (!S_ISREG(st.st_mode)) return fail(EACCES, "the new image is not a regular file");
  if (st.st_uid != 0 && st.st_uid != geteuid())
    return fail(EACCES, "the new image belongs to uid {}, who could change it; it must belong to root or uid {}",
                st.st_uid, geteuid());
  if ((st.st_mode & S_IWOTH) != 0)
    return fail(EACCES, "anybody may write the new image (mode {:o}); chmod o-w it", st.st_mode & 07777);
  if ((st.st_mode & S_IWGRP) != 0 && st.st_gid != 0 && st.st_gid != getegid())
    return fail(EACCES, "group {} may write the new image (mode {:o}); chmod g-w it", st.st_gid, st.st_mode & 07777);
  if ((st.st_mode & (S_IXUSR | S_IXGRP | S_IXOTH)) == 0)
    return fail(EACCES, "the new image is not executable; chmod +x it");
  return {};
}

}  // namespace luo::daemon
