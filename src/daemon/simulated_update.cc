// `luoctl update simulated`: what a kexec does to everyone, without one. Holders are gone, what was
// outgoing is incoming, what was incoming and unclaimed is dropped.
#include "base/log.h"
#include "daemon/server.h"

namespace luo::daemon {
namespace {

constexpr std::uint32_t kDefaultTimeoutMs = 60'000;
constexpr auto is(Phase phase) { return static_cast<std::uint32_t>(phase); }

}  // namespace

Result<Next> Server::update_simulated(Request& request, Reply& reply, Change& change) {
  LUO_TRY(may_administer(request));
  const auto arg = LUO_TRY(wire::parse_arg<wire::UpdateArg>(request.payload));
  UpdateRec* mine = nullptr;
  UpdateRec* other = nullptr;
  state_->for_each_update([&](UpdateRec& update) {
    const bool simulated = update.kind == static_cast<std::uint32_t>(wire::UpdateKind::Simulated);
    if (simulated && update.requester == request.peer.id && update.ticket == request.header.nonce) mine = &update;
    else if (!update.over()) other = &update;
  });
  if (mine != nullptr && mine->over()) {
    attach_report(reply, update_report(*mine));
    if (mine->phase == is(Phase::Failed)) reply.error = Error{mine->error, std::string{wire::text_in(mine->text)}};
    else reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
    return Next::Answer;
  }
  request.parked_until_ns = UINT64_MAX;
  if (mine != nullptr) {
    if (all_ready(*mine)) cross_due_ = mine->id;  // after a crash between the last verdict and the crossing
    return Next::Park;
  }
  if (other != nullptr) return fail(EBUSY, "update {} of '{}' is under way", other->id, wire::text_in(other->name));

  UpdateRec& update = *LUO_TRY(state_->add_update(change));
  update.kind = static_cast<std::uint32_t>(wire::UpdateKind::Simulated);
  wire::put_text(update.name, "everything");
  return begin_crossing(request, change, update, arg.timeout_ms);
}

/// Commits a new update in which all cross, and tells everybody; its request waits for the end.
Next Server::begin_crossing(Request& request, Change& change, UpdateRec& update, std::uint32_t timeout_ms) {
  update.phase = is(Phase::Preparing);
  update.requester = request.peer.id;
  update.ticket = request.header.nonce;
  update.begin_ns = update.prepare_ns = monotonic_ns();
  update.deadline_ns = update.begin_ns + std::uint64_t{timeout_ms != 0 ? timeout_ms : kDefaultTimeoutMs} * 1'000'000;
  change.commit();
  request.stepped = true;
  tell_prepare(update);
  arm_deadlines();
  if (all_ready(update)) cross_due_ = update.id;
  return Next::Park;
}

void Server::cross_everything(UpdateRec& update) {
  const std::uint64_t quiesced = monotonic_ns();
  const std::uint64_t sessions = engine_->session_count(), files = engine_->file_count();
  if (auto frozen = engine_->freeze_all(); !frozen) {
    const FreezeFailure& failure = frozen.error();
    Change change{arena_};
    fail_update(change, update,
                Error{failure.error.code,
                      fmt::format("freeze of token {} in session '{}' by handler {}: {}", failure.token.raw(),
                                  failure.session, failure.handler, failure.error.what)});
    change.commit();
    return;
  }
  {
    Change change{arena_};
    if (auto crossed = engine_->cross(change); !crossed) {
      change.tx.abort();
      engine_->unfreeze_all();
      Change undo{arena_};
      fail_update(undo, update, crossed.error());
      undo.commit();
      return;
    }
    change.tx.save(&update, sizeof update);
    update.phase = is(Phase::Done);
    update.quiesced_ns = quiesced;
    update.end_ns = monotonic_ns();
    update.sessions = sessions;
    update.files = files;
    change.commit();
  }
  log(Level::Notice, "simulated update: {} sessions with {} files crossed", sessions, files);
  // The programs of the side before are gone, as after a kexec; those that run outside `luoctl run` find
  // their connection and their session descriptors closed.
  std::vector<std::uint64_t> gone;
  state_->for_each_peer([&](PeerRec& peer) {
    if (peer.subscribed != 0) gone.push_back(peer.id);
  });
  for (const std::uint64_t id : gone) drop_peer(id, "everything has crossed");
  engine_->sweep();  // what is held comes back into view
  drop_stale_grants();
  outcomes_due_ = true;
}

}  // namespace luo::daemon
