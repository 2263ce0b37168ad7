#include "daemon/start.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/log.h"
#include "daemon/fetch_state.h"
#include "daemon/out_of_memory.h"
#include "daemon/server.h"
#include "handlers/handlers.h"
#include "luo/uapi.h"
#include "medium/device.h"
#include "sys/cycles.h"
#include "sys/memfd.h"
#include "wire/paths.h"

namespace luo::daemon {
namespace {

constexpr Bytes kArenaSize = 16_GiB;  // reserved addresses; memory comes as it is used

Result<> make_state_dir(const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path{dir}.parent_path(), error);
  if (mkdir(dir.c_str(), 0755) != 0 && errno != EEXIST) return sys_fail("make the state directory: mkdir('{}')", dir);
  return {};
}

/// One luod for each directory: an flock that lives as long as any of its processes.
Result<Fd> lock_state_dir(const std::string& dir) {
  const std::string path = dir + "/luod.lock";
  Fd lock = Fd::adopt(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!lock.valid()) return sys_fail("open('{}')", path);
  if (flock(lock.raw(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) return sys_fail("flock('{}')", path);
  std::string pid = read_all(lock, 64_KiB).value_or("?");
  while (!pid.empty() && pid.back() == '\n') pid.pop_back();
  return fail(
      EBUSY,
      "luod is running on {} already, with pid {}; stop it with `luoctl stop`, update it with `luoctl update luod`, "
      "or give this one another --state-dir",
      dir, pid);
}

struct Listener {
  Fd fd;
  bool activated = false;
};

Result<Listener> make_listener(const std::string& path) {
  const int given = sd_listen_fds(1);
  if (given > 1) return fail(EINVAL, "systemd passed {} sockets, luod takes one", given);
  if (given == 1) {
    if (sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_SEQPACKET, 1, nullptr, 0) <= 0)
      return fail(EINVAL,
                  "the socket from systemd is not a listening SOCK_SEQPACKET Unix socket (ListenSequentialPacket=)");
    fcntl(SD_LISTEN_FDS_START, F_SETFL, O_NONBLOCK);
    return Listener{Fd::adopt(SD_LISTEN_FDS_START), true};
  }
  // We hold the directory's lock; what is left at the path is of a dead one, unless somebody answers there.
  if (auto living = connect_packets(path)) return fail(EADDRINUSE, "somebody serves on {} already", path);
  struct stat st {};
  if (lstat(path.c_str(), &st) == 0) {
    if (!S_ISSOCK(st.st_mode)) return fail(EEXIST, "{} is there and is not a socket; move it away", path);
    if (unlink(path.c_str()) != 0) return sys_fail("remove the stale socket: unlink('{}')", path);
  }
  return Listener{LUO_TRY(listen_packets(path, 4096)), false};
}

/// A serving worker leaves some numbers free: if it dies with a full table, the next one needs a few of its
/// own before it can find out which of them are to be closed.
void leave_some_descriptors() noexcept {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max - std::min<rlim_t>(64, limit.rlim_max / 4);
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
    log(Level::Warning, "set RLIMIT_NOFILE to {}: {}", limit.rlim_cur, errno_text(errno));
}

/// /dev/liveupdate, if it is asked for; auto: if it is there and ours to open.
Result<Fd> open_medium(const std::string& medium) {
  if (medium == "exec") return Fd{};
  auto device = medium::open_device();
  if (device || medium == "kernel") return device;
  const int code = device.error().code;
  if (code == ENOENT || code == ENXIO || code == ENODEV) return Fd{};
  if (code == EACCES || code == EPERM) {
    log(Level::Notice, "{}; going on without it, as with --medium exec", device.error());
    return Fd{};
  }
  return device;
}

/// Gives back a mapping of the arena that was inherited from the process that cloned this one.
void drop_mapping(Control& control) noexcept {
  struct stat st {};
  if (fstat(control.arena_fd, &st) != 0) return;
  munmap(reinterpret_cast<std::byte*>(&control) - kho::Arena::kControlOffset, static_cast<std::size_t>(st.st_size));
}

/// A worker's whole life, in the process that the keeper cloned for it.
[[noreturn]] void worker_process(Control& inherited, WorkerKind kind) {
  end_when_out_of_memory();
  log_as("luod worker");
  use_all_descriptors();
  prctl(PR_SET_NAME, "luod-worker");
  signal(SIGPIPE, SIG_IGN);  // a guard that was killed reads no report
  inherited.worker_starts.fetch_add(1);
  const auto serve = [&]() -> Result<int> {
    if (inherited.arrival.load() != static_cast<std::uint32_t>(Arrival::Over)) {
      if (auto fetched = fetch_state(inherited); !fetched) {
        // Held as it is, and not tried again and again: the keeper says so.
        const int code = fetched.error().code;
        inherited.damaged.store(code == EBADMSG || code == EPROTO ? 1 : 0);
        return std::unexpected(std::move(fetched).error());
      }
    }
    // The number stays the keeper's, whatever happens here: the table is shared.
    Fd own = Fd::adopt(fcntl(inherited.arena_fd, F_DUPFD_CLOEXEC, 3));
    if (!own.valid()) return sys_fail("dup of the arena's descriptor");
    auto arena = kho::Arena::open(std::move(own), Engine::kLayout);
    if (!arena) {
      inherited.damaged.store(arena.error().code == EBADMSG ? 1 : 0);
      return std::unexpected(std::move(arena).error());
    }
    Control& control = control_of(*arena);
    drop_mapping(inherited);
    auto handlers = LUO_TRY(make_handlers(control.handlers));
    // Never destroyed: what it would close is the keeper's too.
    Server& server = *new Server{control, std::move(*arena), std::move(handlers), &worker_process};
    if (auto restored = server.restore(kind); !restored) {
      const int code = restored.error().code;
      control.damaged.store(code == EBADMSG ? 1 : 0);
      // Before any file of it was asked for. Of files that were, only this luod's descriptors keep the rest.
      if (control.arrival.load() != static_cast<std::uint32_t>(Arrival::Over) && !server.has_begun_to_arrive())
        save_state(control);
      return std::unexpected(std::move(restored).error());
    }
    leave_some_descriptors();
    return server.run();
  };
  const Result<int> status = serve();
  if (!status) log(Level::Error, "{}", status.error());
  _exit(status.value_or(1));
}

}  // namespace

bool outlives_shutdown(const Options& options) noexcept {
  return options.medium != "exec" && sd_booted() > 0 && access(LUO_UAPI_DEVICE, F_OK) == 0;
}

Result<int> start_fresh(const Options& options) {
  use_all_descriptors();
  signal(SIGXFSZ, SIG_IGN);  // RLIMIT_FSIZE is to be an error with a name, also for those that inherit this
  const std::string dir = options.state_dir.empty() ? LUO_TRY(wire::runtime_folder()) : options.state_dir;
  std::string socket = options.socket;
  if (socket.empty()) {
    const char* from_environment = std::getenv("LUO_SOCKET");
    socket = from_environment != nullptr && *from_environment != '\0' ? from_environment : dir + "/luod.sock";
  }
  Control scratch{};  // for the sizes of its fields
  if (socket.size() >= sizeof scratch.socket_path)
    return fail(ENAMETOOLONG, "the socket path '{}' has over {} bytes", socket, sizeof scratch.socket_path - 1);
  if (dir.size() >= sizeof scratch.state_dir)
    return fail(ENAMETOOLONG, "the state directory '{}' has over {} bytes", dir, sizeof scratch.state_dir - 1);
  if (options.handlers.size() >= sizeof scratch.handlers) return fail(EINVAL, "--handlers is too long");
  LUO_TRY(make_handlers(options.handlers));  // says now what it does not know

  LUO_TRY(make_state_dir(dir));
  Fd lock = LUO_TRY(lock_state_dir(dir));
  Fd device = LUO_TRY(open_medium(options.medium));
  Listener listener = LUO_TRY(make_listener(socket));
  kho::Arena arena =
      LUO_TRY(kho::Arena::create({.name = "luod-arena", .layout = Engine::kLayout, .max_size = kArenaSize}));
  Fd log_copy = Fd::adopt(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  if (!log_copy.valid()) return sys_fail("dup of stderr");

  Control& control = control_of(arena);
  control.magic = Control::kMagic;
  if (getrandom(&control.instance, sizeof control.instance, 0) != sizeof control.instance) return sys_fail("getrandom");
  control.started_ms = realtime_ms();
  control.arena_fd = arena.fd().raw;
  control.listen_fd = listener.fd.release();
  control.listen_activated = listener.activated ? 1 : 0;
  control.lock_fd = lock.release();
  control.log_fd = log_copy.release();
  wire::put_text(control.state_dir, dir);
  wire::put_text(control.socket_path, socket);
  wire::put_text(control.handlers, options.handlers);
  control.own_fd = -1;
  control.start_cycles = cycles();
  control.start_raw_ns = raw_clock_ns();
  if (device.valid()) {
    control.medium = static_cast<std::uint32_t>(MediumKind::Kernel);
    control.arrival.store(static_cast<std::uint32_t>(Arrival::ToLook));
  }
  control.device_fd = device.release();
  log(Level::Notice, "serving on {} (state in {}, medium {})", socket, dir, control.medium != 0 ? "kernel" : "exec");

  log_as("luod keeper");
  prctl(PR_SET_NAME, "luod-keeper");
  Keeper keeper{.control = control, .worker_main = &worker_process};
  return keeper.run();
}

Result<int> resume(int arena_fd) {
  use_all_descriptors();
  log_as("luod keeper");
  prctl(PR_SET_NAME, "luod-keeper");
  kho::Arena arena = LUO_TRY_DURING("resume", kho::Arena::open(Fd::adopt(arena_fd), Engine::kLayout));
  Control& control = *LUO_TRY_DURING("resume", checked_control(arena));
  if (control.trial.load() != static_cast<std::uint32_t>(Trial::Trying))
    return fail(EINVAL, "resume: no update of luod is under way");
  // Loads what is to be loaded now, while the old luod can still go on; workers inherit it.
  LUO_TRY_DURING("resume", make_handlers(control.handlers));
  // It went over the exec, for the interpreter of a script. The old luod has a number of its own for it.
  if (control.trial_image_fd > STDERR_FILENO) close_number(control.trial_image_fd);
  control.trial_image_fd = -1;
  Keeper keeper{.control = control, .worker_main = &worker_process, .new_image = true};
  return keeper.run();
}

}  // namespace luo::daemon
