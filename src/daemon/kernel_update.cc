// `luoctl update kernel`: everybody gets ready, what is still to be given to the kernel is, luod's own state goes into
// a memfd that the kernel has, and the kernel is left. Whatever fails before that is undone, and all go on.
#include <fcntl.h>
#include <linux/reboot.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/text.h"
#include "daemon/crossing_clock.h"
#include "daemon/server.h"
#include "daemon/systemd.h"
#include "kho/image.h"
#include "sys/memfd.h"

namespace luo::daemon {
namespace {

constexpr std::uint64_t kLookAgainNs = 5'000'000'000;  ///< whether systemd is still ending everything
constexpr std::size_t kPerStep = 64;                   ///< files given to the kernel in one transaction
constexpr auto is(Phase phase) { return static_cast<std::uint32_t>(phase); }

double ms(std::uint64_t from, std::uint64_t to) {
  return from == 0 || to < from ? 0 : static_cast<double>(to - from) / 1e6;
}

/// The image's room: freezing may change what handlers remember, and it cannot grow any more then. At its end
/// stands how long the image is, for a luod that does not go by the header.
constexpr std::uint64_t room_for(std::uint64_t image) noexcept {
  return (image + image / 8 + 256 * 1024 + 4095) / 4096 * 4096;
}

}  // namespace

Result<Next> Server::update_kernel(Request& request, Reply& reply, Change& change) {
  LUO_TRY(may_administer(request));
  const auto arg = LUO_TRY(wire::parse_arg<wire::UpdateKernelArg>(request.payload));
  constexpr std::uint32_t kFlags = wire::kUpdateDryRun | wire::kUpdateDropUnclaimed;
  if ((arg.flags & ~kFlags) != 0 || arg.reserved != 0)
    return fail(EINVAL, "update the kernel: flags {:#x}, reserved {}", arg.flags, arg.reserved);
  UpdateRec* mine = nullptr;
  state_->for_each_update([&](UpdateRec& update) {
    if (update.kind == static_cast<std::uint32_t>(wire::UpdateKind::Kernel) && update.requester == request.peer.id &&
        update.ticket == request.header.nonce)
      mine = &update;
  });
  if (mine != nullptr && mine->over()) {
    attach_report(reply, update_report(*mine));
    if (mine->error != 0) reply.error = Error{mine->error, std::string{wire::text_in(mine->text)}};
    else reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
    return Next::Answer;
  }
  request.parked_until_ns = UINT64_MAX;
  if (mine != nullptr) {
    if (control_.leaving.load() == 0 && all_ready(*mine)) cross_due_ = mine->id;
    return Next::Park;
  }
  for (const Check& check : preflight_checks(arg.flags))
    if (check.level == "error")
      return fail(check.name == "medium" ? EOPNOTSUPP : EBUSY, "update the kernel: {}; {}", check.text, check.fix);

  UpdateRec& update = *LUO_TRY(state_->add_update(change));
  update.kind = static_cast<std::uint32_t>(wire::UpdateKind::Kernel);
  update.flags = arg.flags;
  wire::put_text(update.name, "the kernel");
  return begin_crossing(request, change, update, arg.timeout_ms);
}

void Server::cross_kernel(UpdateRec& update) {
  if (control_.leaving.load() != 0) return;  // all is done, by a worker that was killed since
  auto left = leave_kernel(update);
  if (left) return;  // a shutdown is under way
  Change change{arena_};
  fail_update(change, update, left.error());
  change.commit();
}

bool Server::is_kernel_update_running() const {
  bool running = false;
  state_->for_each_update([&](const UpdateRec& update) {
    running = running || (!update.over() && update.kind == static_cast<std::uint32_t>(wire::UpdateKind::Kernel));
  });
  return running;
}

/// Returns only if that failed, or if somebody else is to do the last step.
Result<> Server::leave_kernel(UpdateRec& update) {
  const std::uint64_t ready = monotonic_ns();
  const std::uint64_t sessions = engine_->session_count(), files = engine_->file_count();
  LUO_TRY(place_late_files(update));
  const std::uint64_t preserved = monotonic_ns();

  const Fd image = LUO_TRY(make_memfd("luod-image", 0));
  const std::uint64_t bytes = LUO_TRY(kho::write_image(arena_, image));
  if (ftruncate(image.raw(), static_cast<off_t>(room_for(bytes))) != 0)
    return sys_fail("room for luod's state: ftruncate({})", room_for(bytes));
  LUO_TRY(kernel_->offer_image(image));
  const std::uint64_t offered = monotonic_ns();

  if (auto frozen = engine_->freeze_all(); !frozen) {
    const FreezeFailure& failure = frozen.error();
    return fail(failure.error.code, "freeze of token {} in session '{}' by handler {}: {}", failure.token.raw(),
                failure.session, failure.handler, failure.error.what);
  }
  const CrossingClock clock = clock_before(control_.start_cycles, control_.start_raw_ns);
  const auto words = kernel_->clock();
  words[0] = clock.monotonic_ns;
  words[1] = clock.real_ns;
  words[2] = clock.cycles;
  words[3] = clock.cycles_per_second;
  {
    Change change{arena_};
    change.tx.save(&update, sizeof update);
    update.quiesced_ns = ready;
    update.preserved_ns = preserved;
    update.image_ns = offered;
    update.frozen_ns = clock.monotonic_ns;
    update.sessions = sessions;
    update.files = files;
    update.image_bytes = bytes;
    change.commit();
  }
  LUO_TRY(write_state(image));
  if ((update.flags & wire::kUpdateDryRun) != 0)
    return std::unexpected(Error{0, "a dry run: all was done but the reboot, and everything is as it was"});
  log(Level::Notice, "leaving this kernel with {} sessions and {} files", sessions, files);
  sync();
  if (sd_booted() > 0) return ask_systemd(update);
  reboot(static_cast<int>(LINUX_REBOOT_CMD_KEXEC));
  const int code = errno;
  const std::string_view why = code == EINVAL  ? "no kernel is loaded; `luoctl update kernel --kernel F` loads one"
                               : code == EPERM ? "it takes CAP_SYS_BOOT, which luod has not; run luod as root"
                               : code == EBUSY
                                   ? "another kexec is under way"
                                   : "the kernel refused: what is preserved in it could not be frozen, perhaps";
  return fail(code, "reboot(LINUX_REBOOT_CMD_KEXEC): {}", why);
}

/// What crosses as luod's state: written into what the kernel has already.
Result<> Server::write_state(FdRef image) const {
  const std::uint64_t bytes = LUO_TRY_DURING("store luod's state", kho::write_image(arena_, image, {.in_place = true}));
  struct stat st {};
  if (fstat(image.raw, &st) != 0) return sys_fail("fstat of luod's state");
  const auto end = static_cast<std::uint64_t>(st.st_size) - sizeof bytes;
  if (bytes > end) return fail(ENOSPC, "luod's state has grown over its room of {} bytes; try again", st.st_size);
  if (pwrite(image.raw, &bytes, sizeof bytes, static_cast<off_t>(end)) != sizeof bytes)
    return sys_fail("store the length of luod's state");
  return {};
}

/// It ends all services in order, and then does the kexec, which luod has to see (dist/luod-kernel.conf).
Result<> Server::ask_systemd(UpdateRec& update) {
  const std::uint64_t allowed = update.deadline_ns - update.begin_ns;
  // From here on nothing changes any more, so what was stored stays right, whoever is killed: a next worker takes it
  // over.
  control_.image_fd = kernel_->offered();
  control_.leaving.store(1);
  if (auto begun = begin_kexec(); !begun) {
    control_.leaving.store(0);
    control_.image_fd = 0;
    return begun;
  }
  Change change{arena_};
  change.tx.set(update.deadline_ns, monotonic_ns() + allowed);
  change.commit();
  arm_deadlines();
  return {};
}

/// What systemd has begun cannot be called off here: as long as it is at it, luod holds what the next kernel is to
/// have.
bool Server::still_leaving(UpdateRec& update) {
  if (control_.leaving.load() == 0 || update.kind != static_cast<std::uint32_t>(wire::UpdateKind::Kernel) ||
      !shutdown_goes_on())
    return false;
  Change change{arena_};
  change.tx.set(update.deadline_ns, monotonic_ns() + kLookAgainNs);
  change.commit();
  return true;
}

/// Files that are to grow until now, and those of sessions that were renewed.
Result<> Server::place_late_files(UpdateRec&) {
  struct Late {
    Token token;
    int fd;
    std::string_view handler;
    HandlerData data;
  };
  std::vector<SessionView> sessions;
  engine_->for_each_session([&](const SessionView& session) {
    if (crosses_kernels(session)) sessions.push_back(session);
  });
  // Without it the kernel would look for memory until the machine has none left.
  std::uint64_t holes = 0;
  for (const SessionView& session : sessions)
    engine_->for_each_file(session.id, [&](const FileView& file) {
      if (!kernel_->holds(handlers::CarriedHandler::place_of(file.data))) holes += holes_to_fill(file);
    });
  if (const std::uint64_t memory = available_memory(); memory != 0 && holes > memory)
    return fail(ENOMEM, "the kernel would fill {} MiB of holes in files that it is now to have; {} MiB are available",
                holes >> 20, memory >> 20);
  for (const SessionView& session : sessions) {
    std::vector<Late> late;
    engine_->for_each_file(session.id, [&](const FileView& file) {
      if (!kernel_->holds(handlers::CarriedHandler::place_of(file.data)))
        late.push_back({file.token, file.fd, file.handler, file.data});
    });
    for (std::size_t at = 0; at < late.size();) {
      LUO_TRY(kernel_->reserve());
      Change change{arena_};
      for (std::size_t n = 0; at < late.size() && n < kPerStep; ++n, ++at) {
        handlers::CarriedHandler* handler = carried(late[at].handler);
        if (handler == nullptr) continue;
        auto placed = handler->place_late(session.id, late[at].fd, late[at].data);
        if (!placed)
          return std::unexpected(std::move(placed).error().during(fmt::format(
              "give token {} of session '{}' to the kernel", late[at].token.raw(), printable_name(session.name))));
        if (*placed != late[at].data) LUO_TRY(engine_->set_data(change, session.id, late[at].token, *placed));
      }
      change.commit();
    }
  }
  kernel_->settle();
  LUO_TRY(kernel_->complete());

  // What is about to be left behind for good is counted once more, file by file.
  std::uint64_t placed = 0;
  engine_->for_each_session([&](const SessionView& session) {
    engine_->for_each_file(session.id, [&](const FileView& file) {
      placed += kernel_->holds(handlers::CarriedHandler::place_of(file.data)) ? 1U : 0U;
    });
  });
  const medium::Kernel::Counts counts = kernel_->counts();
  if (counts.files != placed || counts.lacking != 0)
    return fail(EIO, "the kernel has {} files of luod's, and should have {}; nothing was given up", counts.files,
                placed);
  return {};
}

/// They can grow again. Not while an update of the kernel goes on.
void Server::displace_late_files() {
  if (!kernel_ || is_kernel_update_running()) return;
  // Whoever has closed a session meanwhile is seen now.
  if (control_.leaving.exchange(0) != 0) sd_event_source_set_enabled(holder_source_.get(), SD_EVENT_ON);
  control_.image_fd = 0;
  kernel_->withdraw_image();
  if (!kernel_->has_late()) return;
  struct Late {
    SessionId session;
    Token token;
    handlers::CarriedHandler* handler;
    HandlerData data;
  };
  std::vector<Late> late;
  engine_->for_each_session([&](const SessionView& session) {
    engine_->for_each_file(session.id, [&](const FileView& file) {
      if (kernel_->is_late(handlers::CarriedHandler::place_of(file.data)))
        late.push_back({session.id, file.token, carried(file.handler), file.data});
    });
  });
  for (std::size_t at = 0; at < late.size();) {
    Change change{arena_};
    for (std::size_t n = 0; at < late.size() && n < kPerStep; ++n, ++at)
      if (auto done =
              engine_->set_data(change, late[at].session, late[at].token, late[at].handler->displace(late[at].data));
          !done)
        log(Level::Error, "{}", done.error());
    change.commit();
  }
  kernel_->settle();
}

std::string Server::kernel_update_report(const UpdateRec& update) {
  const bool dry = (update.flags & wire::kUpdateDryRun) != 0;
  const bool done = update.phase == is(Phase::Done);
  const bool ok = done || (dry && update.phase == is(Phase::Failed) && update.error == 0);
  nlohmann::json json = {
      {"ok", ok},
      {"id", update.id},
      {"kind", "kernel"},
      {"dry_run", dry},
      {"phase", dry && ok ? "rehearsed" : to_string(static_cast<Phase>(update.phase))},
      {"sessions", update.sessions},
      {"files", update.files},
      {"image_bytes", update.image_bytes},
      {"phases",
       {{"prepare_ms", ms(update.prepare_ns, update.quiesced_ns)},
        {"preserve_ms", ms(update.quiesced_ns, update.preserved_ns)},
        {"image_ms", ms(update.preserved_ns, update.image_ns)},
        {"freeze_ms", ms(update.image_ns, update.frozen_ns)}}},
      {"error", update.error != 0 ? to_string(Error{update.error, std::string{wire::text_in(update.text)}}) : ""}};
  if (done) {
    json["pause_ms"] = json["blackout_ms"] = ms(update.quiesced_ns, update.end_ns);
    json["phases"]["kexec_ms"] = ms(update.frozen_ns, update.booted_ns);
    json["phases"]["boot_and_restore_ms"] = ms(update.booted_ns, update.end_ns);
    const auto clock = static_cast<ClockJoin>(update.clock);
    json["clock"] = clock == ClockJoin::Cycles ? "cycles" : clock == ClockJoin::Real ? "realtime" : "unknown";
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace luo::daemon
