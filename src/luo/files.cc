// Files: into a session, out of it, and back to their owners.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "luo/engine_impl.h"

namespace luo {
namespace {

/// A close takes this many files out in its own step if the log has room for them (512 bytes each are
/// more than enough); the rest follows in steps after the commit.
constexpr std::uint64_t kFilesPerStep = 256;
constexpr std::size_t kRoomForFiles = std::size_t{2} << 20;

/// From what the kernel knows by itself: a file system's server is not asked, which could keep us waiting.
Engine::Look look_at(int fd) noexcept {
  Engine::Look look{{fd, {}}, 0, false};
  struct statx found;
  // Not through glibc, which would check what the kernel checks; this is the hot path of a batch.
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &found) != 0) {
    look.error = errno;
    return look;
  }
  struct stat& st = look.file.st;
  st.st_dev = makedev(found.stx_dev_major, found.stx_dev_minor);
  st.st_rdev = makedev(found.stx_rdev_major, found.stx_rdev_minor);
  st.st_ino = found.stx_ino;
  st.st_mode = found.stx_mode;
  st.st_nlink = found.stx_nlink;
  st.st_uid = found.stx_uid;
  st.st_gid = found.stx_gid;
  st.st_size = static_cast<off_t>(found.stx_size);
  st.st_blocks = static_cast<blkcnt_t>(found.stx_blocks);
  return look;
}

/// EBADF for what names a file without having it open; Linux gives it before all that follows from the kind of file.
Result<> refuse_path(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return sys_fail("fcntl(fd {}, F_GETFL)", fd);
  if ((flags & O_PATH) != 0) return fail(EBADF, "fd {} was opened with O_PATH", fd);
  return {};
}

std::string goal(std::string_view verb, std::uint64_t token, std::string_view session) {
  return fmt::format("{} token {} in session '{}'", verb, token, shown(session));
}

}  // namespace

FileRecord* Engine::Impl::find_file(const SessionRecord& session, std::uint64_t token,
                                    std::uint64_t hash) const noexcept {
  const Ref<SessionRecord> owner = arena.ref_of(&session);
  return at(Ref<FileRecord>{table(root->tokens).find(hash, [&](std::uint64_t ref) {
    const FileRecord& file = *at(Ref<FileRecord>{ref});
    return file.token == token && file.session == owner;
  })});
}

/// What an earlier retrieve said counts only for the one who asked: the successor that was given up, or
/// the side before a crossing, says nothing about the next.
std::uint64_t Engine::Impl::status_key(const SessionRecord& session) const noexcept {
  return root->generation << 32 | session.epoch;
}

int Engine::Impl::status(const SessionRecord& session, const FileRecord& file) const noexcept {
  return file.status_of == status_key(session) ? file.status : 0;
}

Result<std::uint32_t> Engine::Impl::index_of(const Handler& handler) const {
  const std::uint64_t tied = tied_to(handler);
  for (std::uint32_t i = 0; i < handlers.size(); ++i)
    if (handlers[i] == &handler && held_by(i) == tied) return i;
  return fail(ENOENT, "handler {} was registered after the engine was opened", handler.name());
}

