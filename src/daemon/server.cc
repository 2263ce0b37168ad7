#include "daemon/server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/log.h"
#include "daemon/own_objects.h"
#include "sys/pipe.h"
#include "sys/process.h"

namespace luo::daemon {

/// The C callbacks of sd-event.
struct Callbacks {
  static Server& server(void* context) { return *static_cast<Server*>(context); }
  static int accept(sd_event_source*, int, std::uint32_t, void* context) {
    server(context).on_accept();
    return 0;
  }
  static int holder(sd_event_source*, int, std::uint32_t, void* context) {
    server(context).reap_closed();
    return 0;
  }
  static int wake(sd_event_source*, int fd, std::uint32_t, void* context) {
    eventfd_t value;
    eventfd_read(fd, &value);
    server(context).wake_parked();
    return 0;
  }
  static int keeper(sd_event_source*, int, std::uint32_t, void* context) {
    server(context).on_keeper_died();
    return 0;
  }
  static int probe(sd_event_source*, int, std::uint32_t, void* context) {
    server(context).probe_source_.reset();
    server(context).wake_parked();
    return 0;
  }
  static int deadline(sd_event_source*, std::uint64_t, void* context) {
    server(context).on_deadline();
    return 0;
  }
  static int stop(sd_event_source* source, const signalfd_siginfo*, void* context) {
    if (server(context).control_.leaving.load() != 0) return 0;
    server(context).control_.stopping.store(1);
    return sd_event_exit(sd_event_source_get_event(source), 0);
  }
};

Server::Server(Control& control, kho::Arena arena, std::unique_ptr<HandlerSet> handlers, WorkerMain worker_main)
    : control_{control},
      worker_main_{worker_main},
      arena_{std::move(arena)},
      handler_set_{std::move(handlers)},
      buffer_(wire::kMaxMessage) {}

Server::~Server() = default;

Result<> Server::restore(WorkerKind kind) {
  own_objects_ = std::make_unique<OwnObjects>(
      control_, [this](std::uint64_t inode) { return engine_ && engine_->find_by_inode(inode).has_value(); });
  LUO_TRY(registry_.add(*own_objects_));
  wake_fd_ = Fd::adopt(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd_.valid()) return sys_fail("eventfd");
  if (control_.medium == static_cast<std::uint32_t>(MediumKind::Kernel)) LUO_TRY(open_medium());
  for (Handler* chosen_handler : handler_set_->registry().all()) {
    Handler* handler = chosen_handler;
    if (kernel_) {
      const auto carry_of = [this](SessionId id) { return engine_ ? engine_->carry_of(id) : 0; };
      carried_.push_back(std::make_unique<handlers::CarriedHandler>(*chosen_handler, *kernel_, carry_of));
      handler = carried_.back().get();
    }
    LUO_TRY(registry_.add(*handler));
    handler->set_waker([fd = wake_fd_.raw()] { eventfd_write(fd, 1); });
    const HandlerRegistry& chosen = handler_set_->registry();
    for (std::size_t i = 0; i < chosen.flbs().size(); ++i)
      if ((chosen.flbs_of(*chosen_handler) >> i & 1) != 0) LUO_TRY(registry_.add_flb(*handler, *chosen.flbs()[i]));
  }

  const auto is_closed = [this](int write_fd) {
    if (control_.leaving.load() != 0 || !reader_gone(write_fd)) return false;
    closed_on_the_way_.push_back(write_fd);
    return true;
  };
  holders_.emplace(LUO_TRY(HolderWatch::make()));
  engine_.emplace(LUO_TRY_DURING(
      "read the arena",
      Engine::open(arena_, registry_, is_closed, Engine::Take::Later,
                   kind == WorkerKind::OfNewImage ? Engine::Trust::Predecessor : Engine::Trust::Nobody)));
  state_.emplace(LUO_TRY_DURING("read the arena", State::open(arena_)));

  if (control_.arrival.load() != static_cast<std::uint32_t>(Arrival::Over)) LUO_TRY(arrive());
  else if (kernel_) LUO_TRY_DURING("read the arena", kernel_->check());
  const std::uint64_t preserved = expect_holders();
  // An exec closes what was half-way somewhere, unless it was opened to go over one.
  std::int64_t over = kind == WorkerKind::OfNewImage ? strays(preserved) : INT64_MAX;
  // Files that were lost on their way from the kernel before have none.
  if (over < 0) over += lost_files();
  if (over < 0) return fail(EBADF, "{} descriptors of sessions and files did not come over the exec", -over);
  if (kind == WorkerKind::OfNewImage) {
    // The commit point of an update of luod: from here on the old worker only exits.
    auto expected = static_cast<std::uint32_t>(Trial::Trying);
    if (!control_.trial.compare_exchange_strong(expected, static_cast<std::uint32_t>(Trial::Serving)))
      return fail(ECANCELED, "the old luod has given this update up");
    // From now on we outlive our keeper, and only now the guard may leave: it waits for the word, not for
    // the state, because a keeper that dies in between takes us along.
    prctl(PR_SET_PDEATHSIG, 0);
    [[maybe_unused]] const ssize_t told = write(control_.trial_report_fd, "s", 1);
  } else {
    auto expected = static_cast<std::uint32_t>(Trial::Trying);
    if (control_.trial.load() == expected) {
      control_.trial_errno = ECANCELED;
      wire::put_text(control_.trial_why, "luod's worker was killed while it waited for the new image");
    }
    control_.trial.compare_exchange_strong(expected, static_cast<std::uint32_t>(Trial::Abandoned));
  }

  // From here on the arena is ours.
  for (Handler* handler : registry_.all()) handler->set_flbs(*engine_);
  LUO_TRY_DURING("take the arena over", engine_->take_over());
  engine_->settle_flbs();
  if (over != 0) LUO_TRY(close_unnamed());
  if (kernel_) {
    kernel_->before_close([this] { wait_for_copies(); });
    end_arrival();
    if (control_.leaving.load() != 0) {
      // It names kernel sessions, which are left as they are.
      kernel_->take_offer_over(control_.image_fd);
    } else {
      if (control_.image_fd > 0) close_number(std::exchange(control_.image_fd, 0));
      kernel_->recover();
    }
    LUO_TRY(kernel_->reserve());
  }
  LUO_TRY(build_loop());
  if (kind == WorkerKind::OfNewImage) watch_soon();
  else watch_some_holders(SIZE_MAX);
  settle_trial();
  settle_answers();
  drop_stale_grants();
  unfreeze_leftovers();
  displace_late_files();
  control_.early_deaths.store(0);
  served_since_ns_ = monotonic_ns();
  notify_ready();
  bool again = false;
  state_->for_each_update([&](UpdateRec& update) {
    if (update.phase == static_cast<std::uint32_t>(Phase::Preparing)) tell_prepare(update);
    again = again || !update.over();
  });
  tell_outcomes();
  if (again) arm_deadlines();
  return {};
}

int Server::run() {
  const int status = sd_event_loop(loop_.get());
  if (status < 0) {
    log(Level::Error, "event loop: {}", errno_text(-status));
    return 1;
  }
  sd_notify(0, "STOPPING=1");
  if (control_.listen_activated == 0) unlink(control_.socket_path);
  log(Level::Notice, "stopped; {} sessions are given up", engine_->session_count());
  return 0;
}

/// The table is shared with the keeper and outlived the last worker: what the arena does not name was
/// half-way somewhere when that one died. A connection that it had just accepted is taken in.
Result<> Server::close_unnamed() {
  std::vector<int> named{0, 1, 2, holders_->fd().raw, wake_fd_.raw()};
  append_control_fds(control_, named);
  engine_->append_fds(named);
  state_->append_fds(named);
  if (kernel_) kernel_->append_fds(named);
  named.push_back(arena_.fd().raw);

  int table_size = 0;
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("FDSize:")) table_size = std::stoi(line.substr(7));
  status.close();
  if (table_size <= 0) return fail(EIO, "learn the size of the descriptor table from /proc/self/status");

