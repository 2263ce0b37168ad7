#include "resp_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <charconv>
#include <iterator>

namespace demo {
namespace {

luo::Result<std::int64_t> parse_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    return luo::fail(EPROTO, "number '{}' in an answer", text);
  return value;
}

}  // namespace

luo::Result<RespClient> RespClient::connect(std::uint16_t port) {
  RespClient client;
  client.socket_ = luo::Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!client.socket_.valid()) return luo::sys_fail("socket");
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int on = 1;
  setsockopt(client.socket_.raw(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const timeval patience{.tv_sec = kPatienceSeconds, .tv_usec = 0};
  setsockopt(client.socket_.raw(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(client.socket_.raw(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  if (::connect(client.socket_.raw(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0)
    return luo::sys_fail("connect 127.0.0.1:{}", port);
  return client;
}

void RespClient::encode(std::string& out, std::initializer_list<std::string_view> words) {
  fmt::format_to(std::back_inserter(out), "*{}\r\n", words.size());
  for (const std::string_view word : words) {
    fmt::format_to(std::back_inserter(out), "${}\r\n", word.size());
    out.append(word);
    out.append("\r\n");
  }
}

luo::Result<> RespClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket_.raw(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return luo::sys_fail("send");
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

luo::Result<> RespClient::fill() {
  if (at_ == input_.size()) {
    input_.clear();
    at_ = 0;
  }
  constexpr std::size_t kRead = 64 * 1024;
  const std::size_t had = input_.size();
  input_.resize(had + kRead);
  for (;;) {
    const ssize_t n = ::recv(socket_.raw(), input_.data() + had, kRead, 0);
    if (n < 0 && errno == EINTR) continue;
    const int code = errno;
    input_.resize(had + (n > 0 ? static_cast<std::size_t>(n) : 0));
    if (n > 0) return {};
    if (n == 0) return luo::fail(ECONNRESET, "receive: the server closed the connection");
    errno = code == EAGAIN ? ETIMEDOUT : code;
    return luo::sys_fail("receive");
  }
}

luo::Result<std::string_view> RespClient::line() {
  for (std::size_t from = at_;;) {
    const std::size_t end = input_.find("\r\n", from);
    if (end != std::string::npos) {
      const std::string_view found{input_.data() + at_, end - at_};
      at_ = end + 2;
      return found;
    }
    const std::size_t unread = input_.size() - at_;
    LUO_TRY(fill());
    from = at_ + (unread > 0 ? unread - 1 : 0);
  }
}

luo::Result<> RespClient::receive(Reply& reply) {
  const std::string_view first = LUO_TRY(line());
  if (first.empty()) return luo::fail(EPROTO, "an empty line as an answer");
  const std::string_view rest = first.substr(1);
  switch (first[0]) {
    case '+':
      reply.kind = Reply::Kind::Status;
      reply.text = rest;
      return {};
    case '-':
      reply.kind = Reply::Kind::Error;
      reply.text = rest;
      return {};
    case ':':
      reply.kind = Reply::Kind::Integer;
      reply.integer = LUO_TRY(parse_number(rest));
      return {};
    case '$': {
      const std::int64_t length = LUO_TRY(parse_number(rest));
      if (length < 0) {
        reply.kind = Reply::Kind::Nil;
        return {};
      }
      const auto bytes = static_cast<std::size_t>(length);
      while (input_.size() - at_ < bytes + 2) LUO_TRY(fill());
      reply.kind = Reply::Kind::Bulk;
      reply.text.assign(input_, at_, bytes);
      if (input_.compare(at_ + bytes, 2, "\r\n") != 0) return luo::fail(EPROTO, "a bulk answer of the wrong length");
      at_ += bytes + 2;
      return {};
    }
    default: return luo::fail(EPROTO, "an answer starts with '{}'", first[0]);
  }
}

luo::Result<Reply> RespClient::call(std::initializer_list<std::string_view> words) {
  output_.clear();
  encode(output_, words);
  LUO_TRY(send(output_));
  Reply reply;
  LUO_TRY(receive(reply));
  return reply;
}

}  // namespace demo