Result<> Engine::Impl::preserve(Change& change, SessionRecord& session, const PreserveRequest& request,
                                InTheWay& in_the_way) {
  kho::Tx& tx = change.tx;
  const std::uint64_t token = request.token.raw();
  const SessionState state = state_of(session);
  for (std::size_t i = 0; i < request.after.size(); ++i)
    if (i == kMaxDependencies || std::ranges::count(request.after, request.after[i]) > 1)
      return fail(EINVAL, "it depends on {} tokens: at most {}, each once", request.after.size(), kMaxDependencies);
  if (!is_outgoing(state)) return fail(EINVAL, "the session is {}, not outgoing", to_string(state));
  if (!takes_files(state)) return fail(EBUSY, "the session is frozen for an update");
  const std::uint64_t hash = hash_token(session, token);
  if (const FileRecord* file = find_file(session, token, hash))
    return fail(EEXIST, "the token is used already, for a file of {}", handler_of(*file).name());
  for (const std::uint64_t other : request.after)
    if (find_file(session, other) == nullptr)
      return fail(ENOLINK, "token {}, on which it depends, is not preserved; preserve that first", other);
  LUO_TRY(table(root->tokens).reserve(tx));
  LUO_TRY(identities().reserve(tx));
  Step step{change};
  const Ref<FileRecord> ref = LUO_TRY(tx.make<FileRecord>());
  if (request.client_errno != 0) return fail(request.client_errno, "the client could not send its descriptor");
  Look own;
  if (request.look == nullptr) own = luo::look_at(request.fd);
  const Look& look = request.look != nullptr ? *request.look : own;
  if (look.error != 0) return fail(look.error, "fd {} cannot be looked at", request.fd);
  if (!look.checked) LUO_TRY(refuse_path(request.fd));
  const FileInfo& info = look.file;
  Handler* handler = registry.for_file(info);
  if (handler == nullptr) return fail(ENOENT, "no handler for a file of this kind (mode {:o})", info.st.st_mode);
  const std::uint32_t index = LUO_TRY(index_of(*handler));
  const Identity identity = handler->identity(info);
  Identities::Spot spot = LUO_TRY(identities().find(identity, request.fd));
  while (spot.same) {
    const FileRecord& same = *at(spot.same);
    const SessionRecord& other = *at(same.session);
    if (!is_dead(other)) {
      if (&other != &session) in_the_way = same.session;
      return fail(EBUSY, "the file is already preserved in session '{}' under token {}", shown(name_of(other)),
                  same.token);
    }
    identities().remove(tx, spot.same);  // its record only waits to be swept
    spot = LUO_TRY(identities().find(identity, request.fd));
  }
  FileRecord& file = *at(ref);
  file.magic = kFileMagic;
  file.token = token;
  file.session = arena.ref_of(&session);
  file.fd = request.fd;
  file.handler = index;
  file.charge_kib = static_cast<std::uint32_t>(std::min<std::uint64_t>(info.st.st_blocks / 2, UINT32_MAX));
  file.preserved_s = static_cast<std::uint32_t>(request.now_ms / 1000);
  LUO_TRY(identities().insert(tx, spot, identity, ref));
  if (!request.after.empty()) LUO_TRY(relate(tx, session, ref, request.after));
  const std::uint64_t begun = LUO_TRY(take_flbs(tx, held_by(index)));
  auto data = handler->preserve(info, SessionId{session.id}, request.token);
  if (!data) {
    undo_flbs(begun);
    return std::unexpected(std::move(data).error());
  }
  file.data = *data;
  table(root->tokens).insert(tx, hash, ref.at);
  list_append_fresh(arena, tx, session.files, &file);
  tx.set(root->outgoing.files, root->outgoing.files + 1);
  step.keep();
  return {};
}

/// The first file whose handler does not yet agree, FIFO.
std::optional<Token> Engine::Impl::unfinishable(const SessionRecord& session) const noexcept {
  for (const FileRecord* f = at(session.files.first); f != nullptr; f = at(f->links.next))
    if (!handler_of(*f).can_finish(kept(*f))) return Token{f->token};
  return std::nullopt;
}

void Engine::Impl::call_ending(kho::Tx& tx, const SessionRecord& session, Ending ending) noexcept {
  FlbRelease flbs_of{*this, tx, side_of(session) == Side::Outgoing ? FlbSide::Outgoing : FlbSide::Incoming};
  for (const FileRecord* f = at(session.files.last); f != nullptr; f = at(f->links.prev)) {
    if (ending == Ending::Unpreserve) handler_of(*f).unpreserve(kept(*f));
    else handler_of(*f).finish(kept(*f), status(session, *f) > 0);
    flbs_of.file(*f);
  }
}

