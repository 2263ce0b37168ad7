// Sessions: made, handed out, retrieved, renewed, passed on.
#include "luo/engine_impl.h"

#include <algorithm>

namespace luo {
namespace {

/// The kernel's rule: 1 to 63 bytes, any but NUL, NUL-terminated.
Result<std::string_view> parse_name(std::span<const char, 64> raw) {
  const auto end = std::find(raw.begin(), raw.end(), '\0');
  if (end == raw.begin()) return fail(EINVAL, "session name: empty");
  if (end == raw.end()) return fail(EINVAL, "session name: 64 bytes without a NUL");
  return std::string_view{raw.data(), static_cast<std::size_t>(end - raw.begin())};
}

}  // namespace

Result<SessionId> Engine::Impl::create(Change& change, std::string_view name, const Holder& holder, OwnerInfo owner,
                                       std::uint64_t now_ms, InTheWay& in_the_way) {
  kho::Tx& tx = change.tx;
  LUO_TRY(table(root->outgoing.names).reserve(tx));
  LUO_TRY(table(root->ids).reserve(tx));
  LUO_TRY(reserve_holder(tx));
  Step step{change};
  const Ref<SessionRecord> ref = LUO_TRY(tx.make<SessionRecord>());
  if (const SessionRecord* other = find_name(root->outgoing, name)) {
    in_the_way = arena.ref_of(other);
    return fail(EEXIST, "create session '{}': there is an outgoing session of that name already{}", shown(name),
                holds(*other, Role::Owner) ? "" : ", held for its next owner: retrieve it, or `luoctl drop` it");
  }
  SessionRecord& session = *at(ref);
  session.magic = kSessionMagic;
  session.id = root->next_session;
  session.generation = root->generation;
  session.state = static_cast<std::uint32_t>(SessionState::Outgoing);
  session.created_ms = now_ms;
  session.holder[0] = session.holder[1] = kNobody;
  name.copy(session.name, sizeof session.name - 1);
  tx.set(root->next_session, root->next_session + 1);
  set_holder(change, session, Role::Owner, holder, owner);
  table(root->outgoing.names).insert(tx, hash_name(name), ref.at);
  table(root->ids).insert(tx, hash(SessionId{session.id}), ref.at);
  list_append(arena, tx, root->outgoing.sessions, &session);
  step.keep();
  return SessionId{session.id};
}

Result<SessionId> Engine::Impl::retrieve_session(Change& change, std::string_view name, const Holder& holder,
                                                 OwnerInfo owner, InTheWay& in_the_way) {
  SessionRecord* session = find_name(root->incoming, name);
  const bool regained = session == nullptr;  // never left this side
  if (regained) session = find_name(root->outgoing, name);
  if (session == nullptr || (regained && hold_of(*session) == Hold::Off))
    return fail(ENOENT, "retrieve session '{}': no incoming session has that name, and none that is held", shown(name));
  const SessionState state = state_of(*session);
  if (regained ? holds(*session, Role::Owner) || holds(*session, Role::Successor)
               : !next(state, SessionEvent::Retrieve)) {
    in_the_way = arena.ref_of(session);
    return fail(EINVAL, "retrieve session '{}': it was retrieved already, by process {}", shown(name),
                session->holder[0].pid);
  }
  LUO_TRY(reserve_holder(change.tx));
  if (!regained) move(change.tx, *session, SessionEvent::Retrieve);
  clear_holder(change, *session, Role::Successor);  // of the side before, if not yet swept
  set_holder(change, *session, Role::Owner, holder, owner);
  return SessionId{session->id};
}

Result<> Engine::Impl::renew(Change& change, SessionRecord& session, InTheWay& in_the_way) {
  const std::string_view name = name_of(session);
  if (takes_files(state_of(session)) && hold_of(session) != Hold::Off) return {};
  if (!next(state_of(session), SessionEvent::Renew))
    return fail(EINVAL, "renew session '{}': it is {}, not retrieved", shown(name), to_string(state_of(session)));
  if (const SessionRecord* other = find_name(root->outgoing, name)) {
    in_the_way = arena.ref_of(other);
    return fail(EEXIST, "renew session '{}': there is an outgoing session of that name already", shown(name));
  }
  kho::Tx& tx = change.tx;
  LUO_TRY(table(root->outgoing.names).reserve(tx));
  LUO_TRY(renew_flbs(tx, session));
  const Ref<SessionRecord> ref = arena.ref_of(&session);
  const std::uint64_t files = session.files.count;
  LUO_CHECK(table(root->incoming.names).remove(tx, hash_name(name), ref.at));
  list_unlink(arena, tx, root->incoming.sessions, &session);
  tx.set(root->incoming.files, root->incoming.files - files);
  move(tx, session, SessionEvent::Renew);
  set_event(tx, session, OwnerEvent::None);
  tx.set(session.generation, root->generation);
  tx.set(session.epoch, session.epoch + 1);
  table(root->outgoing.names).insert(tx, hash_name(name), ref.at);
  list_append(arena, tx, root->outgoing.sessions, &session);
  tx.set(root->outgoing.files, root->outgoing.files + files);
  return {};
}

/// The successor becomes the owner; the old owner's capability closes.
void Engine::Impl::take_over_session(Change& change, SessionRecord& session) noexcept {
  if (state_of(session) == SessionState::Frozen) unfreeze(session, {});
  move(change.tx, session, SessionEvent::TakeOver);
  set_event(change.tx, session, OwnerEvent::None);
  clear_holder(change, session, Role::Owner);
  change.tx.set(session.holder[0], session.holder[1]);
  change.tx.set(session.holder[1], kNobody);
  change.tx.set(session.epoch, session.epoch + 1);
}

Result<> Engine::Impl::add_successor(Change& change, SessionRecord& session, const Holder& holder, OwnerInfo owner,
                                     InTheWay& in_the_way) {
  const std::string name = shown(name_of(session));
  if (!is_outgoing(state_of(session)))
    return fail(EINVAL, "add a successor to session '{}': it is {}, not outgoing", name, to_string(state_of(session)));
  if (holds(session, Role::Successor)) {
    in_the_way = arena.ref_of(&session);
    return fail(EBUSY, "add a successor to session '{}': it has one already, process {}", name, session.holder[1].pid);
  }
  LUO_TRY(reserve_holder(change.tx));
  set_holder(change, session, Role::Successor, holder, owner);
  return {};
}

void Engine::Impl::abandon_successor(Change& change, SessionRecord& session) {
  if (!is_outgoing(state_of(session))) return;
  if (!holds(session, Role::Owner)) {
    if (hold_of(session) != Hold::Off) let_go(change, session);
    else end(change, session, Ending::Unpreserve);
    return;
  }
  clear_holder(change, session, Role::Successor);
  change.tx.set(session.epoch, session.epoch + 1);
  cancel(change, session);
}

// --- the interface ------------------------------------------------------------------------------------

Result<SessionId> Engine::create_session(Change& change, std::span<const char, 64> raw_name, const Holder& holder,
                                         OwnerInfo owner, std::uint64_t now_ms) {
  const std::string_view name = LUO_TRY_DURING("create session", parse_name(raw_name));
  return impl_->despite_the_dead(change, [&](Impl::InTheWay& in_the_way) {
    return impl_->create(change, name, holder, owner, now_ms, in_the_way);
  });
}

Result<SessionId> Engine::retrieve_session(Change& change, std::span<const char, 64> raw_name, const Holder& holder,
                                           OwnerInfo owner) {
  const auto name = parse_name(raw_name);  // the kernel does not judge it: such a name just is not there
  if (!name) return fail(ENOENT, "retrieve session: {}: no incoming session has that name", name.error().what);
  return impl_->despite_the_dead(change, [&](Impl::InTheWay& in_the_way) {
    return impl_->retrieve_session(change, *name, holder, owner, in_the_way);
  });
}

void Engine::sent(Change& change, SessionId id, Role role) noexcept {
  SessionRecord* session = impl_->find(id);
  if (session == nullptr || !impl_->holds(*session, role)) return;
  HolderRecord& holder = session->holder[index(role)];
  if (holder.read_fd < 0) return;
  change.close_later(holder.read_fd);
  change.tx.set(holder.read_fd, -1);
}

Result<> Engine::accept(Change& change, SessionId id, Role role) {
  SessionRecord* session = impl_->find(id);
  if (session == nullptr || !impl_->holds(*session, role))
    return fail(ENOENT, "accept session {}: it does not exist, or was not handed out", id.raw());
  HolderRecord& holder = session->holder[index(role)];
  if (holder.accepted == 0) change.tx.set(holder.accepted, 1U);
  return {};
}

void Engine::holder_closed(Change& change, SessionId id, Role role) {
  if (SessionRecord* session = impl_->find(id)) impl_->holder_closed(change, *session, role);
}

Result<> Engine::renew(Change& change, SessionId id, Role role) {
  SessionRecord* session = LUO_TRY(impl_->need(id, "renew"));
  if (role == Role::Owner) {
    return impl_->despite_the_dead(
        change, [&](Impl::InTheWay& in_the_way) { return impl_->renew(change, *session, in_the_way); });
  }
  const std::string name = shown(impl_->name_of(*session));
  if (!impl_->holds(*session, role)) return fail(EINVAL, "take session '{}' over: it has no successor", name);
  if (impl_->state_of(*session) != SessionState::Frozen && impl_->holds(*session, Role::Owner))
    return fail(EINVAL, "take session '{}' over: it is {}, its owner has not let go of it", name,
                to_string(impl_->state_of(*session)));
  impl_->take_over_session(change, *session);
  return {};
}

Result<> Engine::add_successor(Change& change, SessionId id, const Holder& holder, OwnerInfo owner) {
  SessionRecord* session = LUO_TRY(impl_->need(id, "add a successor"));
  return impl_->despite_the_dead(change, [&](Impl::InTheWay& in_the_way) -> Result<> {
    if (impl_->find(id) != session) return fail(EBADF, "add a successor: session {} has ended", id.raw());
    return impl_->add_successor(change, *session, holder, owner, in_the_way);
  });
}

void Engine::abandon_successor(Change& change, SessionId id) {
  SessionRecord* session = impl_->find(id);
  if (session != nullptr && impl_->holds(*session, Role::Successor)) impl_->abandon_successor(change, *session);
}

std::optional<SessionView> Engine::find(SessionId id) const {
  const SessionRecord* session = impl_->find(id);
  if (session == nullptr) return std::nullopt;
  return impl_->view(*session);
}

std::optional<SessionId> Engine::find_outgoing(std::string_view name) const {
  const SessionRecord* session = impl_->find_name(impl_->root->outgoing, name);
  return session == nullptr ? std::nullopt : std::optional{SessionId{session->id}};
}

std::optional<SessionId> Engine::find_incoming(std::string_view name) const {
  const SessionRecord* session = impl_->find_name(impl_->root->incoming, name);
  return session == nullptr ? std::nullopt : std::optional{SessionId{session->id}};
}

std::optional<Engine::InodeHit> Engine::find_by_inode(std::uint64_t inode) const {
  std::optional<InodeHit> hit;
  impl_->table(impl_->root->inodes).find(impl_->hash(inode), [&](std::uint64_t ref) {
    const SessionRecord& session = *impl_->at(Ref<SessionRecord>{ref});
    for (const Role role : {Role::Owner, Role::Successor})
      if (session.holder[index(role)].inode == inode && impl_->holds(session, role))
        hit = InodeHit{SessionId{session.id}, role};
    return hit.has_value();
  });
  return hit;
}

void Engine::for_each_session(const std::function<void(const SessionView&)>& visit) const {
  for (const SideRecord* on : {&impl_->root->incoming, &impl_->root->outgoing})
    for (const SessionRecord* s = impl_->at(on->sessions.first); s != nullptr; s = impl_->at(s->links.next))
      visit(impl_->view(*s));
}

void Engine::for_each_holder(const std::function<void(SessionId, Role, int, int)>& visit) const {
  for (const SideRecord* on : {&impl_->root->incoming, &impl_->root->outgoing})
    for (const SessionRecord* s = impl_->at(on->sessions.first); s != nullptr; s = impl_->at(s->links.next))
      for (const Role role : {Role::Owner, Role::Successor})
        if (impl_->holds(*s, role))
          visit(SessionId{s->id}, role, s->holder[index(role)].write_fd, s->holder[index(role)].read_fd);
}

std::uint64_t Engine::frozen_count() const noexcept { return impl_->root->frozen; }
std::uint64_t Engine::incoming_count() const noexcept { return impl_->root->incoming.sessions.count; }
std::uint64_t Engine::session_count() const noexcept {
  return impl_->root->outgoing.sessions.count + impl_->root->incoming.sessions.count;
}
std::uint64_t Engine::file_count() const noexcept { return impl_->root->outgoing.files + impl_->root->incoming.files; }
std::uint64_t Engine::generation() const noexcept { return impl_->root->generation; }

}  // namespace luo
