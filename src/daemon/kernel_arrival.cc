// The kernel medium in a worker: what it is made of, and what came over a kexec.
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <unordered_set>

#include "base/log.h"
#include "daemon/crossing_clock.h"
#include "daemon/fetch_state.h"
#include "daemon/server.h"
#include "sys/cycles.h"
#include "sys/process.h"

namespace luo::daemon {

Result<> Server::open_medium() {
  device_.emplace(FdRef::borrow(control_.device_fd));
  const auto files = [this](std::uint64_t group, const medium::Visit& visit) {
    const auto of = [&](SessionId id) {
      engine_->for_each_file(id, [&](const FileView& file) {
        const medium::Place place = handlers::CarriedHandler::place_of(file.data);
        if (place.part != 0 && file.fd >= 0) visit(place, file.fd);
      });
    };
    if (group != medium::kShared) return of(SessionId{group});
    engine_->for_each_session([&](const SessionView& session) { of(session.id); });
  };
  kernel_.emplace(LUO_TRY_DURING("read the arena", medium::Kernel::open(arena_, *device_, files)));
  return {};
}

handlers::CarriedHandler* Server::carried(std::string_view handler) const {
  for (const auto& one : carried_)
    if (one->name() == handler) return one.get();
  return nullptr;
}

/// What the last step has done in the kernel, and what it has not done after all.
void Server::settle_medium() {
  if (!kernel_ || !engine_) return;
  kernel_->settle();
  if (auto reserved = kernel_->reserve(); !reserved) log(Level::Warning, "{}", reserved.error());
}

namespace {

/// The luod before may have had a higher limit, and what does not fit under ours cannot be taken in.
void raise_descriptor_limit(pid_t keeper, std::uint64_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_max >= wanted) return;
  const rlimit higher{wanted, wanted};
  if (prlimit(keeper, RLIMIT_NOFILE, &higher, nullptr) != 0 || setrlimit(RLIMIT_NOFILE, &higher) != 0)
    log(Level::Error,
        "what comes from the kernel before takes some {} descriptors, and RLIMIT_NOFILE is {}: {}; "
        "`prlimit --pid {} --nofile={}` as root helps, and what does not fit stays in the kernel until then",
        wanted, limit.rlim_max, errno_text(errno), keeper, wanted);
}

/// It may be had later: the arrival is tried again as a whole, so that nothing is taken for lost. What the kernel says
/// about a file it says for good, so for want of memory only a few times.
bool may_come_later(int code, std::uint32_t deaths) noexcept {
  constexpr std::uint32_t kMostTries = 8;
  return code == EMFILE || ((code == ENFILE || code == ENOMEM) && deaths < kMostTries);
}

}  // namespace

/// Nothing is asked of the kernel if all of it cannot be had: once luod has a kernel session, ending luod gives that
/// up.
Result<> Server::expect_room_for_files() const {
  constexpr std::uint64_t kOwn = 32;
  std::uint64_t files = 0;
  std::unordered_set<std::uint32_t> parts;  // each open until all has been brought
  engine_->for_each_session([&](const SessionView& session) {
    if (!crosses_kernels(session)) return;
    engine_->for_each_file(session.id, [&](const FileView& file) {
      const medium::Place place = handlers::CarriedHandler::place_of(file.data);
      if (!kernel_->holds(place)) return;
      ++files;
      parts.insert(place.part);
    });
  });
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || files + parts.size() + kOwn <= limit.rlim_max) return {};
  return fail(EMFILE, "{} files from {} kernel sessions are to be brought, and RLIMIT_NOFILE is {}", files,
              parts.size(), limit.rlim_max);
}

