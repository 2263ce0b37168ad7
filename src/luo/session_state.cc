// A session's record: what it says, who holds it, and how it ends.
#include <cctype>

#include "luo/engine_impl.h"

namespace luo {
std::string shown(std::string_view name) {
  std::string text;
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isprint(byte) != 0 && c != '\\' && c != '\'') text += c;
    else text += fmt::format("\\x{:02x}", byte);
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
  SessionView view{SessionId{session.id},
                   std::string{name_of(session)},
                   state,
                   {session.holder[0].uid, session.holder[0].pid},
                   {},
                   0,
                   session.created_ms,
                   Hold::Off,
                   OwnerEvent::None,
                   {},
                   0};
  if (const OptionsRecord* options = options_of(session)) {
    view.hold = static_cast<Hold>(options->hold);
    view.event = event_of(session);
    view.held_for = options->held_for;
    view.carry = options->carry;
  }
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
      if (holds(session, Role::Successor)) clear_holder(change, session, role);  // it lives on as the successor's
      else if (hold_of(session) != Hold::Off) let_go(change, session);
      else end(change, session, Ending::Unpreserve);
      return;
    case SessionState::Retrieved:
      if (session.holder[0].accepted == 0 || hold_of(session) != Hold::Off || unfinishable(session))
        put_back(change, session);
      else end(change, session, Ending::Finish);
      return;
    case SessionState::Finished: end(change, session, Ending::Finish); return;
    case SessionState::Incoming: return;
  }
}

void Engine::Impl::end(Change& change, SessionRecord& session, Ending ending) {
  kho::Tx& tx = change.tx;
  if (state_of(session) != SessionState::Finished) {
    call_ending(tx, session, ending);
    tx.set(side(session).files, side(session).files - session.files.count);
    if (state_of(session) == SessionState::Retrieved) move(tx, session, SessionEvent::Finish);
    if (state_of(session) == SessionState::Incoming) move(tx, session, SessionEvent::Drop);
  }
  const Ref<SessionRecord> ref = arena.ref_of(&session);
  clear_holder(change, session, Role::Owner);
  clear_holder(change, session, Role::Successor);
  LUO_CHECK(table(side(session).names).remove(tx, hash_name(name_of(session)), ref.at));
  LUO_CHECK(table(root->ids).remove(tx, hash(SessionId{session.id}), ref.at));
  list_unlink(arena, tx, side(session).sessions, &session);
  drop_options(tx, session);
  move(tx, session, SessionEvent::Close);
  tx.set(session.called, 1U);
  bury_files(change, session);
}

}  // namespace luo
