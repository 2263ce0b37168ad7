// A client of luod that says exactly what a test wants it to say, right or wrong.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "wire/message.h"

namespace luo::test {

struct RawAnswer {
  wire::Header header{};
  std::vector<std::byte> payload;
  std::vector<Fd> fds;
  int error() const noexcept { return header.error; }
  /// luod's sentence, if it is an error.
  std::string text() const { return {reinterpret_cast<const char*>(payload.data()), payload.size()}; }
  template <class T>
  T as() const {
    T out{};
    std::memcpy(&out, payload.data(), std::min(sizeof out, payload.size()));
    return out;
  }
};

class RawClient {
 public:
  static Result<RawClient> connect(const std::string& socket);

  Result<> hello(const std::string& name = "raw", std::uint64_t ticket = 0);
  /// Numbers the request, sends it, waits for its answer; events that come first are kept for events().
  template <class Arg>
  Result<RawAnswer> call(wire::Command command, std::uint64_t session, const Arg& arg, std::span<const int> fds = {}) {
    LUO_TRY(post(command, session, arg, fds));
    return answer();
  }
  template <class Arg>
  Result<> post(wire::Command command, std::uint64_t session, const Arg& arg, std::span<const int> fds = {}) {
    wire::Builder builder;
    builder.start(command, ++nonce_, session).add(arg);
    for (const int fd : fds) builder.add_fd(fd);
    return send_bytes(builder.bytes(), fds);
  }
  /// As it is.
  Result<> send_bytes(std::span<const std::byte> bytes, std::span<const int> fds = {}, int flags = 0);
  /// The next answer; ECONNRESET when luod has closed, ETIMEDOUT after 30 s.
  Result<RawAnswer> answer();
  /// The next event, in the same way.
  Result<RawAnswer> event();
  /// Whether luod closes the connection without another word.
  bool closed_by_luod();

  std::uint64_t next_nonce() noexcept { return ++nonce_; }
  FdRef socket() const noexcept { return socket_; }
  void close() noexcept { socket_.close(); }

 private:
  explicit RawClient(Fd socket) : socket_{std::move(socket)} {}
  Result<RawAnswer> receive_one();
  Fd socket_;
  std::uint64_t nonce_ = 0;
  std::vector<RawAnswer> events_;
};

}  // namespace luo::test
