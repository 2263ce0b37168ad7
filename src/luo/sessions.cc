// Sessions: who has them, and how they come and go.
#include "luo/engine_impl.h"

#include <algorithm>
#include <cctype>

namespace luo {
namespace {

constexpr unsigned index(Role role) noexcept { return role == Role::Owner ? 0 : 1; }
constexpr HolderRecord kNobody{-1, -1, 0, 0, 0, 0, 0, 0, 0};

/// The kernel's rule: 1 to 63 bytes, any but NUL, NUL-terminated.
Result<std::string_view> parse_name(std::span<const char, 64> raw) {
  const auto end = std::find(raw.begin(), raw.end(), '\0');
  if (end == raw.begin()) return fail(EINVAL, "session name: empty");
  if (end == raw.end()) return fail(EINVAL, "session name: 64 bytes without a NUL");
  return std::string_view{raw.data(), static_cast<std::size_t>(end - raw.begin())};
}

}  // namespace

std::string shown(std::string_view name) {
  std::string text;
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isprint(byte) != 0 && c != '\\' && c != '\'')
      text += c;
    else
      text += fmt::format("\\x{:02x}", byte);
  }
  return text;
}

std::string_view to_string(SessionState state) noexcept {
  switch (state) {
    case SessionState::Outgoing: return "outgoing";
    case SessionState::Preparing: return "preparing";
    case SessionState::Frozen: return "frozen";
    case SessionState::Incoming: return "incoming";
    case SessionState::Retrieved: return "retrieved";
    case SessionState::Finished: return "finished";
  }
  return "gone";
}

// --- what a record says -------------------------------------------------------------------------------

Side Engine::Impl::side_of(const SessionRecord& session) const noexcept {
  if (session.generation == root->generation) return Side::Outgoing;
  return session.generation + 1 == root->generation ? Side::Incoming : Side::Dropped;
}

SideRecord& Engine::Impl::side(const SessionRecord& session) const noexcept {
  return side_of(session) == Side::Outgoing ? root->outgoing : root->incoming;
}

/// Crossing rewrites no record: what was frozen on the side before is incoming on this one.
SessionState Engine::Impl::state_of(const SessionRecord& session) const noexcept {
  const auto state = static_cast<SessionState>(session.state);
  if (side_of(session) == Side::Incoming && state == SessionState::Frozen) return *next(state, SessionEvent::Cross);
  return state;
}

bool Engine::Impl::is_dead(const SessionRecord& session) const noexcept {
  const auto state = static_cast<SessionState>(session.state);
  return side_of(session) == Side::Dropped || state == kGone || state == SessionState::Finished;
}

std::string_view Engine::Impl::name_of(const SessionRecord& session) noexcept {
  return {session.name, strnlen(session.name, sizeof session.name)};
}

SessionRecord* Engine::Impl::find(SessionId id) const noexcept {
  const Ref<SessionRecord> ref{table(root->ids).find(
      hash(id), [&](std::uint64_t found) { return at(Ref<SessionRecord>{found})->id == id.raw(); })};
  SessionRecord* session = at(ref);
  return session != nullptr && side_of(*session) != Side::Dropped ? session : nullptr;
}

Result<SessionRecord*> Engine::Impl::need(SessionId id, std::string_view what) const {
  SessionRecord* session = find(id);
  if (session == nullptr) return fail(EBADF, "{}: session {} does not exist", what, id.raw());
  return session;
}

SessionRecord* Engine::Impl::find_name(SideRecord& on, std::string_view name) const noexcept {
  const Ref<SessionRecord> ref{table(on.names).find(
      hash_name(name), [&](std::uint64_t found) { return name_of(*at(Ref<SessionRecord>{found})) == name; })};
  return at(ref);
}

bool Engine::Impl::holds(const SessionRecord& session, Role role) const noexcept {
  const HolderRecord& holder = session.holder[index(role)];
  return holder.write_fd >= 0 && holder.generation == root->generation;
}

SessionView Engine::Impl::view(const SessionRecord& session) const {
  const SessionState state = state_of(session);
  SessionView view{SessionId{session.id}, std::string{name_of(session)}, state,
                   {session.holder[0].uid, session.holder[0].pid}, {}, 0, session.created_ms};
  if (state != SessionState::Finished) view.files = session.files.count;
  for (const Role role : {Role::Owner, Role::Successor}) {
    if (!holds(session, role)) continue;
    const HolderRecord& holder = session.holder[index(role)];
    view.holder[index(role)] = {holder.write_fd, holder.read_fd, holder.inode, holder.accepted != 0,
                                PeerId{holder.peer}};
  }
  return view;
}

// --- changes of a record ------------------------------------------------------------------------------

void Engine::Impl::move(kho::Tx& tx, SessionRecord& session, SessionEvent on) noexcept {
  const SessionState from = state_of(session);
  const auto to = next(from, on);
  LUO_CHECK(to.has_value());
  if (from == SessionState::Frozen) tx.set(root->frozen, root->frozen - 1);
  if (*to == SessionState::Frozen) tx.set(root->frozen, root->frozen + 1);
  tx.set(session.state, static_cast<std::uint32_t>(*to));
}

void Engine::Impl::set_holder(Change& change, SessionRecord& session, Role role, const Holder& holder,
                              OwnerInfo owner) noexcept {
  clear_holder(change, session, role);
  change.tx.set(session.holder[index(role)],
                HolderRecord{holder.write_fd, holder.read_fd, holder.inode, holder.peer.raw(), root->generation,
                             holder.accepted ? 1U : 0U, owner.uid, owner.pid, 0});
  if (holder.inode != 0) table(root->inodes).insert(change.tx, hash(holder.inode), arena.ref_of(&session).at);
}

