// What few sessions have: that they outlive their holder, how far their owner has taken them by itself, how they
// cross to another kernel.
#include "luo/engine_impl.h"

namespace luo {

std::string_view to_string(Hold hold) noexcept {
  switch (hold) {
    case Hold::Off: return "off";
    case Hold::User: return "user";
    case Hold::Executable: return "executable";
    case Hold::Unit: return "unit";
  }
  return "?";
}

namespace {

/// As a session begins; then it needs no record.
bool says_nothing(const OptionsRecord& options) noexcept {
  return options.hold == 0 && options.event == 0 && options.carry == 0;
}

}  // namespace

OptionsRecord* Engine::Impl::options_of(const SessionRecord& session) const noexcept {
  if (root->options.count == 0) return nullptr;
  const Ref<SessionRecord> ref = arena.ref_of(&session);
  return at(Ref<OptionsRecord>{table(root->options).find(hash_place(ref), [&](std::uint64_t found) {
    return at(Ref<OptionsRecord>{found})->session == ref;
  })});
}

Engine::Impl::Options Engine::Impl::get_options(const SessionRecord& session) const {
  const OptionsRecord* options = options_of(session);
  if (options == nullptr) return {};
  return {static_cast<Hold>(options->hold), event_of(session), options->carry, options->held_for};
}

Result<> Engine::Impl::set_options(kho::Tx& tx, SessionRecord& session, const Options& wanted) {
  OptionsRecord* options = options_of(session);
  if (options == nullptr) {
    LUO_TRY(table(root->options).reserve(tx));
    const Ref<OptionsRecord> ref = LUO_TRY(tx.make<OptionsRecord>());
    options = at(ref);
    options->magic = kOptionsMagic;
    options->session = arena.ref_of(&session);
    table(root->options).insert(tx, hash_place(options->session), ref.at);
  } else {
    tx.save(options, sizeof *options);
  }
  options->hold = static_cast<std::uint32_t>(wanted.hold);
  options->event = static_cast<std::uint16_t>(wanted.event);
  options->carry = wanted.carry;
  std::ranges::fill(options->held_for, '\0');
  wanted.held_for.copy(options->held_for, sizeof options->held_for - 1);
  if (says_nothing(*options)) drop_options(tx, session);
  return {};
}

void Engine::Impl::drop_options(kho::Tx& tx, SessionRecord& session) noexcept {
  const OptionsRecord* options = options_of(session);
  if (options == nullptr) return;
  const Ref<OptionsRecord> ref = arena.ref_of(options);
  LUO_CHECK(table(root->options).remove(tx, hash_place(options->session), ref.at));
  tx.release(ref);
}

void Engine::Impl::set_event(kho::Tx& tx, SessionRecord& session, OwnerEvent event) noexcept {
  OptionsRecord* options = options_of(session);
  if (options == nullptr) return;
  tx.set(options->event, static_cast<std::uint16_t>(event));
  if (says_nothing(*options)) drop_options(tx, session);
}

Hold Engine::Impl::hold_of(const SessionRecord& session) const noexcept {
  const OptionsRecord* options = options_of(session);
  return options == nullptr ? Hold::Off : static_cast<Hold>(options->hold);
}

/// What crossed was frozen by the update, whatever its owner had done before.
OwnerEvent Engine::Impl::event_of(const SessionRecord& session) const noexcept {
  if (side_of(session) != Side::Outgoing) return OwnerEvent::None;
  const OptionsRecord* options = options_of(session);
  return options == nullptr ? OwnerEvent::None : static_cast<OwnerEvent>(options->event);
}

void Engine::Impl::let_go(Change& change, SessionRecord& session) noexcept {
  clear_holder(change, session, Role::Successor);
  clear_holder(change, session, Role::Owner);
  change.tx.set(session.epoch, session.epoch + 1);
  set_event(change.tx, session, OwnerEvent::None);
  cancel(change, session);
}

std::optional<FreezeFailure> Engine::Impl::in_the_way_of_held() const {
  if (root->options.count == 0) return std::nullopt;
  for (const SessionRecord* s = at(root->incoming.sessions.first); s != nullptr; s = at(s->links.next)) {
    if (hold_of(*s) == Hold::Off || state_of(*s) == SessionState::Finished) continue;
    const std::string name{name_of(*s)};
    for (const FileRecord* f = at(s->files.first); root->flbs && f != nullptr; f = at(f->links.next)) {
      if (held_by(f->handler) == 0) continue;
      return FreezeFailure{name, Token{f->token}, std::string{handler_of(*f).name()},
                           Error{EBUSY, fmt::format("the session '{}' that came in is held, and shares state that came "
                                                    "with it; it has to be finished, renewed or dropped first",
                                                    shown(name))}};
    }
    if (find_name(root->outgoing, name) == nullptr) continue;
    return FreezeFailure{name, Token{}, "",
                         Error{EEXIST, fmt::format("the session '{}' that came in is held and nobody has finished "
                                                   "it, but a new one has the same name; drop one of them",
                                                   shown(name))}};
  }
  return std::nullopt;
}

// --- the interface ------------------------------------------------------------------------------------

Result<> Engine::set_hold(Change& change, SessionId id, Hold hold, std::string_view held_for) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "hold"));
  const SessionState state = impl_->state_of(session);
  const auto refuse = [&](int code, std::string_view why) {
    return fail(code, "hold session '{}': {}", shown(impl_->name_of(session)), why);
  };
  if (state == SessionState::Incoming || state == SessionState::Finished)
    return refuse(EINVAL, fmt::format("it is {}", to_string(state)));
  if (state == SessionState::Frozen) return refuse(EBUSY, "it is frozen");
  const bool wants_text = hold == Hold::Executable || hold == Hold::Unit;
  if (hold > Hold::Unit || held_for.empty() == wants_text || held_for.size() >= sizeof OptionsRecord{}.held_for)
    return refuse(EINVAL, fmt::format("{} with '{}'", to_string(hold), shown(held_for)));
  Impl::Options options = impl_->get_options(session);
  options.hold = hold;
  options.held_for = held_for;
  return impl_->set_options(change.tx, session, options);
}

