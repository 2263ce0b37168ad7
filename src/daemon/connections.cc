// Connections: taking them in, watching them, and what waits on one for its peer to read or for the kernel to have
// memory.
#include <sys/socket.h>

#include "base/log.h"
#include "daemon/out_of_memory.h"
#include "daemon/server.h"

namespace luo::daemon {

void Server::on_accept() {
  if (!not_taken_in_.valid()) {
    Result<Fd> accepted = accept_packets(FdRef::borrow(control_.listen_fd));
    if (!accepted) {
      const int code = accepted.error().code;
      if (code == EAGAIN || code == ECONNABORTED) return;
      return accept_later(accepted.error());
    }
    not_taken_in_ = std::move(*accepted);
  }
  if (auto taken = take_in(not_taken_in_); !taken) return accept_later(taken.error());
}

/// On an error the connection is still the caller's.
Result<> Server::take_in(Fd& connection) {
  const PeerCredentials who = LUO_TRY(peer_credentials(connection));
  Change change{arena_};
  PeerRec* record = LUO_TRY(state_->add_peer(change, connection.raw(), who.uid, who.pid));
  if (auto watched = watch_peer(*record); !watched) {
    state_->forget_unborn(*record);
    return watched;
  }
  (void)connection.release();  // the arena names it now
  change.commit();
  return {};
}

/// No free descriptor, no memory, no watch: new clients wait in the backlog, and one that has left it in our
/// hands, until some are given back.
void Server::accept_later(const Error& why) {
  log(Level::Warning, "accept a client: {}; new clients wait", why);
  sd_event_source_set_enabled(accept_source_.get(), SD_EVENT_OFF);
  const auto again = [](sd_event_source*, std::uint64_t, void* context) {
    Server& server = *static_cast<Server*>(context);
    sd_event_source_set_enabled(server.accept_source_.get(), SD_EVENT_ON);
    if (server.not_taken_in_.valid()) server.on_accept();
    return 0;
  };
  sd_event_source* timer = nullptr;
  if (check_loop(sd_event_add_time_relative(loop_.get(), &timer, CLOCK_MONOTONIC, 100'000, 0, again, this)) >= 0)
    accept_retry_.reset(timer);
}

/// For a descriptor that the last worker left and the arena does not name: taken in if it is a client's.
Result<> Server::adopt_connection(int fd) {
  int type = 0, listening = 0;
  socklen_t size = sizeof type;
  if (!socket_has_path(fd, false, control_.socket_path) || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 ||
      type != SOCK_SEQPACKET || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 || listening != 0)
    return fail(ENOENT, "not a connection to luod");
  const PeerCredentials who = LUO_TRY(peer_credentials(FdRef::borrow(fd)));
  Change change{arena_};
  LUO_TRY(state_->add_peer(change, fd, who.uid, who.pid));
  change.commit();
  return {};
}

Result<> Server::watch_peer(PeerRec& record) {
  struct PeerContext {
    Server* server;
    std::uint64_t id;
  };
  auto context = std::make_unique<PeerContext>(PeerContext{this, record.id});
  const auto ready = [](sd_event_source*, int, std::uint32_t revents, void* opaque) {
    const PeerContext& peer = *static_cast<PeerContext*>(opaque);
    peer.server->on_peer(peer.id, revents);
    return 0;
  };
  sd_event_source* raw = nullptr;
  if (const int r = sd_event_add_io(loop_.get(), &raw, record.fd, EPOLLIN, ready, context.get()); r < 0)
    return fail(-r, "watch a connection: sd_event_add_io({})", record.fd);
  sd_event_source_set_destroy_callback(raw, [](void* p) { delete static_cast<PeerContext*>(p); });
  (void)context.release();  // the source owns it now
  Peer peer;
  peer.id = record.id;
  peer.io.reset(raw);
  peers_.insert_or_assign(record.id, std::move(peer));
  return {};
}

void Server::on_peer(std::uint64_t id, std::uint32_t revents) {
  const auto found = peers_.find(id);
  PeerRec* record = state_->find_peer(id);
  if (found == peers_.end() || record == nullptr) return;
  Peer& peer = found->second;
  if (peer.blocked) {
    if ((revents & (EPOLLHUP | EPOLLERR)) != 0) return drop_peer(id, "closed");
    peer.blocked = false;
    sd_event_source_set_io_events(peer.io.get(), peer.parked ? 0U : static_cast<std::uint32_t>(EPOLLIN));
    const bool had_events = !peer.events.empty();
    while (!peer.events.empty()) {
      const auto sent = send(FdRef::borrow(record->fd), peer.events.front(), {}, MSG_DONTWAIT);
      if (!sent && is_for_later(sent.error().code)) {
        wait_to_send(peer, sent.error().code);
        return;
      }
      peer.events.erase(peer.events.begin());
    }
    if (had_events) events_drained();
    const AnswerRec& last = state_->last_answer(*record);
    wire::Header header{};
    const ssize_t n = recv(record->fd, &header, sizeof header, MSG_PEEK | MSG_DONTWAIT);
    if (n == static_cast<ssize_t>(sizeof header) && header.nonce == last.nonce && last.sent == 0)
      send_answer(peer, *record);
    return;
  }
  if (peer.parked) {
    if ((revents & (EPOLLHUP | EPOLLERR)) != 0) drop_peer(id, "closed");
    return;
  }
  serve(peer, *record);
}

/// A peer that does not read polls writable when it does. That the kernel has memory again, nothing tells: the
/// socket polls writable all the time.
void Server::wait_to_send(Peer& peer, int code) {
  peer.blocked = true;
  const bool by_time = code != EAGAIN && retry_soon(code);
  sd_event_source_set_io_events(peer.io.get(), by_time ? 0U : static_cast<std::uint32_t>(EPOLLOUT));
}

void Server::wait_for_memory(Peer& peer) {
  if (!retry_soon(ENOMEM)) return;
  peer.parked = true;
  sd_event_source_set_io_events(peer.io.get(), 0);
}

bool Server::retry_soon(int code) {
  if (retry_) return true;
  log(Level::Warning, "the kernel cannot take a message for a client, or hand one out ({}); it waits",
      errno_text(code));
  const auto again = [](sd_event_source*, std::uint64_t, void* context) {
    static_cast<Server*>(context)->retry();
    return 0;
  };
  sd_event_source* timer = nullptr;
  if (check_loop(sd_event_add_time_relative(loop_.get(), &timer, CLOCK_MONOTONIC, 10'000, 0, again, this)) < 0)
    return false;
  retry_.reset(timer);
  return true;
}

void Server::retry() {
  retry_.reset();
  for (auto& [id, peer] : peers_)
    if (peer.blocked) sd_event_source_set_io_events(peer.io.get(), EPOLLOUT);
  wake_parked();
}

/// Answers that were committed but perhaps not sent when the last worker died: sent (again) before anything
/// else happens, while the descriptors that they name are still what they were.
void Server::settle_answers() {
  std::vector<std::uint64_t> all;
  state_->for_each_peer([&](PeerRec& peer) { all.push_back(peer.id); });
  for (const std::uint64_t id : all) {
    PeerRec* record = state_->find_peer(id);
    if (record == nullptr) continue;  // dropped with one before
    wire::Header header{};
    const ssize_t n = recv(record->fd, &header, sizeof header, MSG_PEEK | MSG_DONTWAIT);  // no control buffer: no fds
    if (n < static_cast<ssize_t>(sizeof header) || header.nonce == 0) continue;
    const AnswerRec& last = state_->last_answer(*record);
    if (last.nonce != header.nonce) continue;
    if (last.sent != 0) {
      record->out_of_memory = 0;
      if (auto consumed = consume(FdRef::borrow(record->fd)); !consumed) log(Level::Warning, "{}", consumed.error());
      continue;
    }
    send_answer(peers_.at(id), *record);
  }
}

void Server::drop_peer(std::uint64_t id, std::string_view why) {
  PeerRec* record = state_->find_peer(id);
  peers_.erase(id);
  if (!pending_.empty()) no_longer_pending(id, 0);
  if (record == nullptr) return;
  no_longer_under_work(*record);
  log(Level::Debug, "connection {} ({}, pid {}): {}", id, record->name, record->pid, why);
  // Killed between the commit and the close, the next worker would take the connection for a new one.
  shutdown(record->fd, SHUT_RDWR);
  if (probe_ && id == probe_peer_) {
    probe_source_.reset();
    probe_.reset();
  }
  // A step at a time, so that no number of grants makes a transaction that the log cannot hold.
  for (bool more = true; more;) {
    Change step{arena_};
    more = state_->drop_some_grants_of_peer(step, id);
    step.commit();
  }
  Change change{arena_};
  const AnswerRec& last = state_->last_answer(*record);
  // A session that was to be handed out and never left: its read end goes, and with it the session goes
  // back (or away) as after any other last close.
  if (last.hand_session != 0 && last.sent == 0)
    engine_->sent(change, SessionId{last.hand_session}, static_cast<Role>(last.hand_role));
  state_->remove_peer(change, *record);
  change.commit();
  events_drained();
  update_lost_peer(id);
}

}  // namespace luo::daemon
