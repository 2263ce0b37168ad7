// One request: peek, dispatch, commit, send, consume.
#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/log.h"
#include "daemon/out_of_memory.h"
#include "daemon/server.h"
#include "daemon/version.h"

namespace luo::daemon {
namespace {

using wire::Command;

/// A request that has been begun this often without ever ending kills workers: its sender is cut off.
constexpr std::uint32_t kMostTries = 8;
constexpr std::size_t kMostErrorText = 400;

/// Linux hands a peeked message out without its descriptors, and without a word, if it has no memory to list them.
bool may_have_lost_descriptors(const Received& got, std::span<const std::byte> buffer) {
  wire::Header header{};
  if (!got.fds.empty() || got.control_truncated || got.truncated || got.bytes < sizeof header) return false;
  std::memcpy(&header, buffer.data(), sizeof header);
  return header.fds != 0 && header.fds <= wire::kMaxFds;
}

/// Whether it has that memory now: then the message had none. `any` is some descriptor to try it with.
bool can_peek_descriptors(FdRef any) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return false;
  const Fd from = Fd::adopt(ends[0]), to = Fd::adopt(ends[1]);
  const std::vector<int> fds(wire::kMaxFds, any.raw);
  std::byte byte{};
  if (!send(from, {&byte, 1}, fds, MSG_DONTWAIT)) return false;
  const auto got = receive(to, {&byte, 1}, MSG_PEEK | MSG_DONTWAIT);
  return got && (!got->fds.empty() || got->control_truncated);
}

/// Whether it concerns sessions that it is not shown a descriptor of, nor stumbles over.
bool looks_around(std::uint32_t command) {
  switch (static_cast<Command>(command)) {
    case Command::Query:
    case Command::Drop:
    case Command::RetrieveWait:
    case Command::UpdateService:
    case Command::UpdateSimulated:
    case Command::UpdateKernel: return true;
    default: return false;
  }
}

/// What changes nothing that the next kernel is to have, or that would have to be given up in this one.
bool is_allowed_while_leaving(Command command) {
  switch (command) {
    case Command::Hello:
    case Command::GetName:
    case Command::GetState:
    case Command::ListTokens:
    case Command::Query:
    case Command::Inspect:
    case Command::UpdateWait:
    case Command::UpdateKernel: return true;  // waits for the one that is under way
    default: return false;
  }
}

}  // namespace