unsigned Engine::carry_of(SessionId id) const noexcept {
  const SessionRecord* session = impl_->find(id);
  const OptionsRecord* options = session != nullptr ? impl_->options_of(*session) : nullptr;
  return options != nullptr ? options->carry : 0U;
}

Result<> Engine::set_carry(Change& change, SessionId id, std::uint16_t set, std::uint16_t clear) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "set an option"));
  const SessionState state = impl_->state_of(session);
  const auto refuse = [&](int code, std::string_view why) {
    return fail(code, "set an option of session '{}': {}", shown(impl_->name_of(session)), why);
  };
  if (state == SessionState::Incoming || state == SessionState::Finished)
    return refuse(EINVAL, fmt::format("it is {}", to_string(state)));
  if (state == SessionState::Frozen) return refuse(EBUSY, "it is frozen");
  if (((set | clear) & ~kCarryAll) != 0) return refuse(EINVAL, fmt::format("there is no bit {:#x}", set | clear));
  Impl::Options options = impl_->get_options(session);
  const auto carry = static_cast<std::uint16_t>((options.carry & ~clear) | set);
  if (carry == options.carry) return {};
  options.carry = carry;
  return impl_->set_options(change.tx, session, options);
}

Result<> Engine::drop(Change& change, SessionId id) {
  SessionRecord* session = LUO_TRY(impl_->need(id, "drop"));
  const std::string name = shown(impl_->name_of(*session));
  if (impl_->close_if_dead(change, impl_->arena.ref_of(session)) && impl_->find(id) == nullptr) return {};
  for (const Role role : {Role::Owner, Role::Successor})
    if (impl_->holds(*session, role))
      return fail(EBUSY, "drop session '{}': process {} has it", name, session->holder[index(role)].pid);
  const SessionState state = impl_->state_of(*session);
  if (state == SessionState::Outgoing) {
    impl_->end(change, *session, Ending::Unpreserve);
    return {};
  }
  if (state != SessionState::Incoming) return fail(EBUSY, "drop session '{}': it is {}", name, to_string(state));
  if (const auto token = impl_->unfinishable(*session))
    return fail(EBUSY, "drop session '{}': its handler is not done with token {}", name, token->raw());
  impl_->end(change, *session, Ending::Finish);
  return {};
}

Result<> Engine::owner_prepare(Change& change, SessionId id) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "prepare"));
  const std::string name = shown(impl_->name_of(session));
  const SessionState state = impl_->state_of(session);
  const OwnerEvent event = impl_->event_of(session);
  if (state == SessionState::Outgoing && event == OwnerEvent::None) {
    Impl::Options options = impl_->get_options(session);
    options.event = OwnerEvent::Prepared;
    LUO_TRY(impl_->set_options(change.tx, session, options));
    impl_->move(change.tx, session, SessionEvent::Prepare);
    return {};
  }
  if (is_outgoing(state) && event == OwnerEvent::None)
    return fail(EBUSY, "prepare session '{}': an update is preparing it", name);
  return fail(EINVAL, "prepare session '{}': it is {} already", name, to_string(state));
}

std::expected<void, FreezeFailure> Engine::owner_freeze(Change& change, SessionId id) {
  SessionRecord* session = impl_->find(id);
  const auto refuse = [&](int code, std::string_view why) {
    const std::string name{session == nullptr ? "" : impl_->name_of(*session)};
    return std::unexpected(
        FreezeFailure{name, Token{}, "", Error{code, fmt::format("freeze session '{}': {}", shown(name), why)}});
  };
  if (session == nullptr) return refuse(EBADF, "it does not exist");
  const SessionState state = impl_->state_of(*session);
  if (impl_->event_of(*session) != OwnerEvent::Prepared)
    return refuse(EINVAL, fmt::format("it is {}, its owner has not prepared it", to_string(state)));
  if (state != SessionState::Preparing) return refuse(EBUSY, "an update has frozen it");
  if (auto failure = impl_->freeze(change, *session)) return std::unexpected(std::move(*failure));
  impl_->set_event(change.tx, *session, OwnerEvent::Frozen);
  return {};
}

Result<> Engine::owner_cancel(Change& change, SessionId id) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "cancel"));
  const std::string name = shown(impl_->name_of(session));
  const OwnerEvent event = impl_->event_of(session);
  if (event == OwnerEvent::None) return fail(EINVAL, "cancel session '{}': its owner has not prepared it", name);
  if (event == OwnerEvent::Prepared && impl_->state_of(session) == SessionState::Frozen)
    return fail(EBUSY, "cancel session '{}': an update has frozen it", name);
  impl_->set_event(change.tx, session, OwnerEvent::None);
  impl_->cancel(change, session);
  return {};
}

}  // namespace luo