Result<> Server::arrive() {
  const std::uint64_t began = monotonic_ns();
  constexpr std::uint64_t kOthers = 1024;
  raise_descriptor_limit(control_.keeper_pid.load(), engine_->file_count() + kernel_->counts().files + kOthers);
  LUO_TRY_DURING("take in what the kernel before left", expect_room_for_files());
  kernel_->arrive();
  for (Handler* handler : registry_.all()) handler->set_flbs(*engine_);
  std::uint64_t files = 0, lost = 0, left = 0;
  const auto bring = [&](const SessionView& session, const FileView& file) {
    handlers::CarriedHandler* handler = carried(file.handler);
    Engine::Arrival arrival = handler != nullptr ? handler->bring(session, file) : Engine::Arrival{.gone = true};
    if (arrival.fd < 0 && may_come_later(arrival.error, control_.early_deaths.load())) arrival.later = true;
    ++(arrival.fd >= 0 ? files : arrival.gone ? left : lost);
    return arrival;
  };
  LUO_TRY_DURING("take in what the kernel before left", engine_->arrive(bring));
  state_->arrive();

  const auto clock = kernel_->clock();
  const Since since = time_since({clock[0], clock[1], clock[2], clock[3]});
  state_->for_each_update([&](UpdateRec& update) {
    if (update.over()) return;
    Change change{arena_};
    change.tx.save(&update, sizeof update);
    if (update.kind == static_cast<std::uint32_t>(wire::UpdateKind::Kernel)) {
      update.phase = static_cast<std::uint32_t>(Phase::Done);
      update.clock = static_cast<std::uint32_t>(since.join);
      update.end_ns = clock[0] + since.ns;  // on the clock of the kernel before
      const std::uint64_t up = boot_clock_ns();
      update.booted_ns = since.ns > up ? update.end_ns - up : clock[0];
    } else {
      update.phase = static_cast<std::uint32_t>(Phase::Failed);
      update.error = ECANCELED;
      update.end_ns = clock[0];
      wire::put_text(update.text, "the kernel was replaced meanwhile");
    }
    update.notified = 1;  // nobody of that side is here
    change.commit();
  });
  control_.arrival.store(static_cast<std::uint32_t>(Arrival::Over));
  log(lost != 0 ? Level::Error : Level::Notice,
      "arrived: {} sessions, {} files from the kernel before, {} left behind as their sessions allow, {} lost; "
      "restored in "
      "{:.3f} ms, {:.3f} ms after the kernel before was left",
      engine_->incoming_count(), files, left, lost, static_cast<double>(monotonic_ns() - began) / 1e6,
      static_cast<double>(since.ns) / 1e6);
  return {};
}

/// What arrived is committed: the kernel gets its sessions back. After a kill in between, the next worker goes on.
void Server::end_arrival() {
  if (!kernel_->arriving() && control_.own_fd < 0) return;
  forget_saved_state(control_);  // first: what it names is not in the kernel any more after this
  if (kernel_->arriving()) kernel_->end_arrival();
  if (control_.own_fd >= 0) close_number(std::exchange(control_.own_fd, -1));
}

/// Who may have copies of the descriptors of kernel sessions, so that ours is not the last close: the old worker after
/// an update of luod, until it has ended, and a program that is asked what it is, until it runs.
void Server::wait_for_copies() {
  constexpr int kMostMs = 10'000;
  if (probe_) probe_->wait_until_it_runs();
  if (std::exchange(copies_gone_, true)) return;
  const pid_t guard = control_.trial_guard_pid;
  if (guard <= 0 || guard == getpid() || guard == control_.keeper_pid.load()) return;
  const auto ended = open_pidfd(guard);
  std::string name;
  std::getline(std::ifstream{fmt::format("/proc/{}/comm", guard)} >> std::ws, name);
  if (!ended || name != "luod-worker") return;  // somebody else's number by now
  pollfd one{ended->raw(), POLLIN, 0};
  int n = 0;
  while ((n = poll(&one, 1, kMostMs)) < 0 && errno == EINTR) {}
  if (n == 0) log(Level::Warning, "the old luod, pid {}, has not ended after {} ms; going on", guard, kMostMs);
}

}  // namespace luo::daemon
