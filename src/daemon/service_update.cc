// `luoctl update service S -- CMD`: a session passes from its owner to a successor.
//
//   luoctl                 owner                 luod                  successor
//     UPDATE_SERVICE  ───────────────────────→  Offered {ticket}
//     starts CMD with the ticket  ──────────────────────────────────→  HELLO {ticket}
//                                               Warming   ←──────────  RETRIEVE_SESSION, RETRIEVE_FD...
//                            ←── PREPARE ─────  Preparing ←──────────  TAKE_OVER (waits)
//                          stops; READY ─────→  Quiesced  ──────────→  (answered)
//                            ←─ HANDED_OVER ──  Done      ←──────────  RENEW
//   UPDATE_WAIT ←─────────────────────────────
//
// Until RENEW is committed, the successor's death, a refusal or a deadline gives the session back.
#include <sys/random.h>

#include "base/log.h"
#include "daemon/server.h"

namespace luo::daemon {
namespace {

constexpr std::uint32_t kDefaultTimeoutMs = 120'000;
constexpr auto is(Phase phase) { return static_cast<std::uint32_t>(phase); }

}  // namespace

Result<Next> Server::update_service(Request& request, Reply& reply, Change& change) {
  auto arg = LUO_TRY(wire::parse_arg<wire::UpdateArg>(request.payload));
  const std::string name{wire::text_in(arg.name)};
  const auto id = engine_->find_outgoing(name);
  if (!id) return fail(ENOENT, "update service '{}': no outgoing session has this name (see luoctl list)", name);
  const auto session = *engine_->find(*id);
  if (request.peer.uid != session.owner.uid) LUO_TRY(may_administer(request));
  if (const UpdateRec* other = state_->running_update_of(*id))
    return fail(EBUSY, "update service '{}': update {} of it is {}", name, other->id,
                to_string(static_cast<Phase>(other->phase)));
  bool crossing = false;
  state_->for_each_update(
      [&](const UpdateRec& other) { crossing = crossing || (wire::takes_everything(other.kind) && !other.over()); });
  if (crossing) return fail(EBUSY, "update service '{}': everything is about to cross in a simulated update", name);
  UpdateRec& update = *LUO_TRY(state_->add_update(change));
  update.kind = static_cast<std::uint32_t>(wire::UpdateKind::Service);
  update.session = id->raw();
  while (update.ticket == 0)
    if (getrandom(&update.ticket, sizeof update.ticket, 0) != sizeof update.ticket) return sys_fail("getrandom");
  update.requester = request.peer.id;
  update.begin_ns = monotonic_ns();
  update.deadline_ns =
      update.begin_ns + std::uint64_t{arg.timeout_ms != 0 ? arg.timeout_ms : kDefaultTimeoutMs} * 1'000'000;
  update.owner_pid = session.owner.pid;
  update.sessions = 1;
  wire::put_text(update.name, name);
  arg.id = update.id;
  arg.ticket = update.ticket;
  arg.owner_pid = session.owner.pid;
  reply.put(arg);
  outcomes_due_ = true;  // arms its deadline
  return Next::Answer;
}

Result<Next> Server::take_over(Request& request, Reply& reply, Change& change) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::WaitArg>(request.payload));
  UpdateRec* update = request.peer.update != 0 ? state_->find_update(request.peer.update) : nullptr;
  if (update == nullptr)
    return fail(EINVAL, "take over: this process was not started as a successor (see luoctl update service)");
  if (update->phase == is(Phase::Failed))
    return fail(ECANCELED, "take over session '{}': the update is off: {}", wire::text_in(update->name),
                wire::text_in(update->text));
  if (update->session != request.header.session)
    return fail(EINVAL, "take over: another session than '{}'", wire::text_in(update->name));
  const auto step = static_cast<Phase>(update->phase);
  if (step == Phase::Offered || step == Phase::Done)
    return fail(EINVAL, "take over session '{}': {}", wire::text_in(update->name),
                step == Phase::Done ? "it was taken over already" : "retrieve it first");

  if (request.parked_until_ns == 0)
    request.parked_until_ns =
        arg.timeout_ms == UINT32_MAX ? UINT64_MAX : monotonic_ns() + std::uint64_t{arg.timeout_ms} * 1'000'000;
  if (step == Phase::Warming) {
    LUO_TRY(engine_->begin_prepare(change, SessionId{update->session}));
    change.tx.set(update->prepare_ns, monotonic_ns());
    change.tx.set(update->phase, is(Phase::Preparing));
    bool listens = false;
    state_->for_each_peer([&](PeerRec& peer) { listens = listens || concerns(*update, peer); });
    if (listens) {
      change.commit();
      request.stepped = true;
      tell_prepare(*update);
      return Next::Park;
    }
    quiesce(change, *update);  // an owner that knows only the kernel's interface, or that is dead
    if (update->phase == is(Phase::Failed))
      reply.error = Error{ECANCELED, fmt::format("take over: {}", wire::text_in(update->text))};
    else reply.put(arg);
    return Next::Answer;
  }
  if (update->phase == is(Phase::Quiesced)) {
    reply.put(arg);
    return Next::Answer;
  }
  if (monotonic_ns() >= request.parked_until_ns) {
    fail_update(change, *update, Error{ETIMEDOUT, "the successor waited too long for the owner to get ready"});
    reply.error = Error{ETIMEDOUT, "take over: the owner did not get ready in time"};
    return Next::Answer;
  }
  return Next::Park;
}

void Server::quiesce(Change& change, UpdateRec& update) {
  const SessionId id{update.session};
  if (auto frozen = engine_->freeze_one(change, id); !frozen) {
    const FreezeFailure& failure = frozen.error();
    fail_update(change, update,
                Error{failure.error.code,
                      fmt::format("freeze of token {} in session '{}' by handler {}: {}", failure.token.raw(),
                                  failure.session, failure.handler, failure.error.what)});
    return;
  }
  change.tx.save(&update, sizeof update);
  update.phase = is(Phase::Quiesced);
  update.quiesced_ns = monotonic_ns();
  if (const auto session = engine_->find(id)) update.files = session->files;
  outcomes_due_ = true;
}

void Server::complete_handover(Change& change, UpdateRec& update, const SessionView& before) {
  if (before.holder[0].write_fd >= 0) holders_->forget(before.holder[0].write_fd);
  holders_->set_role(before.holder[1].write_fd, Role::Owner);
  state_->for_each_grant(before.id, [&](GrantRec& grant) {
    const bool successor = grant.role == static_cast<std::uint32_t>(Role::Successor);
    change.tx.set(grant.role, successor ? static_cast<std::uint32_t>(Role::Owner) : kFormerOwner);
  });
  change.tx.save(&update, sizeof update);
  update.phase = is(Phase::Done);
  update.end_ns = monotonic_ns();
  outcomes_due_ = true;
  log(Level::Notice, "session '{}' went from pid {} to pid {} in {:.3f} ms", before.name, update.owner_pid,
      update.successor_pid, static_cast<double>(update.end_ns - update.quiesced_ns) / 1e6);
}

}  // namespace luo::daemon