  std::vector<bool> keep(static_cast<std::size_t>(table_size));
  for (const int fd : named) {
    if (fd < 0 || fd >= table_size) return fail(EBADMSG, "the arena names descriptor {}, which does not exist", fd);
    keep[static_cast<std::size_t>(fd)] = true;
  }
  // One poll tells of all numbers whether they are open: POLLNVAL if not.
  std::vector<pollfd> others;
  for (int fd = 0; fd < table_size; ++fd)
    if (!keep[static_cast<std::size_t>(fd)]) others.push_back({fd, 0, 0});
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return sys_fail("getrlimit(RLIMIT_NOFILE)");
  const std::size_t at_once = std::max<std::size_t>(limit.rlim_cur, 1);  // poll takes no more
  for (std::size_t at = 0; at < others.size(); at += at_once)
    if (poll(&others[at], std::min(at_once, others.size() - at), 0) < 0)
      return sys_fail("poll of the descriptor table");
  for (const pollfd& other : others) {
    if ((other.revents & POLLNVAL) != 0) continue;
    if (auto adopted = adopt_connection(other.fd); !adopted) close_number(other.fd);
  }
  return {};
}

/// How many descriptors are open that the arena does not name, at a fraction of close_unnamed()'s price; below 0: some
/// are missing. `preserved` is what sessions and files have.
std::int64_t Server::strays(std::uint64_t preserved) const {
  struct stat table {};
  if (stat("/proc/self/fd", &table) != 0 || table.st_size == 0) return INT64_MAX;  // not known before Linux 6.2
  std::vector<int> named{0, 1, 2, holders_->fd().raw, wake_fd_.raw(), arena_.fd().raw};
  append_control_fds(control_, named);
  state_->append_fds(named);
  if (kernel_) kernel_->append_fds(named);
  std::ranges::sort(named);
  const auto same = std::ranges::unique(named);
  named.erase(same.begin(), same.end());
  const auto open = std::ranges::count_if(named, [](int fd) { return fcntl(fd, F_GETFD) >= 0; });
  return table.st_size - static_cast<std::int64_t>(preserved) - open;
}