/// Whoever it was stays visible in uid and pid.
void Engine::Impl::clear_holder(Change& change, SessionRecord& session, Role role) noexcept {
  HolderRecord& holder = session.holder[index(role)];
  if (holder.write_fd < 0 && holder.inode == 0) return;
  if (holder.write_fd >= 0) change.close_later(holder.write_fd);
  if (holder.read_fd >= 0) change.close_later(holder.read_fd);
  if (holder.inode != 0) table(root->inodes).remove(change.tx, hash(holder.inode), arena.ref_of(&session).at);
  HolderRecord nobody = kNobody;
  nobody.uid = holder.uid;
  nobody.pid = holder.pid;
  change.tx.set(holder, nobody);
}

bool Engine::Impl::close_if_dead(Change& change, Ref<SessionRecord> ref) {
  SessionRecord& session = *at(ref);
  const SessionId id{session.id};
  bool closed = false;
  for (const Role role : {Role::Successor, Role::Owner}) {
    SessionRecord* now = find(id);
    if (now == nullptr || !holds(*now, role) || !is_closed(now->holder[index(role)].write_fd)) continue;
    holder_closed(change, *now, role);
    closed = true;
  }
  return closed;
}

void Engine::Impl::put_back(Change& change, SessionRecord& session) noexcept {
  move(change.tx, session, SessionEvent::PutBack);
  clear_holder(change, session, Role::Owner);
}

void Engine::Impl::holder_closed(Change& change, SessionRecord& session, Role role) {
  if (role == Role::Successor) {
    if (holds(session, role)) abandon_successor(change, session);
    return;
  }
  if (!holds(session, role)) return;
  switch (state_of(session)) {
    case SessionState::Outgoing:
    case SessionState::Preparing:
    case SessionState::Frozen:
      if (holds(session, Role::Successor))
        clear_holder(change, session, role);  // it lives on as the successor's
      else
        end(change, session, Ending::Unpreserve);
      return;
    case SessionState::Retrieved:
      if (session.holder[0].accepted == 0 || unfinishable(session))
        put_back(change, session);
      else
        end(change, session, Ending::Finish);
      return;
    case SessionState::Finished: end(change, session, Ending::Finish); return;
    case SessionState::Incoming: return;
  }
}

void Engine::Impl::end(Change& change, SessionRecord& session, Ending ending) {
  kho::Tx& tx = change.tx;
  if (state_of(session) != SessionState::Finished) {
    call_ending(session, ending);
    tx.set(side(session).files, side(session).files - session.files.count);
    if (state_of(session) == SessionState::Retrieved) move(tx, session, SessionEvent::Finish);
  }
  const Ref<SessionRecord> ref = arena.ref_of(&session);
  clear_holder(change, session, Role::Owner);
  clear_holder(change, session, Role::Successor);
  LUO_CHECK(table(side(session).names).remove(tx, hash_name(name_of(session)), ref.at));
  LUO_CHECK(table(root->ids).remove(tx, hash(SessionId{session.id}), ref.at));
  list_unlink(arena, tx, side(session).sessions, &session);
  move(tx, session, SessionEvent::Close);
  tx.set(session.called, 1U);
  bury_files(change, session);
}

// --- the operations -----------------------------------------------------------------------------------

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
    return fail(EEXIST, "create session '{}': there is an outgoing session of that name already", shown(name));
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
  if (session == nullptr) return fail(ENOENT, "retrieve session '{}': no incoming session has that name", shown(name));
  const SessionState state = state_of(*session);
  if (!next(state, SessionEvent::Retrieve)) {
    in_the_way = arena.ref_of(session);
    return fail(EINVAL, "retrieve session '{}': it was retrieved already, by process {}", shown(name),
                session->holder[0].pid);
  }
  LUO_TRY(reserve_holder(change.tx));
  move(change.tx, *session, SessionEvent::Retrieve);
  clear_holder(change, *session, Role::Successor);  // of the side before, if not yet swept
  set_holder(change, *session, Role::Owner, holder, owner);
  return SessionId{session->id};
}

Result<> Engine::Impl::renew(Change& change, SessionRecord& session, InTheWay& in_the_way) {
  const std::string_view name = name_of(session);
  if (!next(state_of(session), SessionEvent::Renew))
    return fail(EINVAL, "renew session '{}': it is {}, not retrieved", shown(name), to_string(state_of(session)));
  if (const SessionRecord* other = find_name(root->outgoing, name)) {
    in_the_way = arena.ref_of(other);
    return fail(EEXIST, "renew session '{}': there is an outgoing session of that name already", shown(name));
  }
  kho::Tx& tx = change.tx;
  LUO_TRY(table(root->outgoing.names).reserve(tx));
  const Ref<SessionRecord> ref = arena.ref_of(&session);
  const std::uint64_t files = session.files.count;
  LUO_CHECK(table(root->incoming.names).remove(tx, hash_name(name), ref.at));
  list_unlink(arena, tx, root->incoming.sessions, &session);
  tx.set(root->incoming.files, root->incoming.files - files);
  move(tx, session, SessionEvent::Renew);
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
    end(change, session, Ending::Unpreserve);
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

std::uint64_t Engine::session_count() const noexcept {
  return impl_->root->outgoing.sessions.count + impl_->root->incoming.sessions.count;
}
std::uint64_t Engine::file_count() const noexcept { return impl_->root->outgoing.files + impl_->root->incoming.files; }
std::uint64_t Engine::generation() const noexcept { return impl_->root->generation; }

}  // namespace luo
