#include "client/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>

namespace luo::client {

Result<Answer> verdict(Answer answer) {
  if (answer.header.error == 0) return answer;
  std::string text{reinterpret_cast<const char*>(answer.payload.data()), answer.payload.size()};
  // It may quote names that others chose; what is printed must not command a terminal.
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return std::unexpected(Error{answer.header.error, std::move(text)});
}

Connection::Connection(Fd socket, std::unique_ptr<EventQueue> events)
    : socket_{std::move(socket)}, events_{std::move(events)}, buffer_{new std::byte[wire::kMaxMessage]} {}

Result<Connection> Connection::open(const std::string& path, const Introduction& who) {
  auto socket = connect_packets(path);
  if (!socket && socket.error().code == EPROTOTYPE) socket.error().code = EPROTO;
  return over(LUO_TRY(std::move(socket)), who);
}

Result<Connection> Connection::over(Fd socket, const Introduction& who) {
  auto events = LUO_TRY(EventQueue::open(socket));
  Connection connection{std::move(socket), std::move(events)};
  LUO_TRY_DURING("say hello to luod", connection.say_hello(who));
  return connection;
}

Result<> Connection::say_hello(const Introduction& who) {
  wire::Builder request;
  wire::HelloArg hello{};
  hello.capabilities = wire::kCapAll;
  hello.ticket = who.ticket;
  wire::put_text(hello.name, who.name);
  request.start(wire::Command::Hello, 0, 0).arg(hello);
  Answer raw = LUO_TRY(call(request));
  const Answer answer = LUO_TRY(verdict(std::move(raw)));
  auto parsed = wire::parse_arg<wire::HelloArg>(answer.payload);
  if (!parsed) return broken(Error{EPROTO, "answer to HELLO: " + parsed.error().what});
  hello_ = *parsed;
  hello_.capabilities &= wire::kCapAll;
  return {};
}

std::unexpected<Error> Connection::broken(Error why) {
  broken_ = std::move(why);
  // luod learns of it now; the number stays ours, because others poll it.
  shutdown(socket_.raw(), SHUT_RDWR);
  return std::unexpected(*broken_);
}

Result<Answer> Connection::call(wire::Builder& request) {
  LUO_TRY(post(request));
  for (;;)
    if (auto answer = LUO_TRY(receive_one(0))) return std::move(*answer);
}

Result<> Connection::post(wire::Builder& request) {
  LUO_TRY(send_next(request, 0));
  awaited_ = last_nonce_;
  return {};
}

Result<> Connection::call_each(std::size_t count, const std::function<wire::Builder&(std::size_t)>& build,
                               const std::function<void(std::size_t, Result<Answer>)>& take) {
  // What waits in the two sockets' queues: no more descriptors than one message may have, of which a user without
  // privileges cannot have many on the way.
  constexpr std::size_t kMostInFlight = 32;
  std::array<std::size_t, kMostInFlight> fds_of{};
  std::size_t fds = 0;
  awaited_ = last_nonce_ + 1;
  struct GivesUpTheRest {  // build() or take() may throw
    Connection& c;
    ~GivesUpTheRest() { c.awaited_ = c.last_nonce_ + 1; }
  } const gives_up{*this};
  for (std::size_t sent = 0, answered = 0; answered < count;) {
    while (sent < count && sent - answered < kMostInFlight) {
      const bool alone = sent == answered;
      wire::Builder& request = build(sent);
      if (!alone && fds + request.fds().size() > wire::kMaxFds) break;
      auto posted = send_next(request, alone ? 0 : MSG_DONTWAIT);
      if (!posted && broken_) return posted;
      if (!posted && !alone) break;  // answers that are taken make room; what is wrong with it is told in its turn
      fds_of[sent++ % kMostInFlight] = posted ? request.fds().size() : 0;
      if (posted) fds += request.fds().size();
      else take(answered++, std::unexpected(std::move(posted).error()));
    }
    if (answered == sent) continue;
    auto answer = LUO_TRY(receive_one(0));
    if (!answer) continue;
    ++awaited_;
    fds -= fds_of[answered % kMostInFlight];
    take(answered++, std::move(*answer));
  }
  return {};
}

Result<> Connection::send_next(wire::Builder& request, int flags) {
  if (broken_) return std::unexpected(*broken_);
  request.set_nonce(last_nonce_ + 1);
  auto sent = send(socket_, request.bytes(), request.fds(), flags);
  if (!sent) {
    if (sent.error().code == EPIPE || sent.error().code == ECONNRESET)
      return broken(Error{ECONNRESET, "luod closed the connection"});
    return sent;
  }
  ++last_nonce_;
  return {};
}

Result<std::optional<Answer>> Connection::take_answer() {
  for (;;) {
    auto answer = receive_one(MSG_DONTWAIT);
    if (!answer && answer.error().code == EAGAIN) return std::nullopt;
    if (!answer || *answer) return answer;
  }
}

Result<> Connection::take_events() {
  for (;;) {
    auto answer = receive_one(MSG_DONTWAIT);
    if (!answer && answer.error().code == EAGAIN) return {};
    if (!answer) return std::unexpected(std::move(answer).error());
    // An answer here is the second one to our last request: luod crashed after it had sent the first.
  }
}

/// Receives one message. Nothing: it was an event (queued now) or an answer that nobody waits for any more.
Result<std::optional<Answer>> Connection::receive_one(int flags) {
  if (broken_) return std::unexpected(*broken_);
  const std::span buffer{buffer_.get(), wire::kMaxMessage};
  if (auto got = receive(socket_, buffer, received_, flags); !got) {
    if (got.error().code == EAGAIN) return std::unexpected(std::move(got).error());
    return broken(Error{got.error().code == ECONNRESET ? ECONNRESET : EPROTO, got.error().what});
  }
  if (received_.eof) return broken(Error{ECONNRESET, "luod closed the connection"});
  if (received_.truncated) return broken(Error{EPROTO, fmt::format("luod sent over {} bytes", wire::kMaxMessage)});

  // Descriptors that found no number are luod's announcement less what came: only then they may differ.
  const auto datagram = buffer.first(received_.bytes);
  std::size_t announced = received_.fds.size();
  if (received_.control_truncated && datagram.size() >= sizeof(wire::Header)) {
    wire::Header raw;
    std::memcpy(&raw, datagram.data(), sizeof raw);
    announced = std::max<std::size_t>(announced, raw.fds);
  }
  auto header = wire::parse_header(datagram, announced);
  if (!header) return broken(Error{EPROTO, "message from luod: " + header.error().what});
  const auto payload = wire::payload_of(datagram);

  // What came with a message that we drop is closed now: a session fd kept here would keep a session alive.
  if (header->nonce == 0) {
    received_.fds.clear();
    auto queued = events_->push({header->command, {payload.begin(), payload.end()}});
    if (!queued) return broken(std::move(queued).error());
    return std::nullopt;
  }
  if (header->nonce < awaited_) {  // luod crashed after answering, and answered again
    received_.fds.clear();
    return std::nullopt;
  }
  if (header->nonce > awaited_) return broken(Error{EPROTO, "luod answered what nobody asked"});
  if (header->error < 0 || header->error > 4095)
    return broken(Error{EPROTO, fmt::format("luod answered with error {}", header->error)});
  Answer answer{*header, {payload.begin(), payload.end()}, {}, received_.control_truncated};
  answer.fds.swap(received_.fds);
  return answer;
}

}  // namespace luo::client
