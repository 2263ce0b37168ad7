// What happens to all at once: prepare, freeze, cross; and the steps in which the rest is swept.
#include "luo/engine_impl.h"

namespace luo {
namespace {

constexpr std::uint64_t kPerStep = 256;  ///< files, or sessions, that a sweep takes in one transaction
constexpr std::size_t kLogOfFile =
    sizeof(HandlerData) + 1024;  ///< what one file's new data, and the session's, may take

FreezeFailure refusal(std::string name, int code, std::string why) {
  return {std::move(name), Token{}, "", Error{code, std::move(why)}};
}

}  // namespace

void Engine::Impl::unfreeze(SessionRecord& session, Ref<FileRecord> until) noexcept {
  for (Ref<FileRecord> f = session.files.first; f && f != until; f = at(f)->links.next)
    handler_of(*at(f)).unfreeze(kept(*at(f)));
}

void Engine::Impl::cancel(Change& change, SessionRecord& session) noexcept {
  const SessionState state = state_of(session);
  if (!next(state, SessionEvent::Cancel)) return;
  // Back to where its owner had taken it by itself.
  const OwnerEvent event = event_of(session);
  if (state == SessionState::Frozen && event == OwnerEvent::Frozen) return;
  if (state == SessionState::Frozen) unfreeze(session, {});
  move(change.tx, session, SessionEvent::Cancel);
  if (event != OwnerEvent::None) move(change.tx, session, SessionEvent::Prepare);
}

std::optional<FreezeFailure> Engine::Impl::freeze(Change& change, SessionRecord& session) {
  const std::string name{name_of(session)};
  const SessionState state = state_of(session);
  if (state == SessionState::Frozen) return std::nullopt;
  if (!next(state, SessionEvent::Freeze))
    return refusal(name, EINVAL, fmt::format("freeze session '{}': it is {}", shown(name), to_string(state)));
  for (Ref<FileRecord> f = session.files.first; f; f = at(f)->links.next) {
    FileRecord& file = *at(f);
    auto data = handler_of(file).freeze(kept(file));
    if (!data) {
      unfreeze(session, f);
      return FreezeFailure{
          name, Token{file.token}, std::string{handler_of(file).name()},
          std::move(data).error().during(fmt::format("freeze token {} of session '{}'", file.token, shown(name)))};
    }
    if (*data == file.data) continue;
    // The log has room for what changes in some 70,000 files; those that stay as they are need none.
    if (change.tx.room() < kLogOfFile) {
      unfreeze(session, file.links.next);
      return refusal(name, ENOSPC,
                     fmt::format("freeze session '{}': its handlers change more of its {} files than one step can",
                                 shown(name), session.files.count));
    }
    change.tx.set(file.data, *data);
  }
  move(change.tx, session, SessionEvent::Freeze);
  return std::nullopt;
}

Result<> Engine::begin_prepare(Change& change, SessionId id) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "prepare"));
  const SessionState state = impl_->state_of(session);
  if (impl_->event_of(session) != OwnerEvent::None) return {};  // its owner has been there
  if (!next(state, SessionEvent::Prepare))
    return fail(EINVAL, "prepare session '{}': it is {}", shown(impl_->name_of(session)), to_string(state));
  impl_->move(change.tx, session, SessionEvent::Prepare);
  return {};
}

void Engine::cancel_prepare(Change& change, SessionId id) noexcept {
  if (SessionRecord* session = impl_->find(id)) impl_->cancel(change, *session);
}

std::expected<void, FreezeFailure> Engine::freeze_one(Change& change, SessionId id) {
  SessionRecord* session = impl_->find(id);
  if (session == nullptr)
    return std::unexpected(refusal("", EBADF, fmt::format("freeze: session {} does not exist", id.raw())));
  if (auto failure = impl_->freeze(change, *session)) return std::unexpected(std::move(*failure));
  return {};
}

std::expected<void, FreezeFailure> Engine::freeze_all() {
  if (auto failure = impl_->in_the_way_of_held()) return std::unexpected(std::move(*failure));
  std::vector<SessionRecord*> frozen;
  for (SessionRecord* s = impl_->at(impl_->root->outgoing.sessions.first); s != nullptr; s = impl_->at(s->links.next)) {
    if (impl_->state_of(*s) == SessionState::Frozen) continue;
    Change change{impl_->arena};
    auto failure = impl_->freeze(change, *s);
    change.commit();
    if (!failure) {
      frozen.push_back(s);
      continue;
    }
    for (auto done = frozen.rbegin(); done != frozen.rend(); ++done) {
      Change undo{impl_->arena};
      impl_->cancel(undo, **done);
      undo.commit();
    }
    return std::unexpected(std::move(*failure));
  }
  return {};
}

void Engine::unfreeze_all() {
  for (SessionRecord* s = impl_->at(impl_->root->outgoing.sessions.last); s != nullptr; s = impl_->at(s->links.prev)) {
    if (impl_->state_of(*s) != SessionState::Frozen) continue;
    Change undo{impl_->arena};
    impl_->cancel(undo, *s);
    undo.commit();
  }
}

Result<> Engine::cross(Change& change) {
  RootRecord& root = *impl_->root;
  kho::Tx& tx = change.tx;
  if (const FlbsRecord* flbs = impl_->flb_records())
    for (std::uint64_t i = 0; i < flbs->count; ++i)
      if (flbs->flb[i].dropped.state != 0)
        return fail(EBUSY, "cross: what the crossing before has dropped is not swept");
  if (root.frozen != root.outgoing.sessions.count)
    return fail(EBUSY, "cross: only {} of {} outgoing sessions are frozen", root.frozen, root.outgoing.sessions.count);
  list_join(impl_->arena, tx, root.dropped, root.incoming.sessions);
  impl_->table(root.incoming.names).release(tx);
  tx.set(root.incoming, root.outgoing);
  tx.set(root.outgoing, SideRecord{});
  tx.set(root.generation, root.generation + 1);
  tx.set(root.frozen, std::uint64_t{0});
  tx.set(root.stale_holders, std::uint64_t{1});
  impl_->cross_flbs(tx);
  return {};
}