void Engine::Impl::remove_file(Change& change, FileRecord& file) noexcept {
  kho::Tx& tx = change.tx;
  SessionRecord& session = *at(file.session);
  const Ref<FileRecord> ref = arena.ref_of(&file);
  identities().remove(tx, ref);
  unrelate(tx, ref);
  LUO_CHECK(table(root->tokens).remove(tx, hash_token(session, file.token), ref.at));
  list_unlink(arena, tx, session.files, &file);
  change.close_later(file.fd);
  tx.release(ref);
}

void Engine::Impl::remove_files(Change& change, SessionRecord& session, std::uint64_t limit) noexcept {
  for (std::uint64_t n = 0; n < limit && session.files.last; ++n) remove_file(change, *at(session.files.last));
}

void Engine::Impl::bury_files(Change& change, SessionRecord& session) noexcept {
  kho::Tx& tx = change.tx;
  if (session.doomed == 0) {
    if (session.files.count <= kFilesPerStep && tx.room() > kRoomForFiles) remove_files(change, session, kFilesPerStep);
    if (session.files.count != 0) {
      tx.set(session.doomed, 1U);
      tx.set(session.next_doomed, root->doomed);
      tx.set(root->doomed, arena.ref_of(&session));
    } else if (session.state == static_cast<std::uint32_t>(kGone)) {
      tx.release(arena.ref_of(&session));
      return;
    }
  }
  if (session.doomed != 0) change.after_commit([](void* impl) { static_cast<Impl*>(impl)->sweep(); }, this);
}

// --- the interface ------------------------------------------------------------------------------------

void Engine::look_at(std::span<const int> fds, std::vector<Look>& looks) const {
  looks.clear();
  looks.reserve(fds.size());
  std::vector<pollfd> polls;
  polls.reserve(fds.size());
  for (const int fd : fds) {
    const Look& look = looks.emplace_back(luo::look_at(fd));
    const bool may_poll = look.error == 0 && std::ranges::any_of(impl_->registry.all(), [&](const Handler* handler) {
                            return handler->can_be_polled(look.file);
                          });
    polls.push_back({.fd = may_poll ? fd : -1, .events = 0, .revents = 0});
  }
  if (poll(polls.data(), polls.size(), 0) < 0) return;  // each is checked by itself then
  for (std::size_t i = 0; i < fds.size(); ++i) {
    if (polls[i].fd < 0) continue;
    looks[i].checked = true;
    if ((polls[i].revents & POLLNVAL) != 0) looks[i].error = EBADF;
  }
}

Result<> Engine::preserve(Change& change, SessionId id, const PreserveRequest& request) {
  SessionRecord* session = LUO_TRY(impl_->need(id, "preserve"));
  auto result = impl_->despite_the_dead(
      change, [&](Impl::InTheWay& in_the_way) { return impl_->preserve(change, *session, request, in_the_way); });
  if (!result)
    return std::unexpected(
        std::move(result).error().during(goal("preserve", request.token.raw(), impl_->name_of(*session))));
  return result;
}

Result<> Engine::unpreserve(Change& change, SessionId id, Token token) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "unpreserve"));
  const SessionState state = impl_->state_of(session);
  const auto refuse = [&](int code, std::string_view why) {
    return fail(code, "{}: {}", goal("unpreserve", token.raw(), impl_->name_of(session)), why);
  };
  if (!is_outgoing(state)) return refuse(EINVAL, fmt::format("the session is {}, not outgoing", to_string(state)));
  if (!takes_files(state)) return refuse(EBUSY, "the session is frozen for an update");
  FileRecord* file = impl_->find_file(session, token.raw());
  if (file == nullptr) return refuse(ENOENT, "there is no such token");
  if (const RelationRecord* relation = impl_->relation_of(impl_->arena.ref_of(file)))
    if (relation->dependents != 0)
      return refuse(EBUSY, fmt::format("{} files depend on it; give those up first", relation->dependents));
  impl_->handler_of(*file).unpreserve(impl_->kept(*file));
  Impl::FlbRelease{*impl_, change.tx, Impl::FlbSide::Outgoing}.file(*file);
  impl_->remove_file(change, *file);
  change.tx.set(impl_->root->outgoing.files, impl_->root->outgoing.files - 1);
  return {};
}