void Server::serve(Peer& peer, PeerRec& record) {
  const std::uint64_t id = record.id;
  const UnderWork under_work{record};
  struct Settle {
    Server& server;
    ~Settle() { server.settle_medium(); }
  } const settle{*this};
  // What a refused message brought is closed now, not when the next message arrives.
  struct Clear {
    std::vector<Fd>& fds;
    ~Clear() { fds.clear(); }
  } const clear{received_.fds};
  for (int round = 0; round < 3; ++round) {
    if (auto got = receive(FdRef::borrow(record.fd), buffer_, received_, MSG_PEEK | MSG_DONTWAIT, OverExec::Keep);
        !got) {
      if (got.error().code == ENOMEM || got.error().code == ENOBUFS) wait_for_memory(peer);
      else if (got.error().code != EAGAIN) drop_peer(id, got.error().what);
      return;
    }
    if (!may_have_lost_descriptors(received_, buffer_)) break;
    if (!can_peek_descriptors(wake_fd_)) return wait_for_memory(peer);
  }
  if (received_.eof) return drop_peer(id, "closed");
  const auto datagram = std::span<const std::byte>{buffer_}.first(received_.bytes);
  const bool short_of_fds =
      received_.control_truncated;  // our table is full; the header still tells how many were sent
  wire::Header header{};
  if (auto parsed = wire::parse_header(datagram, received_.fds.size()); parsed && !received_.truncated) {
    header = *parsed;
  } else if (short_of_fds && datagram.size() >= sizeof header) {
    std::memcpy(&header, datagram.data(), sizeof header);
  } else {
    log(Level::Notice, "connection {} ({}, pid {}): {}; closed", id, record.name, record.pid,
        received_.truncated ? "a message that is too long" : parsed.error().what);
    return drop_peer(id, "broken framing");
  }
  const AnswerRec& last = state_->last_answer(record);
  if (header.nonce <= last.nonce) {
    log(Level::Notice, "connection {} ({}, pid {}): nonce {} after {}; closed", id, record.name, record.pid,
        header.nonce, last.nonce);
    return drop_peer(id, "nonce does not grow");
  }
  if (header.error != 0 && header.error != EBADF && header.error != ENOENT) {
    log(Level::Notice, "connection {} ({}, pid {}): a request with error {}; closed", id, record.name, record.pid,
        header.error);
    return drop_peer(id, "broken framing");
  }
  // What was closed before is given up before somebody can see it, also if it is not watched yet.
  if (record.out_of_memory == 0 && holders_->some_expected() && looks_around(header.command) &&
      watch_some_holders(SIZE_MAX)) {
    received_.fds.clear();
    while (reap_closed()) {}
    if (state_->find_peer(id) == nullptr) return;
    return serve(peer, record);
  }
  if (record.tried_nonce != header.nonce) record.tries = 0;
  record.tried_nonce = header.nonce;
  if (++record.tries > kMostTries) {
    log(Level::Error, "connection {} ({}, pid {}): request {} has ended {} workers; closed", id, record.name,
        record.pid, wire::name_of(header.command), kMostTries);
    return drop_peer(id, "request that kills workers");
  }

  if (record.out_of_memory != 0 && has_begun(record, header)) record.out_of_memory = 0;

  ++requests_;
  const bool again = peer.parked_nonce == header.nonce;
  Request request{.peer = record,
                  .header = header,
                  .payload = wire::payload_of(datagram),
                  .fds = received_.fds,
                  .parked_until_ns = again ? peer.parked_until_ns : 0};
  Reply reply;
  Change change{arena_};
  const Change::Mark begin = change.mark();
  Result<Next> next = record.out_of_memory != 0 ? fail(ENOMEM, "luod had no memory for it")
                      : short_of_fds            ? fail(EMFILE, "luod has no free descriptors")
                                                : dispatch(request, reply, change);
  if (next && *next == Next::Park) {
    if (!request.stepped) change.tx.abort();
    received_.fds.clear();
    park(peer, request);
    return after_commit();  // a command that waits may have committed a step of its own
  }
  if (next) return answer(peer, record, request, change, reply, reply.error ? &*reply.error : nullptr);
  change.back_to(begin);
  reply = Reply{};
  const int code = next.error().code;
  if (code == EBADMSG) {
    change.tx.abort();
    log(Level::Notice, "connection {} ({}, pid {}): {}; closed", id, record.name, record.pid, next.error());
    return drop_peer(id, "broken framing");
  }
  if (code == EINPROGRESS) {
    change.tx.abort();
    received_.fds.clear();
    pending_.try_emplace(header.session, id, header.nonce);
    return park(peer, request);
  }
  // What others have closed, but we have not looked at yet, may be what is in the way.
  if (code == EMFILE || code == ENOSPC) {
    change.tx.abort();
    received_.fds.clear();
    watch_some_holders(SIZE_MAX);
    if (!reap_closed()) {
      Change fresh{arena_};
      return answer(peer, record, request, fresh, reply, &next.error());
    }
    if (state_->find_peer(id) == nullptr) return;
    record.tries = 0;
    return serve(peer, record);  // ends: each round has given descriptors back
  }
  return answer(peer, record, request, change, reply, &next.error());
}

void Server::answer(Peer& peer, PeerRec& record, const Request& request, Change& change, Reply& reply,
                    const Error* error) {
  AnswerRec& slot = state_->next_answer(record);
  wire::Header header{};
  header.command = request.header.command;
  header.nonce = request.header.nonce;
  header.session = reply.session != 0 ? reply.session : request.header.session;
  header.fds = static_cast<std::uint32_t>(reply.fds.size());
  if (error != nullptr) {
    header.error = error->code;
    if (reply.body.empty()) {
      const auto text = std::as_bytes(std::span{error->what}).first(std::min(error->what.size(), kMostErrorText));
      reply.body.assign(text.begin(), text.end());
    }
    log(Level::Debug, "{} of {} (pid {}): {}", wire::name_of(header.command), record.name, record.pid, *error);
  }
  header.length = static_cast<std::uint32_t>(sizeof header + reply.body.size());
  LUO_CHECK(header.length <= AnswerRec::kMaxBytes && reply.fds.size() <= wire::kMaxFds);

  // The slot that is not the last answer is nobody's: it is written without the log.
  slot.nonce = header.nonce;
  slot.hand_session = reply.hand_session.raw();
  slot.hand_role = static_cast<std::uint32_t>(reply.hand_role);
  slot.owned = reply.owned ? 1 : 0;
  slot.sent = 0;
  slot.fds = header.fds;
  std::ranges::copy(reply.fds, slot.fd);
  std::memcpy(slot.bytes, &header, sizeof header);
  std::ranges::copy(reply.body, slot.bytes + sizeof header);
  slot.length = header.length;
  change.tx.set(record.active, 1 - record.active);
  change.commit();
  settle_medium();  // before the answer: what was given up is free when its owner hears so
  no_longer_under_work();
  record.tries = 0;
  peer.parked = false;
  peer.parked_nonce = 0;
  received_.fds.clear();  // what was kept has been released from it
  const std::uint64_t peer_id = record.id;
  send_answer(peer, record);  // may drop the peer

  if (!pending_.empty()) no_longer_pending(peer_id, header.nonce);
  after_commit();
}

