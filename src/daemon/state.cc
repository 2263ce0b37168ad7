#include "daemon/state.h"

#include <algorithm>

namespace luo::daemon {
namespace {

template <class T>
void push_back(kho::Arena& arena, Change& change, List<T>& list, kho::Ref<T> item) noexcept {
  T& record = *arena.get(item);
  record.next = {};
  record.prev = list.last;
  change.tx.save(&list, sizeof list);
  if (list.last) change.tx.set(arena.get(list.last)->next, item);
  else list.first = item;
  list.last = item;
  ++list.count;
}

template <class T>
void unlink(kho::Arena& arena, Change& change, List<T>& list, T& record) noexcept {
  change.tx.save(&list, sizeof list);
  if (record.prev) change.tx.set(arena.get(record.prev)->next, record.next);
  else list.first = record.next;
  if (record.next) change.tx.set(arena.get(record.next)->prev, record.prev);
  else list.last = record.prev;
  --list.count;
  change.tx.release(arena.ref_of(&record));
}

template <class T, class Visit>
void walk(const kho::Arena& arena, const List<T>& list, Visit visit) {
  for (kho::Ref<T> at = list.first; at;) {
    T& record = *arena.get(at);
    at = record.next;  // the visitor may remove it
    visit(record);
  }
}

template <class T, class Check>
Result<> check_list(const kho::Arena& arena, const List<T>& list, std::string_view what, Check check) {
  kho::Ref<T> previous{};
  std::uint64_t n = 0;
  for (kho::Ref<T> at = list.first; at; ++n) {
    const T* record = arena.checked(at);
    if (record == nullptr || n >= list.count || record->prev != previous)
      return fail(EBADMSG, "{} {} at {:#x}: damaged link", what, n, at.at);
    if (!check(*record)) return fail(EBADMSG, "{} {} at {:#x}: damaged record", what, n, at.at);
    previous = at;
    at = record->next;
  }
  if (n != list.count || previous != list.last)
    return fail(EBADMSG, "list of {}s: {} found, {} expected", what, n, list.count);
  return {};
}

bool terminated(std::span<const char> text) { return std::ranges::find(text, '\0') != text.end(); }

}  // namespace

std::string_view to_string(Phase phase) noexcept {
  switch (phase) {
    case Phase::Offered: return "waiting for the successor";
    case Phase::Warming: return "warming";
    case Phase::Preparing: return "preparing";
    case Phase::Quiesced: return "quiesced";
    case Phase::Done: return "done";
    case Phase::Failed: return "failed";
  }
  return "?";
}

Result<State> State::open(kho::Arena& arena) {
  kho::Ref<Root> ref{arena.root(kRootSlot).raw()};
  if (!ref) {
    Change change{arena};
    ref = LUO_TRY(change.tx.make<Root>());
    arena.get(ref)->next_peer = arena.get(ref)->next_update = 1;
    change.tx.set_root(kRootSlot, ref.addr());
    change.commit();
  }
  Root* root = arena.checked(ref);
  if (root == nullptr) return fail(EBADMSG, "root of the daemon's records at {:#x}", ref.at);
  State state{arena, *root};
  if (auto indexed = state.index(); !indexed) return std::unexpected(std::move(indexed).error());
  return state;
}

Result<> State::index() {
  LUO_TRY(check_list(*arena_, root_->peers, "connection", [&](const PeerRec& peer) {
    for (const auto& slot : peer.answer) {
      const AnswerRec* answer = arena_->checked(slot);
      if (answer == nullptr || answer->length > AnswerRec::kMaxBytes || answer->fds > wire::kMaxFds) return false;
    }
    return peer.id != 0 && peer.id < root_->next_peer && peer.fd >= 0 && peer.active < 2 && terminated(peer.name);
  }));
  LUO_TRY(check_list(*arena_, root_->grants, "grant", [](const GrantRec& grant) {
    return grant.role == static_cast<std::uint32_t>(Role::Owner) ||
           grant.role == static_cast<std::uint32_t>(Role::Successor) || grant.role == kFormerOwner;
  }));
  LUO_TRY(check_list(*arena_, root_->updates, "update", [&](const UpdateRec& update) {
    return update.id != 0 && update.id < root_->next_update && update.phase >= 1 && update.phase <= 6 &&
           terminated(update.name) && terminated(update.text);
  }));
  for_each_peer([&](PeerRec& peer) { peers_[peer.id] = &peer; });
  grants_by_session_.reserve(root_->grants.count);
  walk(*arena_, root_->grants, [&](GrantRec& grant) {
    grants_by_session_[grant.session].push_back(&grant);
    grants_by_peer_[grant.peer][grant.session] = &grant;
  });
  return {};
}

Result<PeerRec*> State::add_peer(Change& change, int fd, std::uint32_t uid, std::int32_t pid) {
  const auto ref = LUO_TRY(change.tx.make<PeerRec>());
  const auto first = LUO_TRY(change.tx.make<AnswerRec>());
  const auto second = LUO_TRY(change.tx.make<AnswerRec>());
  PeerRec& peer = *arena_->get(ref);
  peer.id = root_->next_peer;
  peer.fd = fd;
  peer.uid = uid;
  peer.pid = pid;
  peer.answer[0] = first;
  peer.answer[1] = second;
  change.tx.set(root_->next_peer, peer.id + 1);
  push_back(*arena_, change, root_->peers, ref);
  peers_[peer.id] = &peer;
  return &peer;
}

void State::remove_peer(Change& change, PeerRec& peer) {
  grants_by_peer_.erase(peer.id);
  const AnswerRec& answer = last_answer(peer);
  if (answer.owned != 0 && answer.sent == 0)
    for (std::uint32_t i = 0; i < answer.fds; ++i) change.close_later(answer.fd[i]);
  for (const auto& slot : peer.answer) change.tx.release(slot);
  change.close_later(peer.fd);
  peers_.erase(peer.id);
  unlink(*arena_, change, root_->peers, peer);
}

PeerRec* State::find_peer(std::uint64_t id) const {
  const auto found = peers_.find(id);
  return found == peers_.end() ? nullptr : found->second;
}

void State::for_each_peer(const std::function<void(PeerRec&)>& visit) const { walk(*arena_, root_->peers, visit); }
std::uint64_t State::peer_count() const noexcept { return root_->peers.count; }
AnswerRec& State::last_answer(const PeerRec& peer) const noexcept { return *arena_->get(peer.answer[peer.active]); }
AnswerRec& State::next_answer(const PeerRec& peer) const noexcept { return *arena_->get(peer.answer[1 - peer.active]); }

Result<> State::add_grant(Change& change, std::uint64_t peer, SessionId session, Role role) {
  if (GrantRec* have = find_grant(peer, session.raw())) {
    change.tx.set(have->role, static_cast<std::uint32_t>(role));
    return {};
  }
  const auto ref = LUO_TRY(change.tx.make<GrantRec>());
  GrantRec& grant = *arena_->get(ref);
  grant.peer = peer;
  grant.session = session.raw();
  grant.role = static_cast<std::uint32_t>(role);
  push_back(*arena_, change, root_->grants, ref);
  grants_by_session_[grant.session].push_back(&grant);
  grants_by_peer_[peer][grant.session] = &grant;
  return {};
}

GrantRec* State::find_grant(std::uint64_t peer, std::uint64_t session) const {
  const auto of_peer = grants_by_peer_.find(peer);
  if (of_peer == grants_by_peer_.end()) return nullptr;
  const auto found = of_peer->second.find(session);
  return found == of_peer->second.end() ? nullptr : found->second;
}

void State::drop_grant(Change& change, GrantRec& grant) {
  if (const auto of_peer = grants_by_peer_.find(grant.peer); of_peer != grants_by_peer_.end())
    of_peer->second.erase(grant.session);
  if (const auto of_session = grants_by_session_.find(grant.session); of_session != grants_by_session_.end()) {
    std::erase(of_session->second, &grant);
    if (of_session->second.empty()) grants_by_session_.erase(of_session);
  }
  unlink(*arena_, change, root_->grants, grant);
}

bool State::drop_some_grants_of_peer(Change& change, std::uint64_t peer) {
  const auto found = grants_by_peer_.find(peer);
  if (found == grants_by_peer_.end() || found->second.empty()) return false;
  std::vector<GrantRec*> some;
  for (const auto& [session, grant] : found->second) {
    some.push_back(grant);
    if (some.size() == kGrantsPerStep) break;
  }
  for (GrantRec* grant : some) drop_grant(change, *grant);
  return true;
}

bool State::drop_some_grants_of_session(Change& change, SessionId session,
                                        const std::function<bool(const GrantRec&)>& drop) {
  const auto found = grants_by_session_.find(session.raw());
  if (found == grants_by_session_.end()) return false;
  std::vector<GrantRec*> some;
  for (GrantRec* grant : found->second) {
    if (drop(*grant)) some.push_back(grant);
    if (some.size() == kGrantsPerStep) break;
  }
  for (GrantRec* grant : some) drop_grant(change, *grant);
  return !some.empty();
}

void State::for_each_grant(SessionId session, const std::function<void(GrantRec&)>& visit) const {
  const auto found = grants_by_session_.find(session.raw());
  if (found == grants_by_session_.end()) return;
  const auto all = found->second;
  for (GrantRec* grant : all) visit(*grant);
}

Result<UpdateRec*> State::add_update(Change& change) {
  if (root_->updates.count >= kHistory) {
    bool forgot = false;
    for_each_update([&](UpdateRec& update) {
      if (forgot || !update.over() || update.notified == 0) return;
      unlink(*arena_, change, root_->updates, update);
      forgot = true;
    });
  }
  const auto ref = LUO_TRY(change.tx.make<UpdateRec>());
  UpdateRec& update = *arena_->get(ref);
  update.id = root_->next_update;
  update.phase = static_cast<std::uint32_t>(Phase::Offered);
  change.tx.set(root_->next_update, update.id + 1);
  push_back(*arena_, change, root_->updates, ref);
  return &update;
}

UpdateRec* State::find_update(std::uint64_t id) const {
  UpdateRec* found = nullptr;
  for_each_update([&](UpdateRec& update) {
    if (update.id == id) found = &update;
  });
  return found;
}

UpdateRec* State::running_update_of(SessionId session) const {
  UpdateRec* found = nullptr;
  for_each_update([&](UpdateRec& update) {
    if (update.session == session.raw() && !update.over()) found = &update;
  });
  return found;
}

UpdateRec* State::update_by_ticket(std::uint64_t ticket) const {
  UpdateRec* found = nullptr;
  for_each_update([&](UpdateRec& update) {
    if (update.ticket == ticket && !update.over()) found = &update;
  });
  return found;
}

void State::for_each_update(const std::function<void(UpdateRec&)>& visit) const {
  walk(*arena_, root_->updates, visit);
}

void State::arrive() {
  while (root_->grants.first) {
    Change change{*arena_};
    for (std::size_t n = 0; root_->grants.first && n < kGrantsPerStep; ++n)
      drop_grant(change, *arena_->get(root_->grants.first));
    change.commit();
  }
  while (root_->peers.first) {
    Change change{*arena_};
    PeerRec& peer = *arena_->get(root_->peers.first);
    for (const auto& slot : peer.answer) change.tx.release(slot);
    unlink(*arena_, change, root_->peers, peer);
    change.commit();
  }
  peers_.clear();
}

void State::append_fds(std::vector<int>& out) const {
  for_each_peer([&](PeerRec& peer) {
    out.push_back(peer.fd);
    const AnswerRec& answer = last_answer(peer);
    if (answer.owned != 0 && answer.sent == 0) out.insert(out.end(), answer.fd, answer.fd + answer.fds);
  });
}

}  // namespace luo::daemon