Result<> Engine::set_data(Change& change, SessionId id, Token token, const HandlerData& data) {
  const SessionRecord& session = *LUO_TRY(impl_->need(id, "change a file"));
  FileRecord* file = impl_->find_file(session, token.raw());
  if (file == nullptr)
    return fail(ENOENT, "{}: there is no such token", goal("change", token.raw(), impl_->name_of(session)));
  change.tx.set(file->data, data);
  return {};
}

Result<int> Engine::retrieve(Change& change, SessionId id, Role role, Token token) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "retrieve"));
  const SessionState state = impl_->state_of(session);
  const auto refuse = [&](int code, std::string_view why) {
    return fail(code, "{}: {}", goal("retrieve", token.raw(), impl_->name_of(session)), why);
  };
  if (is_outgoing(state) && !(role == Role::Successor && impl_->holds(session, role)) &&
      impl_->hold_of(session) == Hold::Off)
    return refuse(EINVAL, fmt::format("the session is {}, not retrieved", to_string(state)));
  if (state == SessionState::Incoming) return refuse(EINVAL, "the session is not retrieved");
  FileRecord* file = state == SessionState::Finished ? nullptr : impl_->find_file(session, token.raw());
  if (file == nullptr) return refuse(ENOENT, "there is no such token");
  const int before = impl_->status(session, *file);
  if (before > 0) return file->fd;
  if (before < 0) return refuse(-before, "an earlier retrieve of it failed, and is not tried again");
  if (file->fd < 0) return refuse(EIO, "it was lost on its way from the kernel before");
  Handler& handler = impl_->handler_of(*file);
  auto result = handler.retrieve(impl_->kept(*file));
  change.tx.set(file->status, result ? 1 : -result.error().code);
  change.tx.set(file->status_of, impl_->status_key(session));
  if (!result)
    return std::unexpected(std::move(result).error().during(
        fmt::format("{}: handler {}", goal("retrieve", token.raw(), impl_->name_of(session)), handler.name())));
  return file->fd;
}

Result<> Engine::finish(Change& change, SessionId id) {
  SessionRecord& session = *LUO_TRY(impl_->need(id, "finish"));
  const SessionState state = impl_->state_of(session);
  if (state == SessionState::Finished) return {};
  if (!next(state, SessionEvent::Finish))
    return fail(EINVAL, "finish session '{}': it is {}, not retrieved", shown(impl_->name_of(session)),
                to_string(state));
  if (const auto token = impl_->unfinishable(session))
    return fail(EBUSY, "finish session '{}': handler {} is not done with token {}", shown(impl_->name_of(session)),
                impl_->handler_of(*impl_->find_file(session, token->raw())).name(), token->raw());
  impl_->call_ending(change.tx, session, Ending::Finish);
  change.tx.set(impl_->root->incoming.files, impl_->root->incoming.files - session.files.count);
  impl_->move(change.tx, session, SessionEvent::Finish);
  change.tx.set(session.called, 1U);
  impl_->bury_files(change, session);
  return {};
}

void Engine::for_each_file(SessionId id, const std::function<void(const FileView&)>& visit) const {
  const SessionRecord* session = impl_->find(id);
  if (session == nullptr || impl_->is_dead(*session)) return;
  for (const FileRecord* f = impl_->at(session->files.first); f != nullptr; f = impl_->at(f->links.next))
    visit({Token{f->token}, impl_->handler_of(*f).name(), f->fd, impl_->status(*session, *f), f->object, f->group,
           f->data, std::uint64_t{f->charge_kib} * 1024, f->preserved_s});
}

}  // namespace luo