// --- the sweep ----------------------------------------------------------------------------------------

void Engine::sweep() { impl_->sweep(); }

void Engine::Impl::sweep() {
  while (sweep_doomed()) {}
  while (sweep_dropped()) {}
  while (sweep_holders()) {}
}

/// Files of sessions that have ended or are finished. Each step: LIFO, one transaction.
bool Engine::Impl::sweep_doomed() {
  SessionRecord* session = at(root->doomed);
  if (session == nullptr) return false;
  Change change{arena};
  remove_files(change, *session, kPerStep);
  if (session->files.count == 0) {
    change.tx.set(root->doomed, session->next_doomed);
    change.tx.set(session->next_doomed, Ref<SessionRecord>{});
    change.tx.set(session->doomed, 0U);
    if (session->state == static_cast<std::uint32_t>(kGone)) change.tx.release(arena.ref_of(session));
  }
  change.commit();
  return true;
}

/// Sessions that nobody claimed on their side, and those whose receivers went away with it.
bool Engine::Impl::sweep_dropped() {
  SessionRecord* session = at(root->dropped.last);
  if (session == nullptr) return false;
  if (hold_of(*session) != Hold::Off && static_cast<SessionState>(session->state) != SessionState::Finished &&
      session->called == 0)
    return keep_held(*session);
  Change change{arena};
  if (session->called == 0) {
    FlbRelease flbs_of{*this, change.tx, FlbSide::Dropped};
    for (const FileRecord* f = at(session->files.last); f != nullptr; f = at(f->links.prev)) {
      handler_of(*f).finish(kept(*f), f->status_of >> 32 == session->generation + 1 && f->status > 0);
      flbs_of.file(*f);
    }
    change.tx.set(session->called, 1U);
  }
  remove_files(change, *session, kPerStep);
  if (session->files.count == 0) {
    const Ref<SessionRecord> ref = arena.ref_of(session);
    clear_holder(change, *session, Role::Owner);
    clear_holder(change, *session, Role::Successor);
    LUO_CHECK(table(root->ids).remove(change.tx, hash(SessionId{session->id}), ref.at));
    list_unlink(arena, change.tx, root->dropped, session);
    drop_options(change.tx, *session);
    change.tx.release(ref);
  }
  change.commit();
  return true;
}

/// A held one waits on, incoming. False: there is no memory for its name; it stays where nothing is lost, and
/// the next sweep tries again.
bool Engine::Impl::keep_held(SessionRecord& session) {
  Change change{arena};
  kho::Tx& tx = change.tx;
  const Ref<SessionRecord> ref = arena.ref_of(&session);
  if (!table(root->incoming.names).reserve(tx)) return false;
  clear_holder(change, session, Role::Owner);
  clear_holder(change, session, Role::Successor);
  list_unlink(arena, tx, root->dropped, &session);
  LUO_CHECK(static_cast<SessionState>(session.state) == SessionState::Frozen ||
            next(static_cast<SessionState>(session.state), SessionEvent::Keep));
  tx.set(session.state, static_cast<std::uint32_t>(SessionState::Incoming));
  tx.set(session.generation, root->generation - 1);
  tx.set(session.epoch, session.epoch + 1);
  table(root->incoming.names).insert(tx, hash_name(name_of(session)), ref.at);
  list_append(arena, tx, root->incoming.sessions, &session);
  tx.set(root->incoming.files, root->incoming.files + session.files.count);
  change.commit();
  return true;
}

/// Write ends that crossed with their sessions: their readers are gone.
bool Engine::Impl::sweep_holders() {
  if (root->stale_holders == 0) return false;
  std::uint64_t n = 0;
  SessionRecord* session = at(root->incoming.sessions.first);
  while (session != nullptr) {
    Change change{arena};
    for (n = 0; session != nullptr && n < kPerStep; session = at(session->links.next)) {
      for (const Role role : {Role::Owner, Role::Successor}) {
        const HolderRecord& holder = session->holder[index(role)];
        if (holder.generation == root->generation || (holder.write_fd < 0 && holder.inode == 0)) continue;
        clear_holder(change, *session, role);
        ++n;
      }
    }
    change.commit();
  }
  Change change{arena};
  change.tx.set(root->stale_holders, std::uint64_t{0});
  change.commit();
  return false;
}

void Engine::append_fds(std::vector<int>& out) const {
  const auto add_files = [&](const SessionRecord& session) {
    for (const FileRecord* f = impl_->at(session.files.first); f != nullptr; f = impl_->at(f->links.next))
      if (f->fd >= 0) out.push_back(f->fd);
  };
  const auto add = [&](const ListRecord<SessionRecord>& sessions) {
    for (const SessionRecord* s = impl_->at(sessions.first); s != nullptr; s = impl_->at(s->links.next)) {
      for (const HolderRecord& holder : s->holder) {
        if (holder.write_fd >= 0) out.push_back(holder.write_fd);
        if (holder.read_fd >= 0) out.push_back(holder.read_fd);
      }
      add_files(*s);
    }
  };
  add(impl_->root->outgoing.sessions);
  add(impl_->root->incoming.sessions);
  add(impl_->root->dropped);
  for (const SessionRecord* s = impl_->at(impl_->root->doomed); s != nullptr; s = impl_->at(s->next_doomed))
    if (s->state == static_cast<std::uint32_t>(kGone)) add_files(*s);
}

}  // namespace luo
