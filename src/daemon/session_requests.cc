// Requests about sessions as a whole.
#include <sys/stat.h>

#include <cstring>

#include "daemon/server.h"
#include "sys/pipe.h"

namespace luo::daemon {

/// A fresh pipe for a session about to be handed out; its ends are closed again if that fails.
struct HandedPipe {
  Pipe pipe;
  Holder holder;
};

namespace {

Result<HandedPipe> pipe_for(const PeerRec& peer) {
  HandedPipe made{.pipe = LUO_TRY_DURING("make a session", make_pipe(OverExec::Keep)), .holder = {}};
  struct stat st {};
  if (fstat(made.pipe.write.raw(), &st) != 0) return sys_fail("make a session: fstat");
  made.holder = Holder{.write_fd = made.pipe.write.raw(),
                       .read_fd = made.pipe.read.raw(),
                       .inode = st.st_ino,
                       .accepted = false,
                       .peer = PeerId{peer.id}};
  return made;
}

OwnerInfo owner_of(const PeerRec& peer) { return {peer.uid, peer.pid}; }

/// Reserved fields are checked before anything happens.
Result<> plain(std::span<const std::byte> payload) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::PlainArg>(payload));
  if (arg.reserved != 0) return fail(EINVAL, "reserved is {}, not 0", arg.reserved);
  return {};
}

}  // namespace

Result<Server::Handle> Server::handle_of(const Request& request) const {
  const GrantRec* grant = state_->find_grant(request.peer.id, request.header.session);
  if (grant == nullptr || grant->role == kFormerOwner)
    return fail(EBADF, "no session was presented under handle {}", request.header.session);
  if (const auto busy = pending_.find(grant->session);
      busy != pending_.end() && busy->second != std::pair{request.peer.id, request.header.nonce})
    return fail(EINPROGRESS, "another request on this session is in work");
  auto session = engine_->find(SessionId{grant->session});
  if (!session) return fail(EBADF, "the session of handle {} is gone", request.header.session);
  return Handle{SessionId{grant->session}, static_cast<Role>(grant->role), std::move(*session)};
}

Result<Next> Server::hand_out(Request& request, Reply& reply, Change& change, SessionId id, Role role,
                              const HandedPipe& made) {
  LUO_TRY(holders_->add(made.holder.write_fd, id, role));
  LUO_TRY(state_->add_grant(change, request.peer.id, id, role));
  reply.session = id.raw();
  reply.fds.push_back(made.holder.read_fd);
  reply.hand_session = id;
  reply.hand_role = role;
  return Next::Answer;
}

