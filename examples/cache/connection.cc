#include "cache/connection.h"

#include <sys/socket.h>

#include <algorithm>

#include "base/log.h"

namespace luo::cache {
namespace {

constexpr std::size_t kReceiveAtLeast = 4096;
constexpr int kRequestsPerBatch = 1024;
constexpr std::size_t kKeptBuffer = 64 * 1024;  // larger ones go back even if they are in use now and then

}  // namespace

ConnectionLimits ConnectionLimits::within(std::uint64_t maxmemory) noexcept {
  ConnectionLimits limits;
  if (maxmemory == 0) return limits;
  const auto bound = [&](std::uint64_t share, std::size_t least, std::size_t most) {
    return static_cast<std::size_t>(std::clamp<std::uint64_t>(share, least, most));
  };
  limits.request_bytes = bound(maxmemory, 1U << 20, limits.request_bytes);
  limits.output_pause = bound(maxmemory / 8, 1U << 20, limits.output_pause);
  limits.output_bytes = bound(maxmemory, 64U << 20, limits.output_bytes);
  limits.request.bulk_bytes = static_cast<std::int64_t>(bound(maxmemory, 1U << 20, 512U << 20));
  return limits;
}

Connection::State Connection::receive(Store& store) {
  active_ = true;
  Buffer input{store.arena(), record_->input};
  if (input.size() >= limits_->request_bytes) {
    log(Level::Notice, "connection {}: one request of more than {} bytes; closed", token(), limits_->request_bytes);
    return State::Closed;
  }
  if (auto made = input.make_space(kReceiveAtLeast); !made) {
    log(Level::Warning, "connection {}: no memory for its input; closed: {}", token(), made.error());
    return State::Closed;
  }
  const ssize_t n = ::recv(socket_.raw(), input.space().data(), input.space().size(), MSG_DONTWAIT);
  if (n > 0) {
    input.filled(static_cast<std::size_t>(n));
    return State::Open;
  }
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return State::Open;
  return State::Closed;
}

// Executes one batch as one transaction (a request with very many keys takes more). False: there is
// nothing more to execute now.
bool Connection::execute(Store& store, Interpreter& interpreter, std::int64_t now_ms, State& state) {
  Buffer input{store.arena(), record_->input};
  auto status = parser_.parse(input.bytes());
  if (status == RequestParser::Status::Partial) return false;
  Batch batch{store.arena(), *record_};
  Reply reply{Buffer{store.arena(), record_->output}, batch.tx(), limits_->output_bytes};
  int requests = 0;
  while (status == RequestParser::Status::Complete) {
    if (!parser_.arguments().empty()) interpreter.run(parser_.arguments(), batch, reply, *record_, now_ms);
    input.taken(parser_.consumed());
    if (record_->closing != 0 || reply.overflowed()) break;
    if (++requests == kRequestsPerBatch || !batch.has_room() || reply.pending() >= limits_->output_pause) break;
    status = parser_.parse(input.bytes());
  }
  if (status == RequestParser::Status::Bad) {
    reply.error(std::string{"ERR "}.append(parser_.error()));
    batch.tx().set(record_->closing, 1);
  }
  if (reply.overflowed()) {
    log(Level::Notice, "connection {}: more than {} bytes of answers wait, or no memory for them; closed", token(),
        limits_->output_bytes);
    state = State::Closed;
  }
  if (input.empty()) input.rewind();
  batch.commit();
  return state == State::Open && record_->closing == 0 && status == RequestParser::Status::Complete;
}

Connection::State Connection::work(Store& store, Interpreter& interpreter, std::int64_t now_ms) {
  for (State state = State::Open;;) {
    const bool paused = !wants_to_receive();
    const bool more = !paused && execute(store, interpreter, now_ms, state);
    if (state == State::Open && (wants_to_send() || record_->closing != 0)) state = send(store);
    if (state == State::Closed) return state;
    // What waited for the output to drain can go on now.
    if (!more && !(paused && wants_to_receive())) return state;
  }
}

Connection::State Connection::send(Store& store) {
  active_ = true;
  Buffer output{store.arena(), record_->output};
  while (!output.empty()) {
    const ssize_t n = ::send(socket_.raw(), output.bytes().data(), output.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      output.taken(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      return State::Open;
    } else if (errno != EINTR) {
      return State::Closed;
    }
  }
  return record_->closing != 0 ? State::Closed : State::Open;
}

void Connection::trim(Store& store) {
  const bool idle = !active_;
  active_ = false;
  for (BufferRecord* record : {&record_->input, &record_->output}) {
    if (record->block == 0 || record->begin != record->end || (!idle && record->room <= kKeptBuffer)) continue;
    kho::Tx tx{store.arena()};
    Buffer{store.arena(), *record}.drop(tx);
    tx.commit();
  }
}

}  // namespace luo::cache