bool Server::send_answer(Peer& peer, PeerRec& record) {
  AnswerRec& last = state_->last_answer(record);
  const auto fds = std::span<const int>{last.fd, last.fds};
  const auto sent = send(FdRef::borrow(record.fd), {last.bytes, last.length}, fds, MSG_DONTWAIT);
  if (!sent) {
    const int code = sent.error().code;
    if (!is_for_later(code)) {
      drop_peer(record.id, sent.error().what);
      return false;
    }
    // The peer does not read. Until it does, what the answer names must stay what it is: others may give
    // the engine's descriptors up meanwhile.
    if (last.owned == 0 && last.hand_session == 0 && last.fds > 0) {
      Change change{arena_};
      change.tx.save(&last, offsetof(AnswerRec, bytes));
      for (std::uint32_t i = 0; i < last.fds; ++i) {
        const int copy = fcntl(last.fd[i], F_DUPFD_CLOEXEC, 0);
        if (copy < 0) {
          for (std::uint32_t j = 0; j < i; ++j) close_number(last.fd[j]);
          change.tx.abort();
          drop_peer(record.id, "does not read, and luod has no descriptors left to wait for it");
          return false;
        }
        last.fd[i] = copy;
      }
      last.owned = 1;
      change.commit();
    }
    wait_to_send(peer, code);
    return false;
  }
  if (last.hand_session != 0 || last.owned != 0) {
    Change change{arena_};
    change.tx.set(last.sent, 1);
    if (last.hand_session != 0) engine_->sent(change, SessionId{last.hand_session}, static_cast<Role>(last.hand_role));
    else
      for (const int fd : fds) change.close_later(fd);
    change.commit();
  }
  record.out_of_memory = 0;
  if (auto consumed = consume(FdRef::borrow(record.fd)); !consumed) {
    drop_peer(record.id, consumed.error().what);
    return false;
  }
  return true;
}

void Server::park(Peer& peer, Request& request) {
  no_longer_under_work();
  if (request.peer.tries > 0) --request.peer.tries;  // waiting is no failure, dying when woken is
  peer.parked = true;
  peer.parked_nonce = request.header.nonce;
  peer.parked_until_ns = request.parked_until_ns;
  sd_event_source_set_io_events(peer.io.get(), 0);  // a hang-up is reported all the same
  if (peer.parked_until_ns != 0 && peer.parked_until_ns != UINT64_MAX) arm_deadlines();
}

void Server::wake_parked() {
  for (auto& [id, peer] : peers_) {
    if (!peer.parked) continue;
    peer.parked = false;
    sd_event_source_set_io_events(peer.io.get(), EPOLLIN);
  }
}

void Server::no_longer_pending(std::uint64_t peer, std::uint64_t nonce) {
  const auto gone = std::erase_if(pending_, [&](const auto& entry) {
    return entry.second.first == peer && (nonce == 0 || entry.second.second == nonce);
  });
  if (gone != 0) wake_parked();
}

/// Whether a step of it is committed already, so that it cannot be refused any more as if nothing had happened.
bool Server::has_begun(const PeerRec& peer, const wire::Header& header) const {
  bool begun = false;
  state_->for_each_update([&](const UpdateRec& update) {
    if (header.command == static_cast<std::uint32_t>(Command::UpdateSimulated) ||
        header.command == static_cast<std::uint32_t>(Command::UpdateKernel))
      begun = begun ||
              (wire::takes_everything(update.kind) && update.requester == peer.id && update.ticket == header.nonce);
    if (header.command == static_cast<std::uint32_t>(Command::TakeOver))
      begun = begun || (update.id == peer.update && update.prepare_ns != 0);
  });
  return begun;
}

