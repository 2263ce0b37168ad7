// What all updates have in common: who may ask, who is told, verdicts, deadlines, how it ended.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "daemon/server.h"
#include "sys/pipe.h"

namespace luo::daemon {
namespace {

constexpr auto is(Phase phase) { return static_cast<std::uint32_t>(phase); }
constexpr std::size_t kMostEvents = 64;  // queued for a peer that does not read

constexpr auto is(wire::UpdateKind kind) { return static_cast<std::uint32_t>(kind); }

double ms_between(std::uint64_t from_ns, std::uint64_t to_ns) {
  return from_ns == 0 || to_ns < from_ns ? 0 : static_cast<double>(to_ns - from_ns) / 1e6;
}

}  // namespace

Result<> Server::may_administer(const Request& request) const {
  if (request.peer.uid == 0 || request.peer.uid == geteuid()) return {};
  return fail(EACCES, "only root or uid {}, as whom luod runs, may do this; uid {} asked", geteuid(), request.peer.uid);
}

Result<Next> Server::subscribe(Request& request, Reply& reply, Change& change) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::PlainArg>(request.payload));
  if (arg.reserved > 1) return fail(EINVAL, "subscribe: {} is neither 0 nor 1", arg.reserved);
  change.tx.set(request.peer.subscribed, arg.reserved);
  recheck_due_ = true;
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), arg.reserved});
  return Next::Answer;
}

bool Server::concerns(const UpdateRec& update, const PeerRec& peer) const {
  if (peer.subscribed == 0) return false;
  if (wire::takes_everything(update.kind)) return true;
  const GrantRec* grant = state_->find_grant(peer.id, update.session);
  return grant != nullptr && grant->role == static_cast<std::uint32_t>(Role::Owner);
}

bool Server::all_ready(const UpdateRec& update) const {
  bool ready = true;
  state_->for_each_peer(
      [&](PeerRec& peer) { ready = ready && (!concerns(update, peer) || peer.prepared == update.id); });
  return ready;
}

Result<Next> Server::prepared(Request& request, Reply& reply, Change& change) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::VerdictArg>(request.payload));
  if (arg.refused > 1) return fail(EINVAL, "verdict {} is neither 0 nor 1", arg.refused);
  UpdateRec* update = state_->find_update(arg.update);
  if (update == nullptr || update->over()) return fail(ECANCELED, "update {} is over", arg.update);
  if (!concerns(*update, request.peer)) return fail(EINVAL, "update {} does not concern this connection", arg.update);
  reply.put(arg);
  if (arg.refused != 0) {
    const std::string_view reason = wire::text_in(arg.reason);
    fail_update(change, *update,
                Error{EBUSY, fmt::format("{} (pid {}) refused: {}", request.peer.name, request.peer.pid,
                                         reason.empty() ? "no reason given" : reason)});
    return Next::Answer;
  }
  change.tx.set(request.peer.prepared, update->id);
  if (update->phase != is(Phase::Preparing) || !all_ready(*update)) return Next::Answer;
  if (update->kind == is(wire::UpdateKind::Service)) quiesce(change, *update);
  else cross_due_ = update->id;
  return Next::Answer;
}

void Server::fail_update(Change& change, UpdateRec& update, const Error& error) {
  if (update.kind == is(wire::UpdateKind::Service)) {
    const SessionId id{update.session};
    if (const auto session = engine_->find(id)) {
      if (session->holder[1].write_fd >= 0) {
        holders_->forget(session->holder[1].write_fd);
        engine_->abandon_successor(change, id);
      }
      const auto after = engine_->find(id);
      if (after && (after->state == SessionState::Preparing || after->state == SessionState::Frozen))
        engine_->cancel_prepare(change, id);
    }
    state_->drop_some_grants_of_session(
        change, id, [](const GrantRec& grant) { return grant.role == static_cast<std::uint32_t>(Role::Successor); });
  } else {
    unfreeze_due_ = true;
  }
  change.tx.save(&update, sizeof update);
  update.phase = is(Phase::Failed);
  update.error = error.code;
  update.end_ns = monotonic_ns();
  wire::put_text(update.text, error.what);
  outcomes_due_ = true;
  if (error.code != 0) log(Level::Warning, "update {} of {} is off: {}", update.id, update.name, error);
  else log(Level::Notice, "update {} of {}: {}", update.id, update.name, error.what);
}

