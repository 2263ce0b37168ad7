// The keeper: holds the descriptor table that it shares with the worker, waits for the worker and starts
// the next. It parses nothing and decides nothing, so that nothing a peer sends can kill it. It opens no
// descriptor of its own (a new worker closes every descriptor that the arena does not name); it learns
// what happened by signals and then looks at the facts, because signals coalesce.
//
// A keeper is the parent of its worker, or, if it was made by a worker whose keeper had been killed, its
// child: then PR_SET_PDEATHSIG tells it.
#pragma once
#include <sys/types.h>

#include "daemon/control.h"

namespace luo::daemon {

enum class WorkerKind { Ordinary, OfNewImage };

/// Runs a worker in the calling process; never returns. Given by main, so that the keeper knows nothing of it.
using WorkerMain = void (*)(Control& control, WorkerKind kind);

struct Keeper {
  Control& control;
  WorkerMain worker_main;
  pid_t worker = -1;  ///< -1: start one
  bool worker_is_child = true;
  bool new_image = false;  ///< runs in a trial: the guard is somebody else

  /// Until luod stops; returns the exit status for the process.
  int run();

 private:
  int keep();
  bool worker_gone();
  void start_worker();
  bool stop_or_restart();
  void exec_new_image();
};

/// From the worker, when its keeper is dead: clones a new one. The child never returns.
Result<pid_t> make_keeper(Control& control, WorkerMain worker_main);

/// Raises the soft RLIMIT_NOFILE to the hard one.
void use_all_descriptors() noexcept;

/// The signals a keeper waits for; blocked in both processes.
void block_keeper_signals() noexcept;
inline constexpr int kExecRequest = 12;  // SIGUSR2: the worker asks the keeper to exec the image of the trial

/// Who asks, and who could have written what is about to run: the requester must be root or luod's own
/// user, the image a regular file that only root or that user can write. EACCES with the reason.
Result<> check_image(FdRef image, FdRef requester);

}  // namespace luo::daemon