std::int64_t Server::lost_files() const {
  std::int64_t lost = 0;
  engine_->for_each_session([&](const SessionView& session) {
    engine_->for_each_file(session.id, [&](const FileView& file) { lost += file.fd < 0 ? 1 : 0; });
  });
  return lost;
}

Result<> Server::build_loop() {
  sd_event* loop = nullptr;
  if (const int r = sd_event_new(&loop); r < 0) return fail(-r, "sd_event_new");
  loop_.reset(loop);
  const auto io = [&](Source& source, int fd, std::uint32_t events, sd_event_io_handler_t handler) -> Result<> {
    sd_event_source* raw = nullptr;
    if (const int r = sd_event_add_io(loop, &raw, fd, events, handler, this); r < 0)
      return fail(-r, "sd_event_add_io({})", fd);
    source.reset(raw);
    return {};
  };
  const auto signal = [&](Source& source, int number, sd_event_signal_handler_t handler) -> Result<> {
    sd_event_source* raw = nullptr;
    if (const int r = sd_event_add_signal(loop, &raw, number, handler, this); r < 0)
      return fail(-r, "sd_event_add_signal({})", number);
    source.reset(raw);
    return {};
  };
  LUO_TRY(io(accept_source_, control_.listen_fd, EPOLLIN, &Callbacks::accept));
  LUO_TRY(io(holder_source_, holders_->fd().raw, EPOLLIN, &Callbacks::holder));
  LUO_TRY(io(wake_source_, wake_fd_.raw(), EPOLLIN, &Callbacks::wake));
  // The loop's timer descriptor is made with its first timer: now, not when there is no memory and one has to wait for
  // it.
  sd_event_source* timer = nullptr;
  if (const int r = sd_event_add_time(loop, &timer, CLOCK_MONOTONIC, UINT64_MAX - 1, 0, &Callbacks::deadline, this);
      r < 0)
    return fail(-r, "sd_event_add_time");
  timer_keeper_.reset(timer);
  LUO_TRY(signal(term_source_, SIGTERM, &Callbacks::stop));
  LUO_TRY(signal(int_source_, SIGINT, &Callbacks::stop));
  // A session whose descriptor was closed is given up before a request of somebody else can see it.
  check_loop(sd_event_source_set_priority(holder_source_.get(), SD_EVENT_PRIORITY_IMPORTANT));

  std::vector<PeerRec*> all;
  state_->for_each_peer([&](PeerRec& peer) { all.push_back(&peer); });
  for (PeerRec* peer : all) LUO_TRY(watch_peer(*peer));
  watch_keeper();
  return {};
}

