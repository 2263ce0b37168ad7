// Requests about the files of a session.
#include "base/log.h"
#include "daemon/server.h"
#include "sys/memfd.h"

namespace luo::daemon {
namespace {

bool is_outgoing(SessionState state) { return state < SessionState::Incoming; }

/// Direction comes before size and arguments, as in Linux 7.3.
Result<> must_be_outgoing(const SessionView& session, std::string_view goal) {
  if (is_outgoing(session.state)) return {};
  return fail(EINVAL, "{} in session '{}': it is {}, not outgoing", goal, session.name, to_string(session.state));
}

/// A held session's next owner takes its files while it is outgoing, as a successor does.
bool gives_files(const SessionView& session, Role role) {
  return !is_outgoing(session.state) || role == Role::Successor || session.hold != Hold::Off;
}

}  // namespace

Result<Next> Server::preserve(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  LUO_TRY(must_be_outgoing(handle.session, "preserve a file"));
  if (handle.role == Role::Successor)
    return fail(EBUSY, "preserve a file in session '{}': the handover is not complete", handle.session.name);
  const auto arg = LUO_TRY(wire::parse_arg<wire::TokenArg>(request.payload));
  const bool sent = request.header.error == 0;
  if (request.fds.size() != (sent ? 1U : 0U))
    return fail(EBADMSG, "PRESERVE_FD with {} descriptors", request.fds.size());
  LUO_TRY(engine_->preserve(change, handle.id,
                            {.token = Token{arg.token},
                             .fd = sent ? request.fds[0].raw() : -1,
                             .client_errno = request.header.error,
                             .now_ms = realtime_ms()}));
  (void)request.fds[0].release();  // the engine's, with the commit
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::preserve_after(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  LUO_TRY(must_be_outgoing(handle.session, "preserve a file"));
  if (handle.role == Role::Successor)
    return fail(EBUSY, "preserve a file in session '{}': the handover is not complete", handle.session.name);
  const auto parsed = LUO_TRY((wire::parse_array<std::uint64_t, wire::AfterArg>(request.payload)));
  const bool sent = request.header.error == 0;
  if (request.fds.size() != (sent ? 1U : 0U))
    return fail(EBADMSG, "PRESERVE_AFTER with {} descriptors", request.fds.size());
  LUO_TRY(engine_->preserve(change, handle.id,
                            {.token = Token{parsed.arg.token},
                             .fd = sent ? request.fds[0].raw() : -1,
                             .client_errno = request.header.error,
                             .after = parsed.elements,
                             .now_ms = realtime_ms()}));
  if (sent) (void)request.fds[0].release();
  reply.put(wire::TokenArg{sizeof(wire::TokenArg), 0, parsed.arg.token});
  return Next::Answer;
}

Result<Next> Server::preserve_many(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  LUO_TRY(must_be_outgoing(handle.session, "preserve files"));
  if (handle.role == Role::Successor)
    return fail(EBUSY, "preserve files in session '{}': the handover is not complete", handle.session.name);
  const auto many = LUO_TRY((wire::parse_array<wire::ManyEntry>(request.payload)));
  std::size_t expected = 0;
  for (const auto& entry : many.elements) expected += entry.error == 0 ? 1 : 0;
  if (request.fds.size() != expected)
    return fail(EBADMSG, "PRESERVE_MANY with {} descriptors, {} announced", request.fds.size(), expected);

  reply.body.reserve(sizeof(wire::ManyArg) + many.elements.size() * sizeof(wire::ManyResult));
  reply.put(wire::ManyArg{sizeof(wire::ManyArg), many.arg.count});
  std::vector<int> numbers;
  numbers.reserve(expected);
  for (const Fd& fd : request.fds) numbers.push_back(fd.raw());
  std::vector<Engine::Look> looks;
  engine_->look_at(numbers, looks);
  std::size_t next_fd = 0;
  const std::uint64_t now_ms = realtime_ms();
  std::vector<Fd*> kept;
  kept.reserve(expected);
  for (const auto& entry : many.elements) {
    const Engine::Look* look = entry.error == 0 ? &looks[next_fd] : nullptr;
    Fd* fd = entry.error == 0 ? &request.fds[next_fd++] : nullptr;
    if (entry.error != 0 && entry.error != EBADF && entry.error != ENOENT)
      return fail(EBADMSG, "PRESERVE_MANY with error {}", entry.error);
    const Result<> done = entry.reserved != 0 ? Result<>{fail(EINVAL, "reserved is {}, not 0", entry.reserved)}
                                              : engine_->preserve(change, handle.id,
                                                                  {.token = Token{entry.token},
                                                                   .fd = fd != nullptr ? fd->raw() : -1,
                                                                   .client_errno = entry.error,
                                                                   .look = look,
                                                                   .now_ms = now_ms});
    // A handler that needs time: the whole batch is tried again when it has had it.
    if (!done && done.error().code == EINPROGRESS) return std::unexpected(done.error());
    if (done && fd != nullptr) kept.push_back(fd);
    reply.put(wire::ManyResult{done ? 0 : done.error().code});
  }
  for (Fd* fd : kept) (void)fd->release();
  return Next::Answer;
}

Result<Next> Server::unpreserve(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  LUO_TRY(must_be_outgoing(handle.session, "unpreserve a file"));
  if (handle.role == Role::Successor)
    return fail(EBUSY, "unpreserve a file in session '{}': the handover is not complete", handle.session.name);
  const auto arg = LUO_TRY(wire::parse_arg<wire::TokenArg>(request.payload));
  LUO_TRY(engine_->unpreserve(change, handle.id, Token{arg.token}));
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::retrieve(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  if (!gives_files(handle.session, handle.role))
    return fail(EINVAL, "retrieve a file of session '{}': it is {}, not retrieved", handle.session.name,
                to_string(handle.session.state));
  const auto arg = LUO_TRY(wire::parse_arg<wire::TokenArg>(request.payload));
  const auto fd = engine_->retrieve(change, handle.id, handle.role, Token{arg.token});
  if (!fd) {
    reply.error = fd.error();  // committed with the answer: a handler's failure is remembered
    return Next::Answer;
  }
  reply.fds.push_back(*fd);
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::retrieve_many(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  if (!gives_files(handle.session, handle.role))
    return fail(EINVAL, "retrieve files of session '{}': it is {}, not retrieved", handle.session.name,
                to_string(handle.session.state));
  const auto many = LUO_TRY((wire::parse_array<wire::ManyEntry>(request.payload)));
  reply.body.reserve(sizeof(wire::ManyArg) + many.elements.size() * sizeof(wire::ManyResult));
  reply.fds.reserve(many.elements.size());
  reply.put(wire::ManyArg{sizeof(wire::ManyArg), many.arg.count});
  for (const auto& entry : many.elements) {
    const auto fd = engine_->retrieve(change, handle.id, handle.role, Token{entry.token});
    if (fd) reply.fds.push_back(*fd);
    reply.put(wire::ManyResult{fd ? 0 : fd.error().code});
  }
  return Next::Answer;
}

Result<Next> Server::list_tokens(Request& request, Reply& reply, Change&) {
  const Handle handle = LUO_TRY(handle_of(request));
  const auto arg = LUO_TRY(wire::parse_arg<wire::PlainArg>(request.payload));
  if (arg.reserved != 0) return fail(EINVAL, "reserved is {}, not 0", arg.reserved);
  std::string entries;
  std::uint32_t count = 0;
  engine_->for_each_file(handle.id, [&](const FileView& file) {
    const wire::ManyEntry entry{.token = file.token.raw(), .error = 0, .reserved = 0};
    entries.append(reinterpret_cast<const char*>(&entry), sizeof entry);
    ++count;
  });
  LUO_TRY(attach_text(reply, entries));
  reply.put(wire::ManyArg{sizeof(wire::ManyArg), count});
  return Next::Answer;
}

void Server::attach_report(Reply& reply, std::string_view text) {
  if (auto attached = attach_text(reply, text); !attached)
    log(Level::Warning, "{}; the answer goes without its report: {}", attached.error(), text);
}

Result<> Server::attach_text(Reply& reply, std::string_view text) {
  Fd file = LUO_TRY(sealed_memfd("luod-answer", text));
  reply.fds.push_back(file.release());
  reply.owned = true;
  return {};
}

}  // namespace luo::daemon
