#include "luo/check.h"

#include <fcntl.h>

#include <bit>
#include <cstring>

namespace luo {
namespace {

constexpr std::int32_t kMaxFd = 1 << 24;

template <class... Args>
auto damaged(std::uint64_t at, fmt::format_string<Args...> text, Args&&... args) {
  return fail(EBADMSG, "{} at {:#x}", fmt::format(text, std::forward<Args>(args)...), at);
}

/// A whole block of ours: it may be given back one day. nullptr: not the start of one.
template <class T>
const T* block(const kho::Arena& arena, Ref<T> ref, std::uint64_t magic) noexcept {
  if (ref.at % alignof(T) != 0 || arena.usable_size(ref.addr()) < sizeof(T)) return nullptr;
  const T* record = arena.get(ref);
  return record->magic == magic ? record : nullptr;
}

}  // namespace

Checker::Checker(const Engine::Impl& engine, bool ask_kernel)
    : engine_{engine},
      arena_{engine.arena},
      root_{*engine.root},
      ask_kernel_{ask_kernel},
      blocks_{engine.arena.stats().blocks} {}

Result<> Checker::lists_of_names() {
  const HandlersRecord* handlers = block(arena_, root_.handlers, kHandlersMagic);
  if ((root_.magic != kRootMagic && root_.magic != kRootMagic1) || handlers == nullptr ||
      handlers->count != engine_.handlers.size())
    return damaged(root_.handlers.at, "no list of {} handlers", engine_.handlers.size());
  if (has_extras() && root_.flbs) {
    flbs_of_ = block(arena_, root_.flbs, kFlbsMagic);
    if (flbs_of_ == nullptr || flbs_of_->count != engine_.flbs.size())
      return damaged(root_.flbs.at, "no list of {} FLBs", engine_.flbs.size());
    for (std::uint64_t i = 0; i < kMaxHandlers; ++i)
      if (flbs_of_->held[i] >> flbs_of_->count != 0)
        return damaged(root_.flbs.at, "a handler holds FLBs that are none");
  }
  return {};
}

Result<> Checker::run() {
  LUO_TRY(lists_of_names());
  LUO_TRY(tables(true));
  LUO_TRY(list(root_.outgoing.sessions, Where::Outgoing));
  LUO_TRY(list(root_.incoming.sessions, Where::Incoming));
  LUO_TRY(list(root_.dropped, Where::Dropped));
  LUO_TRY(doomed());
  for (const auto& [ref, files] : trees_) LUO_TRY(tree(Ref<TreeRecord>{ref}, files));
  return counts();
}

Result<> Checker::sample(std::uint64_t records) {
  LUO_TRY(lists_of_names());
  LUO_TRY(tables(false));
  left_ = records;
  LUO_TRY(list(root_.outgoing.sessions, Where::Outgoing));
  left_ = records;
  return list(root_.incoming.sessions, Where::Incoming);
}

Result<> Checker::tables(bool whole) const {
  const auto check = [whole](const Table& table, std::string_view name) {
    return whole ? table.check(name) : table.check_shape(name);
  };
  LUO_TRY(check(engine_.table(root_.outgoing.names), "outgoing names"));
  LUO_TRY(check(engine_.table(root_.incoming.names), "incoming names"));
  LUO_TRY(check(engine_.table(root_.ids), "session ids"));
  LUO_TRY(check(engine_.table(root_.inodes), "pipe inodes"));
  LUO_TRY(check(engine_.table(root_.tokens), "tokens"));
  LUO_TRY(check(engine_.table(root_.identities), "file identities"));
  LUO_TRY(check(engine_.table(root_.trees), "trees of files"));
  if (!has_extras()) return {};
  LUO_TRY(check(engine_.table(root_.options), "options of sessions"));
  LUO_TRY(check(engine_.table(root_.relations), "relations of files"));
  return {};
}

Result<> Checker::list(const ListRecord<SessionRecord>& sessions, Where where) {
  if (sessions.count > blocks_) return fail(EBADMSG, "a list of {} sessions in {} blocks", sessions.count, blocks_);
  Ref<SessionRecord> before;
  Ref<SessionRecord> now = sessions.first;
  for (std::uint64_t n = 0; n < sessions.count; ++n) {
    if (left_ == 0) return {};
    --left_;
    const SessionRecord* record = block(arena_, now, kSessionMagic);
    if (record == nullptr) return damaged(now.at, "no session record");
    if (record->links.prev != before) return damaged(now.at, "a session's list is broken");
    LUO_TRY(session(now, where));
    before = now;
    now = record->links.next;
  }
  if (now || sessions.last != before)
    return damaged(before.at, "a list of {} sessions does not end there", sessions.count);
  return {};
}

Result<> Checker::doomed() {
  for (Ref<SessionRecord> now = root_.doomed; now; now = arena_.get(now)->next_doomed) {
    const SessionRecord* record = block(arena_, now, kSessionMagic);
    if (record == nullptr || record->doomed == 0 || ++listed_doomed_ > blocks_)
      return damaged(now.at, "no session that waits to be swept");
    if (record->state != static_cast<std::uint32_t>(kGone)) continue;  // was seen in its own list
    LUO_TRY(session(now, Where::Doomed));
  }
  return {};
}

Result<> Checker::session(Ref<SessionRecord> ref, Where where) {
  const SessionRecord& record = *arena_.get(ref);
  const auto state = static_cast<SessionState>(record.state);
  const std::uint64_t age = root_.generation - record.generation;
  bool fits = record.id != 0 && record.id < root_.next_session && record.generation <= root_.generation;
  switch (where) {
    case Where::Outgoing: fits = fits && age == 0 && is_outgoing(state); break;
    case Where::Incoming: fits = fits && age == 1 && (is_incoming(state) || state == SessionState::Frozen); break;
    case Where::Dropped: fits = fits && age >= 2 && (is_incoming(state) || state == SessionState::Frozen); break;
    case Where::Doomed: break;
  }
  if (!fits)
    return damaged(ref.at, "session {}: generation {}, state {} do not fit", record.id, record.generation,
                   record.state);
  const std::string_view name = Engine::Impl::name_of(record);
  if (name.empty() || name.size() >= sizeof record.name) return damaged(ref.at, "session {}: no name", record.id);
  marked_doomed_ += record.doomed != 0 ? 1 : 0;
  if (where != Where::Doomed) {
    ++sessions_;
    if (!engine_.table(root_.ids).contains(engine_.hash(SessionId{record.id}), ref.at))
      return damaged(ref.at, "session {}: not found by its id", record.id);
    for (const HolderRecord& h : record.holder) LUO_TRY(holder(ref, h));
  }
  if (where == Where::Outgoing || where == Where::Incoming) {
    TableRecord& names = where == Where::Outgoing ? root_.outgoing.names : root_.incoming.names;
    if (!engine_.table(names).contains(engine_.hash_name(name), ref.at))
      return damaged(ref.at, "session {}: not found by its name", record.id);
    if (where == Where::Outgoing && state == SessionState::Frozen) ++frozen_;
    if (state != SessionState::Finished) live_files_[where == Where::Outgoing ? 0 : 1] += record.files.count;
  }
  if (has_extras() && root_.options.count != 0) LUO_TRY(options(ref, where));
  side_ = where == Where::Doomed || state == SessionState::Finished ? -1 : static_cast<int>(where);
  return files(ref);
}

Result<> Checker::options(Ref<SessionRecord> ref, Where where) {
  const OptionsRecord* found = nullptr;
  engine_.table(root_.options).find(engine_.hash_place(ref), [&](std::uint64_t entry) {
    const OptionsRecord* record = block(arena_, Ref<OptionsRecord>{entry}, kOptionsMagic);
    if (record != nullptr && record->session == ref) found = record;
    return found != nullptr;
  });
  if (found == nullptr) return {};
  ++options_;
  const bool asks_more = found->hold == static_cast<std::uint32_t>(Hold::Executable) ||
                         found->hold == static_cast<std::uint32_t>(Hold::Unit);
  const std::size_t length = strnlen(found->held_for, sizeof found->held_for);
  if (where == Where::Doomed || found->hold > static_cast<std::uint32_t>(Hold::Unit) ||
      found->event > static_cast<std::uint16_t>(OwnerEvent::Frozen) || (found->carry & ~kCarryAll) != 0 ||
      length == sizeof found->held_for || (length != 0) != asks_more ||
      (found->hold == 0 && found->event == 0 && found->carry == 0))
    return damaged(ref.at, "a session's options do not fit");
  const auto state = static_cast<SessionState>(arena_.get(ref)->state);
  const auto event = static_cast<OwnerEvent>(found->event);
  if (where == Where::Outgoing && event != OwnerEvent::None &&
      (state == SessionState::Outgoing || (event == OwnerEvent::Frozen && state != SessionState::Frozen)))
    return damaged(ref.at, "a session that is {} was taken further by its owner", to_string(state));
  return {};
}

Result<> Checker::holder(Ref<SessionRecord> ref, const HolderRecord& holder) {
  if (holder.generation > root_.generation) return damaged(ref.at, "a session's holder comes from the future");
  for (const std::int32_t fd : {holder.write_fd, holder.read_fd})
    if (fd != -1) LUO_TRY(descriptor(fd, ref.at));
  if (holder.inode == 0) return {};
  ++inodes_;
  if (!engine_.table(root_.inodes).contains(engine_.hash(holder.inode), ref.at))
    return damaged(ref.at, "a session is not found by its pipe's inode {}", holder.inode);
  return {};
}

/// Two records that name one descriptor would close it twice.
Result<> Checker::descriptor(std::int32_t fd, std::uint64_t where) {
  if (fd < 0 || fd >= kMaxFd) return damaged(where, "fd {} is none", fd);
  const auto number = static_cast<std::size_t>(fd);
  if (number >= fds_.size()) fds_.resize((number + 1) * 2);
  if (fds_[number]) return damaged(where, "fd {} is named twice", fd);
  fds_[number] = true;
  if (ask_kernel_ && fcntl(fd, F_GETFD) < 0) return damaged(where, "fd {} is not open", fd);
  return {};
}

Result<> Checker::files(Ref<SessionRecord> owner) {
  const ListRecord<FileRecord>& list = arena_.get(owner)->files;
  if (list.count > blocks_) return damaged(owner.at, "a session with {} files in {} blocks", list.count, blocks_);
  Ref<FileRecord> before;
  Ref<FileRecord> now = list.first;
  for (std::uint64_t n = 0; n < list.count; ++n) {
    if (left_ == 0) return {};
    --left_;
    const FileRecord* record = block(arena_, now, kFileMagic);
    if (record == nullptr) return damaged(now.at, "no file record");
    if (record->links.prev != before || record->session != owner)
      return damaged(now.at, "a session's file list is broken");
    LUO_TRY(file(now));
    before = now;
    now = record->links.next;
  }
  if (now || list.last != before) return damaged(before.at, "a list of {} files does not end there", list.count);
  return {};
}

Result<> Checker::file(Ref<FileRecord> ref) {
  const FileRecord& record = *arena_.get(ref);
  ++files_;
  if (record.fd != -1) LUO_TRY(descriptor(record.fd, ref.at));  // -1: lost on the way from another system
  if (has_extras() && root_.flbs && record.handler < kMaxHandlers) {
    const SessionRecord& owner = *arena_.get(record.session);
    for (std::uint64_t held = flbs_of_ == nullptr ? 0 : flbs_of_->held[record.handler]; held != 0; held &= held - 1)
      if (side_ >= 0 && owner.called == 0) ++flb_files_[side_][std::countr_zero(held)];
  }
  // 1 given out, 0 not asked for, else a negative errno (include/linux/err.h of Linux: up to 4095).
  if (record.status > 1 || record.status < -4095)
    return damaged(ref.at, "a file with retrieve status {}", record.status);
  const HandlersRecord& handlers = *arena_.get(root_.handlers);
  if (record.handler >= handlers.count)
    return damaged(ref.at, "a file with handler {} of {}", record.handler, handlers.count);
  if (engine_.handlers[record.handler] == nullptr)
    return fail(ENOTSUP, "token {} of session '{}' needs the handler {}, which is not there", record.token,
                shown(Engine::Impl::name_of(*arena_.get(record.session))), handlers.name[record.handler]);
  if (!engine_.table(root_.tokens).contains(engine_.hash_token(*arena_.get(record.session), record.token), ref.at))
    return damaged(ref.at, "a file is not found by its token {}", record.token);
  if (has_extras() && root_.relations.count != 0) LUO_TRY(relation(ref));
  if (record.indexed == 0) {
    if (record.tree) return damaged(ref.at, "a file names a tree that it is not in");
    return {};
  }
  if (!record.tree) {
    ++plain_;
    if (!engine_.identities().has(ref)) return damaged(ref.at, "a file is not found by its inode {}", record.object);
    return {};
  }
  const TreeRecord* tree = block(arena_, record.tree, kTreeMagic);
  if (tree == nullptr || tree->group != record.group || tree->object != record.object)
    return damaged(ref.at, "a file names a tree that is none of its own");
  ++trees_[record.tree.at];
  const FileRecord* up = block(arena_, record.up, kFileMagic);
  const bool linked = record.up ? up != nullptr && (up->left == ref || up->right == ref) : tree->root == ref;
  if (!linked) return damaged(ref.at, "a file is not where its tree would look for it");
  return {};
}

/// Whom it depends on is preserved before it, in the same session.
Result<> Checker::relation(Ref<FileRecord> ref) {
  const RelationRecord* found = nullptr;
  engine_.table(root_.relations).find(engine_.hash_place(ref), [&](std::uint64_t entry) {
    const RelationRecord* record = block(arena_, Ref<RelationRecord>{entry}, kRelationMagic);
    if (record != nullptr && record->file == ref) found = record;
    return found != nullptr;
  });
  if (found == nullptr) return {};
  ++relations_;
  if (found->count > kMaxDependencies || (found->count == 0 && found->dependents == 0))
    return damaged(ref.at, "a file that depends on {} others", found->count);
  if (found->dependents != 0) dependents_.emplace(ref.at, found->dependents);
  for (std::uint64_t i = 0; i < found->count; ++i) {
    const auto other = dependents_.find(found->on[i].at);
    if (other == dependents_.end() || other->second == 0 ||
        block(arena_, found->on[i], kFileMagic)->session != arena_.get(ref)->session)
      return damaged(ref.at, "a file depends on one that is not preserved before it");
    --other->second;
  }
  return {};
}

/// Walks it in order, following no link twice.
Result<> Checker::tree(Ref<TreeRecord> ref, std::uint64_t files) {
  const TreeRecord& record = *arena_.get(ref);
  if (!engine_.table(root_.trees).contains(engine_.identities().hash_of(record.group, record.object), ref.at))
    return damaged(ref.at, "a tree is not found by its inode {}", record.object);
  if (record.count != files) return damaged(ref.at, "a tree of {} files, named by {}", record.count, files);
  std::vector<Ref<FileRecord>> path;
  std::uint64_t seen = 0;
  std::uint64_t entered = 0;
  std::int32_t before = -1;
  Ref<FileRecord> up;
  Ref<FileRecord> now = record.root;
  while (now || !path.empty()) {
    while (now) {
      const FileRecord* node = block(arena_, now, kFileMagic);
      if (node == nullptr || node->tree != ref || node->up != up || ++entered > files)
        return damaged(now.at, "a tree's node does not fit");
      if (up && arena_.get(up)->priority < node->priority)
        return damaged(now.at, "a tree's node has too high a priority");
      path.push_back(now);
      up = now;
      now = node->left;
    }
    up = path.back();
    path.pop_back();
    const FileRecord& node = *arena_.get(up);
    ++seen;
    if (ask_kernel_ && before >= 0 && LUO_TRY(compare_files(before, node.fd)) >= 0)
      return damaged(up.at, "a tree is not in the kernel's order");
    before = node.fd;
    now = node.right;
  }
  if (seen != files) return damaged(ref.at, "a tree reaches {} of {} files", seen, files);
  return {};
}

Result<> Checker::counts() const {
  const auto differ = [](std::string_view what, std::uint64_t counted, std::uint64_t found) {
    return fail(EBADMSG, "{}: {} counted, {} found", what, counted, found);
  };
  if (root_.ids.count != sessions_) return differ("session ids", root_.ids.count, sessions_);
  if (root_.inodes.count != inodes_) return differ("pipe inodes", root_.inodes.count, inodes_);
  if (root_.tokens.count != files_) return differ("tokens", root_.tokens.count, files_);
  if (root_.identities.count != plain_) return differ("file identities", root_.identities.count, plain_);
  if (root_.trees.count != trees_.size()) return differ("trees of files", root_.trees.count, trees_.size());
  if (flbs_of_ != nullptr)
    for (std::uint64_t i = 0; i < flbs_of_->count; ++i) {
      const FlbRecord& flb = flbs_of_->flb[i];
      const FlbSideRecord* sides[] = {&flb.outgoing, &flb.incoming, &flb.dropped};
      for (int side = 0; side < 3; ++side) {
        if (sides[side]->files != flb_files_[side][i])
          return differ(fmt::format("files of FLB {}", flb.name), sides[side]->files, flb_files_[side][i]);
        if (sides[side]->files != 0 && (sides[side]->state == 0 || sides[side]->state == 3))
          return damaged(root_.flbs.at, "FLB {} has files and is not there", flb.name);
      }
    }
  if (has_extras()) {
    if (root_.options.count != options_) return differ("options of sessions", root_.options.count, options_);
    if (root_.relations.count != relations_) return differ("relations of files", root_.relations.count, relations_);
    for (const auto& [file, left] : dependents_)
      if (left != 0) return damaged(file, "a file on which {} others depend, which are not there", left);
  }
  if (root_.outgoing.names.count != root_.outgoing.sessions.count)
    return differ("outgoing names", root_.outgoing.names.count, root_.outgoing.sessions.count);
  if (root_.incoming.names.count != root_.incoming.sessions.count)
    return differ("incoming names", root_.incoming.names.count, root_.incoming.sessions.count);
  if (root_.outgoing.files != live_files_[0]) return differ("outgoing files", root_.outgoing.files, live_files_[0]);
  if (root_.incoming.files != live_files_[1]) return differ("incoming files", root_.incoming.files, live_files_[1]);
  if (root_.frozen != frozen_) return differ("frozen sessions", root_.frozen, frozen_);
  if (marked_doomed_ != listed_doomed_) return differ("sessions to be swept", listed_doomed_, marked_doomed_);
  return {};
}

}  // namespace luo