Result<Next> Server::hello(Request& request, Reply& reply, Change& change) {
  auto arg = LUO_TRY(wire::parse_arg<wire::HelloArg>(request.payload));
  if (request.peer.hello != 0) return fail(EINVAL, "hello was said already");
  if (arg.reserved != 0) return fail(EINVAL, "hello: reserved is {}", arg.reserved);
  PeerRec& peer = request.peer;
  // Not the whole record: what is outside transactions must not be taken back with this one.
  change.tx.set(peer.hello, 1);
  change.tx.set(peer.capabilities, arg.capabilities & wire::kCapAll);
  change.tx.save(&peer.name, sizeof peer.name);
  wire::put_text(peer.name, wire::text_in(arg.name));
  UpdateRec* update = arg.ticket != 0 ? state_->update_by_ticket(arg.ticket) : nullptr;
  if (update != nullptr && update->phase == static_cast<std::uint32_t>(Phase::Offered) && update->successor == 0) {
    change.tx.set(peer.update, update->id);
    change.tx.set(update->successor, peer.id);
    change.tx.set(update->successor_pid, peer.pid);
  } else {
    arg.ticket = 0;
  }
  arg.size = sizeof arg;
  arg.capabilities = peer.capabilities;
  arg.instance = control_.instance;
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::dispatch(Request& request, Reply& reply, Change& change) {
  const auto command = static_cast<Command>(request.header.command);
  if (command == Command::Hello) return hello(request, reply, change);
  if (request.peer.hello == 0) return fail(EBADMSG, "{} before hello", wire::name_of(request.header.command));
  // What a command takes along is part of its framing.
  const bool may_have_fds = command == Command::PreserveFd || command == Command::PreserveMany ||
                            command == Command::PreserveAfter || command == Command::Present ||
                            command == Command::UpdateLuod;
  if (!may_have_fds && !request.fds.empty())
    return fail(EBADMSG, "{} with {} descriptors", wire::name_of(request.header.command), request.fds.size());
  if (control_.leaving.load() != 0 && !is_allowed_while_leaving(command))
    return fail(EBUSY, "{}: this kernel is being left; what is preserved stays as it is for the next one",
                wire::name_of(request.header.command));
  switch (command) {
    case Command::Hello: break;
    case Command::CreateSession: return create_session(request, reply, change);
    case Command::RetrieveSession: return retrieve_session(request, reply, change);
    case Command::RetrieveWait: return retrieve_wait(request, reply, change);
    case Command::Accept: return accept_session(request, reply, change);
    case Command::Present: return present(request, reply, change);
    case Command::GetName: return get_name(request, reply, change);
    case Command::Finish: return finish(request, reply, change);
    case Command::Renew: return renew(request, reply, change);
    case Command::PreserveFd: return preserve(request, reply, change);
    case Command::PreserveMany: return preserve_many(request, reply, change);
    case Command::UnpreserveFd: return unpreserve(request, reply, change);
    case Command::RetrieveFd: return retrieve(request, reply, change);
    case Command::RetrieveMany: return retrieve_many(request, reply, change);
    case Command::ListTokens: return list_tokens(request, reply, change);
    case Command::PreserveAfter: return preserve_after(request, reply, change);
    case Command::Hold: return hold(request, reply, change);
    case Command::Drop: return drop(request, reply, change);
    case Command::SetEvent: return set_event(request, reply, change);
    case Command::GetState: return get_state(request, reply, change);
    case Command::Subscribe: return subscribe(request, reply, change);
    case Command::Prepared: return prepared(request, reply, change);
    case Command::TakeOver: return take_over(request, reply, change);
    case Command::Query: return query(request, reply, change);
    case Command::UpdateLuod: return update_luod(request, reply, change);
    case Command::UpdateService: return update_service(request, reply, change);
    case Command::UpdateWait: return update_wait(request, reply, change);
    case Command::UpdateCancel: return update_cancel(request, reply, change);
    case Command::UpdateSimulated: return update_simulated(request, reply, change);
    case Command::Stop: return stop(request, reply, change);
    case Command::Inspect: return inspect(request, reply, change);
    case Command::SetOption: return set_option(request, reply, change);
    case Command::UpdateKernel: return update_kernel(request, reply, change);
  }
  // Linux answers EINVAL for a number it does not know (7.3, before it looks at the argument).
  return fail(EINVAL, "command {:#x} is not known", request.header.command);
}

}  // namespace luo::daemon
