#include "support/luod_raw_client.h"

#include <poll.h>

#include "sys/packet_socket.h"

namespace luo::test {

Result<RawClient> RawClient::connect(const std::string& socket) { return RawClient{LUO_TRY(connect_packets(socket))}; }

Result<> RawClient::hello(const std::string& name, std::uint64_t ticket) {
  wire::HelloArg arg{};
  arg.size = sizeof arg;
  arg.capabilities = wire::kCapAll;
  arg.ticket = ticket;
  wire::put_text(arg.name, name);
  const RawAnswer answer = LUO_TRY(call(wire::Command::Hello, 0, arg));
  if (answer.error() != 0) return fail(answer.error(), "hello: {}", answer.text());
  return {};
}

Result<> RawClient::send_bytes(std::span<const std::byte> bytes, std::span<const int> fds, int flags) {
  return send(socket_, bytes, fds, flags);
}

Result<RawAnswer> RawClient::receive_one() {
  pollfd waits{socket_.raw(), POLLIN, 0};
  int n = 0;
  do n = poll(&waits, 1, 30'000);
  while (n < 0 && errno == EINTR);
  if (n == 0) return fail(ETIMEDOUT, "luod does not answer");
  std::vector<std::byte> buffer(wire::kMaxMessage);
  Received got = LUO_TRY(receive(socket_, buffer, 0));
  if (got.eof) return fail(ECONNRESET, "luod closed the connection");
  if (got.bytes < sizeof(wire::Header)) return fail(EPROTO, "{} bytes", got.bytes);
  RawAnswer answer;
  std::memcpy(&answer.header, buffer.data(), sizeof answer.header);
  answer.payload.assign(buffer.begin() + sizeof answer.header, buffer.begin() + static_cast<std::ptrdiff_t>(got.bytes));
  answer.fds = std::move(got.fds);
  return answer;
}

Result<RawAnswer> RawClient::answer() {
  for (;;) {
    RawAnswer got = LUO_TRY(receive_one());
    if (got.header.nonce == 0) events_.push_back(std::move(got));
    else if (got.header.nonce >= nonce_)  // an older one: given again by a luod that was killed
      return got;
  }
}

Result<RawAnswer> RawClient::event() {
  while (events_.empty()) {
    RawAnswer got = LUO_TRY(receive_one());
    if (got.header.nonce == 0) events_.push_back(std::move(got));
  }
  RawAnswer first = std::move(events_.front());
  events_.erase(events_.begin());
  return first;
}

bool RawClient::closed_by_luod() {
  const auto got = receive_one();
  return !got && got.error().code == ECONNRESET;
}

}  // namespace luo::test