void Server::tell_prepare(const UpdateRec& update, std::uint64_t only_peer) {
  const std::uint64_t now = monotonic_ns();
  wire::PrepareEvent event{
      .size = sizeof event,
      .kind = update.kind,
      .update = update.id,
      .deadline_ms = update.deadline_ns > now ? static_cast<std::uint32_t>((update.deadline_ns - now) / 1'000'000) : 0,
      .reserved = 0};
  std::vector<std::uint64_t> concerned;
  state_->for_each_peer([&](PeerRec& peer) {
    if (concerns(update, peer) && peer.prepared != update.id && (only_peer == 0 || peer.id == only_peer))
      concerned.push_back(peer.id);
  });
  for (const std::uint64_t id : concerned)
    send_event(id, wire::Event::Prepare, std::as_bytes(std::span{&event, 1}), update.session);
}

void Server::tell_outcomes() {
  std::vector<UpdateRec*> ended;
  state_->for_each_update([&](UpdateRec& update) {
    if (update.over() && update.notified == 0 && std::ranges::find(told_, update.id) == told_.end())
      ended.push_back(&update);
  });
  for (UpdateRec* update : ended) {
    wire::EndEvent event{.size = sizeof event, .error = update->error, .update = update->id, .text = {}};
    wire::put_text(event.text, wire::text_in(update->text));
    const bool done = update->phase == is(Phase::Done);
    std::vector<std::uint64_t> concerned;
    state_->for_each_peer([&](PeerRec& peer) {
      const GrantRec* grant = state_->find_grant(peer.id, update->session);
      const bool former = grant != nullptr && grant->role == kFormerOwner;
      if (done ? former && peer.subscribed != 0 : update->prepare_ns != 0 && concerns(*update, peer))
        concerned.push_back(peer.id);
    });
    bool all_sent = true;
    for (const std::uint64_t id : concerned)
      all_sent &= send_event(id, done ? wire::Event::HandedOver : wire::Event::Resumed,
                             std::as_bytes(std::span{&event, 1}), update->session);
    if (!all_sent) {
      told_.push_back(update->id);  // recorded when the queues are empty; a next worker would tell again
      continue;
    }
    Change change{arena_};
    change.tx.set(update->notified, 1);
    change.commit();
    for (bool more = true; more;) {
      Change step{arena_};
      more = state_->drop_some_grants_of_session(step, SessionId{update->session},
                                                 [](const GrantRec& grant) { return grant.role == kFormerOwner; });
      step.commit();
    }
  }
}

void Server::events_drained() {
  if (told_.empty() || std::ranges::any_of(peers_, [](const auto& entry) { return !entry.second.events.empty(); }))
    return;
  for (const std::uint64_t id : std::exchange(told_, {})) {
    UpdateRec* update = state_->find_update(id);
    if (update == nullptr) continue;
    Change change{arena_};
    change.tx.set(update->notified, 1);
    change.commit();
  }
}

/// Who has just subscribed, or got hold of the session, is told as well; who has gone is not waited for.
void Server::recheck_preparing() {
  std::vector<std::uint64_t> preparing;
  state_->for_each_update([&](UpdateRec& update) {
    if (update.phase == is(Phase::Preparing)) preparing.push_back(update.id);
  });
  for (const std::uint64_t id : preparing) {
    UpdateRec* update = state_->find_update(id);
    if (update == nullptr || update->phase != is(Phase::Preparing)) continue;
    if (!all_ready(*update)) {
      tell_prepare(*update);  // who was told already knows it by its id
    } else if (wire::takes_everything(update->kind)) {
      cross_due_ = id;
    } else {
      Change change{arena_};
      quiesce(change, *update);
      change.commit();
    }
  }
}

/// What a crossing that is off, or that a killed worker had begun, has frozen.
void Server::unfreeze_leftovers() {
  if (engine_->frozen_count() == 0 || (control_.leaving.load() != 0 && is_kernel_update_running())) return;
  std::vector<SessionId> frozen;
  engine_->for_each_session([&](const SessionView& session) {
    if (session.state == SessionState::Frozen && state_->running_update_of(session.id) == nullptr)
      frozen.push_back(session.id);
  });
  for (const SessionId id : frozen) {
    Change change{arena_};
    engine_->cancel_prepare(change, id);
    change.commit();
  }
}

bool Server::send_event(std::uint64_t id, wire::Event event, std::span<const std::byte> body, std::uint64_t session) {
  const auto found = peers_.find(id);
  PeerRec* record = state_->find_peer(id);
  if (found == peers_.end() || record == nullptr) return true;
  wire::Builder builder;
  builder.start(static_cast<std::uint32_t>(event), 0, session).add_bytes(body);
  const auto bytes = builder.bytes();
  const bool was_blocked = found->second.blocked;
  int code = EAGAIN;
  if (!was_blocked) {
    const auto sent = send(FdRef::borrow(record->fd), bytes, {}, MSG_DONTWAIT);
    if (sent || !is_for_later(sent.error().code)) return true;  // or it is gone: the loop will see that
    code = sent.error().code;
  }
  if (found->second.events.size() >= kMostEvents) {
    sd_event_source_set_io_events(found->second.io.get(), EPOLLOUT);
    shutdown(record->fd, SHUT_RDWR);  // it has not read for many updates; the loop drops it
    return true;
  }
  found->second.events.emplace_back(bytes.begin(), bytes.end());
  if (!was_blocked) wait_to_send(found->second, code);
  return false;
}