Result<Next> Server::create_session(Request& request, Reply& reply, Change& change) {
  auto arg = LUO_TRY(wire::parse_arg<wire::NameArg>(request.payload));
  HandedPipe made = LUO_TRY(pipe_for(request.peer));
  const SessionId id = LUO_TRY(engine_->create_session(change, std::span<const char, 64>{arg.name}, made.holder,
                                                       owner_of(request.peer), realtime_ms()));
  LUO_TRY(hand_out(request, reply, change, id, Role::Owner, made));
  // Committed with the answer: from then on the arena names them.
  (void)made.pipe.read.release();
  (void)made.pipe.write.release();
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::take_incoming(Request& request, Reply& reply, Change& change, std::span<const char, 64> name) {
  HandedPipe made = LUO_TRY(pipe_for(request.peer));
  SessionId id{};
  Role role = Role::Owner;
  UpdateRec* update = request.peer.update != 0 ? state_->find_update(request.peer.update) : nullptr;
  if (update != nullptr && !update->over() &&
      std::string_view{name.data(), strnlen(name.data(), name.size())} == wire::text_in(update->name)) {
    // A successor gets the session that it succeeds, while its owner still serves.
    id = SessionId{update->session};
    role = Role::Successor;
    if (update->phase != static_cast<std::uint32_t>(Phase::Offered))
      return fail(EINVAL, "the successor has session '{}' already", wire::text_in(update->name));
    LUO_TRY(engine_->add_successor(change, id, made.holder, owner_of(request.peer)));
    change.tx.set(update->phase, static_cast<std::uint32_t>(Phase::Warming));
  } else {
    const std::string_view text{name.data(), strnlen(name.data(), name.size())};
    auto wanted = engine_->find_incoming(text);
    if (!wanted) wanted = engine_->find_outgoing(text);
    if (wanted) LUO_TRY(may_get_back(*engine_->find(*wanted), request.peer));
    id = LUO_TRY(engine_->retrieve_session(change, name, made.holder, owner_of(request.peer)));
  }
  LUO_TRY(hand_out(request, reply, change, id, role, made));
  (void)made.pipe.read.release();
  (void)made.pipe.write.release();
  return Next::Answer;
}

Result<Next> Server::retrieve_session(Request& request, Reply& reply, Change& change) {
  auto arg = LUO_TRY(wire::parse_arg<wire::NameArg>(request.payload));
  LUO_TRY(take_incoming(request, reply, change, std::span<const char, 64>{arg.name}));
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::retrieve_wait(Request& request, Reply& reply, Change& change) {
  auto arg = LUO_TRY(wire::parse_arg<wire::WaitArg>(request.payload));
  if (request.parked_until_ns == 0)
    request.parked_until_ns =
        arg.timeout_ms == UINT32_MAX ? UINT64_MAX : monotonic_ns() + std::uint64_t{arg.timeout_ms} * 1'000'000;
  Result<Next> taken = take_incoming(request, reply, change, std::span<const char, 64>{arg.name});
  // Not there, or in other hands that may let go of it.
  if (!taken && (taken.error().code == ENOENT || taken.error().code == EINVAL)) {
    if (monotonic_ns() < request.parked_until_ns) return Next::Park;
    return fail(ETIMEDOUT, "no incoming session '{}' within {} ms", wire::text_in(arg.name), arg.timeout_ms);
  }
  if (!taken) return taken;
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::accept_session(Request& request, Reply& reply, Change& change) {
  LUO_TRY(plain(request.payload));
  const Handle handle = LUO_TRY(handle_of(request));
  LUO_TRY(engine_->accept(change, handle.id, handle.role));
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

Result<Next> Server::present(Request& request, Reply& reply, Change& change) {
  LUO_TRY(plain(request.payload));
  if (request.header.error != 0)
    return fail(request.header.error, "the client could not send the session's descriptor");
  if (request.fds.size() != 1) return fail(EBADMSG, "PRESENT with {} descriptors", request.fds.size());
  struct stat st {};
  if (fstat(request.fds[0].raw(), &st) != 0) return sys_fail("fstat of the presented descriptor");
  const auto hit = S_ISFIFO(st.st_mode) ? engine_->find_by_inode(st.st_ino) : std::nullopt;
  if (!hit) return fail(EBADF, "the presented descriptor is no session of this luod");
  const auto session = engine_->find(hit->id);
  const Holder& holder = session->holder[hit->role == Role::Owner ? 0 : 1];
  if (!LUO_TRY(same_pipe(holder.write_fd, request.fds[0])))
    return fail(EBADF, "the presented descriptor is no session of this luod");
  LUO_TRY(state_->add_grant(change, request.peer.id, hit->id, hit->role));
  recheck_due_ = true;
  reply.session = hit->id.raw();
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

Result<Next> Server::get_name(Request& request, Reply& reply, Change&) {
  const Handle handle = LUO_TRY(handle_of(request));
  auto arg = LUO_TRY(wire::parse_arg<wire::GetNameArg>(request.payload));
  if (arg.reserved != 0) return fail(EINVAL, "get the name of a session: reserved is {}, not 0", arg.reserved);
  wire::put_text(arg.name, handle.session.name);
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::finish(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  // Direction before size, as in Linux 7.3.
  if (handle.session.state < SessionState::Incoming)
    return fail(EINVAL, "finish session '{}': it is {}, not retrieved", handle.session.name,
                to_string(handle.session.state));
  LUO_TRY(plain(request.payload));
  LUO_TRY(engine_->finish(change, handle.id));
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

Result<Next> Server::renew(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  LUO_TRY(plain(request.payload));
  UpdateRec* update = handle.role == Role::Successor ? state_->running_update_of(handle.id) : nullptr;
  if (handle.role == Role::Successor &&
      (update == nullptr || update->phase != static_cast<std::uint32_t>(Phase::Quiesced)))
    return fail(EBUSY, "renew session '{}': its owner has not quiesced; take over first", handle.session.name);
  LUO_TRY(engine_->renew(change, handle.id, handle.role));
  if (update != nullptr) complete_handover(change, *update, handle.session);
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

}  // namespace luo::daemon