Result<> Server::start_probe(Request& request, std::uint32_t timeout_ms) {
  probe_ = LUO_TRY(Probe::start(request.fds[0], timeout_ms));
  probe_peer_ = request.peer.id;
  probe_nonce_ = request.header.nonce;
  sd_event_source* raw = nullptr;
  if (const int r = sd_event_add_io(loop_.get(), &raw, probe_->pidfd().raw, EPOLLIN, &Callbacks::probe, this); r < 0) {
    probe_.reset();
    return fail(-r, "watch the new image: sd_event_add_io");
  }
  probe_source_.reset(raw);
  return {};
}

void Server::watch_keeper() {
  const pid_t keeper = control_.keeper_pid.load();
  Result<Fd> pidfd = open_pidfd(keeper);
  const bool related = getppid() == keeper || (pidfd && getpgid(keeper) >= 0);
  if (!pidfd || !related) return on_keeper_died();
  sd_event_source* raw = nullptr;
  const int number = pidfd->release();
  if (check_loop(sd_event_add_io(loop_.get(), &raw, number, EPOLLIN, &Callbacks::keeper, this)) < 0)
    return close_number(number);
  sd_event_source_set_io_fd_own(raw, 1);
  keeper_source_.reset(raw);
}

void Server::add_deadline_source(std::uint64_t at_us) {
  sd_event_source* raw = nullptr;
  if (check_loop(sd_event_add_time(loop_.get(), &raw, CLOCK_MONOTONIC, at_us, 1000, &Callbacks::deadline, this)) >= 0)
    deadline_source_.reset(raw);
}

void Server::on_keeper_died() {
  keeper_source_.reset();
  waitpid(control_.keeper_pid.load(), nullptr, WNOHANG);  // it was our child, if we made it
  if (auto keeper = make_keeper(control_, worker_main_); !keeper) {
    log(Level::Error, "{}; serving on without one",
        std::move(keeper).error().during("the keeper died; make a new one"));
    return;
  }
  log(Level::Warning, "the keeper died; keeper {} takes its place", control_.keeper_pid.load());
  notify_ready();
  watch_keeper();
}

void Server::notify_ready() {
  sd_notifyf(0, "READY=1\nMAINPID=%d\nSTATUS=Serving %llu sessions, %llu files", control_.keeper_pid.load(),
             static_cast<unsigned long long>(engine_->session_count()),
             static_cast<unsigned long long>(engine_->file_count()));
  // For people who look into the lock file, and for a second luod, which names us.
  char text[32];
  const auto end = fmt::format_to_n(text, sizeof text, "{}\n", control_.keeper_pid.load());
  if (pwrite(control_.lock_fd, text, end.size, 0) < 0 || ftruncate(control_.lock_fd, static_cast<off_t>(end.size)) != 0)
    log(Level::Warning, "write the pid into the lock file: {}", errno_text(errno));
}

}  // namespace luo::daemon