void Server::after_commit() {
  settle_closed();
  settle_medium();
  engine_->settle_flbs();
  while (outcomes_due_ || recheck_due_ || unfreeze_due_ || cross_due_ != 0) {
    if (std::exchange(unfreeze_due_, false)) {
      unfreeze_leftovers();
      displace_late_files();
    }
    if (std::exchange(recheck_due_, false)) recheck_preparing();
    if (std::exchange(outcomes_due_, false)) {
      tell_outcomes();
      wake_parked();
      arm_deadlines();
    }
    if (const std::uint64_t id = std::exchange(cross_due_, 0); id != 0)
      if (UpdateRec* update = state_->find_update(id); update != nullptr && !update->over()) {
        if (update->kind == is(wire::UpdateKind::Kernel)) cross_kernel(*update);
        else cross_everything(*update);
      }
  }
}

Result<Next> Server::update_wait(Request& request, Reply& reply, Change&) {
  auto arg = LUO_TRY(wire::parse_arg<wire::UpdateArg>(request.payload));
  const UpdateRec* update = state_->find_update(arg.id);
  if (update == nullptr) return fail(ENOENT, "no update {} is known", arg.id);
  if (!update->over()) {
    request.parked_until_ns = UINT64_MAX;
    return Next::Park;
  }
  attach_report(reply, update_report(*update));
  if (update->phase == is(Phase::Failed)) reply.error = Error{update->error, std::string{wire::text_in(update->text)}};
  else reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::update_cancel(Request& request, Reply& reply, Change& change) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::UpdateArg>(request.payload));
  UpdateRec* update = state_->find_update(arg.id);
  if (update == nullptr || update->over()) return fail(ENOENT, "no running update {}", arg.id);
  if (update->requester != request.peer.id) LUO_TRY(may_administer(request));
  const std::string_view why = wire::text_in(arg.text);
  fail_update(change, *update, Error{ECANCELED, std::string{why.empty() ? "called off by the operator" : why}});
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::stop(Request& request, Reply& reply, Change&) {
  LUO_TRY(may_administer(request));
  control_.stopping.store(1);
  sd_event_exit(loop_.get(), 0);
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

void Server::update_lost_peer(std::uint64_t peer) {
  std::vector<std::uint64_t> running;
  state_->for_each_update([&](UpdateRec& update) {
    if (!update.over()) running.push_back(update.id);
  });
  for (const std::uint64_t id : running) {
    UpdateRec* update = state_->find_update(id);
    if (update == nullptr || update->over()) continue;
    if (wire::takes_everything(update->kind)) {
      if (update->phase == is(Phase::Preparing) && all_ready(*update)) cross_due_ = id;
      continue;
    }
    const auto session = engine_->find(SessionId{update->session});
    if (update->successor == peer && update->phase == is(Phase::Offered)) {
      Change change{arena_};
      fail_update(change, *update,
                  Error{ECONNABORTED, "the successor closed its connection before it asked for the session"});
      change.commit();
      continue;
    }
    if (update->phase != is(Phase::Preparing) || !session) continue;
    bool listens = false;
    state_->for_each_peer([&](PeerRec& other) { listens = listens || concerns(*update, other); });
    if (listens) continue;
    // Nobody is left who could get ready. If the owner is dead, its successor takes what it left. If it is not
    // (yet: a dying process's descriptors close one after another), the close or the deadline decides.
    const int owner = session->holder[0].write_fd;
    if (owner >= 0 && reader_gone(owner)) {
      on_holder_closed(owner);
    } else if (owner < 0) {
      Change change{arena_};
      quiesce(change, *update);
      change.commit();
    }
  }
  after_commit();
}

void Server::update_lost_holder(SessionId id, Role role) {
  UpdateRec* update = state_->running_update_of(id);
  if (update == nullptr) return;
  Change change{arena_};
  if (role == Role::Successor)
    fail_update(change, *update,
                Error{ECONNABORTED, "the successor gave the session up (or died) before it had taken over"});
  else if (!engine_->find(id))
    fail_update(change, *update, Error{ESTALE, "the owner of the session died before a successor had it"});
  else if (update->phase == is(Phase::Preparing))
    quiesce(change, *update);  // the owner is dead: what it left is the successor's
  change.commit();
  after_commit();
}

/// After a crossing, connections of the side before hold nothing any more; after a kill in between, the
/// next worker finds them still there.
void Server::drop_stale_grants() {
  std::vector<std::uint64_t> stale;
  const auto find_stale = [&](const SessionView& session) {
    if (session.state != SessionState::Incoming) return;
    state_->for_each_grant(session.id, [&](GrantRec& grant) { stale.push_back(grant.peer); });
  };
  if (engine_->incoming_count() != 0) engine_->for_each_session(find_stale);
  // So are those that had got ready for it, with sessions or without.
  state_->for_each_peer([&](PeerRec& peer) {
    const UpdateRec* update = peer.prepared != 0 ? state_->find_update(peer.prepared) : nullptr;
    if (update != nullptr && update->kind == is(wire::UpdateKind::Simulated) && update->phase == is(Phase::Done))
      stale.push_back(peer.id);
  });
  for (const std::uint64_t id : stale) drop_peer(id, "its sessions have crossed");
}

void Server::arm_deadlines() {
  std::uint64_t next = UINT64_MAX;
  state_->for_each_update([&](UpdateRec& update) {
    if (!update.over() && update.deadline_ns != 0) next = std::min(next, update.deadline_ns);
  });
  for (const auto& [id, peer] : peers_)
    if (peer.parked && peer.parked_until_ns != 0) next = std::min(next, peer.parked_until_ns);
  if (probe_) next = std::min(next, probe_->deadline_ns());
  if (next == UINT64_MAX) return deadline_source_.reset();
  if (deadline_source_) {
    sd_event_source_set_time(deadline_source_.get(), next / 1000 + 1);
    sd_event_source_set_enabled(deadline_source_.get(), SD_EVENT_ONESHOT);
    return;
  }
  add_deadline_source(next / 1000 + 1);
}

void Server::on_deadline() {
  const std::uint64_t now = monotonic_ns();
  std::vector<std::uint64_t> late;
  state_->for_each_update([&](UpdateRec& update) {
    if (!update.over() && update.deadline_ns != 0 && update.deadline_ns <= now) late.push_back(update.id);
  });
  for (const std::uint64_t id : late) {
    UpdateRec& update = *state_->find_update(id);
    if (still_leaving(update)) continue;
    std::string who;
    state_->for_each_peer([&](PeerRec& peer) {
      if (update.phase == is(Phase::Preparing) && concerns(update, peer) && peer.prepared != update.id)
        who += fmt::format("{}{} (pid {})", who.empty() ? "" : ", ", peer.name, peer.pid);
    });
    std::string why = "the time allowed for the update is over";
    if (update.phase == is(Phase::Offered) || update.phase == is(Phase::Warming))
      why = "the successor did not get warm in time";
    if (!who.empty()) why = "not ready in time: " + who;
    if (update.phase == is(Phase::Quiesced)) why = "the successor did not complete the handover in time";
    if (control_.leaving.load() != 0) why = "systemd was asked for the kexec, and is not at it";
    Change change{arena_};
    fail_update(change, update, Error{ETIMEDOUT, why});
    change.commit();
  }
  after_commit();
  wake_parked();
  arm_deadlines();
}

std::string Server::update_report(const UpdateRec& update) {
  const bool ok = update.phase == is(Phase::Done);
  if (update.kind == is(wire::UpdateKind::Kernel)) return kernel_update_report(update);
  const std::string_view kind = update.kind == is(wire::UpdateKind::Service) ? "service" : "simulated";
  nlohmann::json json = {{"ok", ok},
                         {"id", update.id},
                         {"kind", kind},
                         {"phase", to_string(static_cast<Phase>(update.phase))},
                         {"pause_ms", ok ? ms_between(update.quiesced_ns, update.end_ns) : 0.0},
                         {"sessions", update.sessions},
                         {"files", update.files},
                         {"phases",
                          {{"start_and_warm_ms", ms_between(update.begin_ns, update.prepare_ns)},
                           {"prepare_ms", ms_between(update.prepare_ns, update.quiesced_ns)},
                           {"handover_ms", ms_between(update.quiesced_ns, update.end_ns)}}}};
  if (update.kind == is(wire::UpdateKind::Service)) {
    json["session"] = wire::text_in(update.name);
    json["owner_pid"] = update.owner_pid;
    json["successor_pid"] = update.successor_pid;
  }
  json["error"] = update.error != 0 ? to_string(Error{update.error, std::string{wire::text_in(update.text)}}) : "";
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace luo::daemon
