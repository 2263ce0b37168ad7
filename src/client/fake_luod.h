// A luod that follows a script: the other end of the socket in tests of the client. The script runs in
// a thread of its own; what it does not expect fails the test and ends the connection.
#pragma once
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "sys/memfd.h"
#include "sys/packet_socket.h"
#include "sys/pipe.h"
#include "wire/message.h"

namespace luo::client {

class FakeLuod {
 public:
  struct Request {
    wire::Header header{};
    std::vector<std::byte> payload;
    std::vector<Fd> fds;

    template <class T>
    T arg() const {
      const auto parsed = wire::parse_arg<T>(payload);
      EXPECT_TRUE(parsed) << (parsed ? "" : parsed.error().what);
      return parsed ? *parsed : T{};
    }
  };
  using Script = std::function<void(FakeLuod&)>;

  /// Serves one connection with `script`, after HELLO if `greet`.
  explicit FakeLuod(Script script, bool greet = true) {
    char name[] = "/tmp/luo-fake-XXXXXX";
    folder_ = mkdtemp(name);
    listener_ = listen_packets(path(), 8).value();
    thread_ = std::thread{[this, script = std::move(script), greet] {
      if (!wait_for(listener_)) return;
      socket_ = accept_packets(listener_).value();
      if (greet) this->greet();
      script(*this);
      socket_.close();
    }};
  }
  ~FakeLuod() {
    join();
    unlink(path().c_str());
    rmdir(folder_.c_str());
  }
  FakeLuod(const FakeLuod&) = delete;
  FakeLuod& operator=(const FakeLuod&) = delete;

  std::string path() const { return folder_ + "/luod.sock"; }
  /// The script has ended.
  void join() {
    if (thread_.joinable()) thread_.join();
  }

  // --- for scripts ---------------------------------------------------------------------------------
  void greet() {
    hello = expect(wire::Command::Hello);
    auto arg = hello.arg<wire::HelloArg>();
    arg.instance = 77;
    answer(hello, 0, arg);
  }

  /// Serves a second connection from now on; returns the first, for use().
  Fd accept_another() {
    Fd first = std::move(socket_);
    if (wait_for(listener_)) socket_ = accept_packets(listener_).value();
    return first;
  }
  void use(Fd connection) { socket_ = std::move(connection); }

  /// The next request, whatever it is; a zero command if none comes or the client is gone.
  Request next() {
    Request request;
    if (!wait_for(socket_)) return request;
    auto got = receive(socket_, buffer_, 0);
    if (!got || got->eof) return request;
    const auto bytes = std::span{buffer_}.first(got->bytes);
    const auto header = wire::parse_header(bytes, got->fds.size());
    EXPECT_TRUE(header);
    if (!header) return request;
    request.header = *header;
    const auto payload = wire::payload_of(bytes);
    request.payload = {payload.begin(), payload.end()};
    request.fds = std::move(got->fds);
    return request;
  }
  Request expect(wire::Command command) {
    Request request = next();
    EXPECT_EQ(wire::name_of(request.header.command), wire::name_of(static_cast<std::uint32_t>(command)));
    return request;
  }
  /// The client has closed its connection and asked for nothing more.
  void expect_end() { EXPECT_EQ(next().header.command, 0U); }

  template <class T = wire::PlainArg>
  void answer(const Request& to, int error = 0, const T& arg = T{}, std::span<const int> fds = {},
              std::uint64_t session = 0) {
    builder_.start(to.header.command, to.header.nonce, session != 0 ? session : to.header.session, error);
    if (error == 0) builder_.arg(arg);
    for (const int fd : fds) builder_.add_fd(fd);
    post();
  }
  void refuse(const Request& to, int error, std::string_view why) {
    builder_.start(to.header.command, to.header.nonce, to.header.session, error);
    builder_.add_bytes(std::as_bytes(std::span{why}));
    post();
  }
  /// With a report in a memfd; with an errno too, as luod does for updates that failed.
  void report(const Request& to, std::string_view text, int error = 0) {
    const Fd file = sealed_memfd("report", text).value();
    const int number = file.raw();
    answer(to, error, wire::PlainArg{}, {&number, 1});
  }
  template <class T>
  void event(wire::Event kind, const T& arg) {
    builder_.start(static_cast<std::uint32_t>(kind), 0, 0).arg(arg);
    post();
  }
  void post() { EXPECT_TRUE(send(socket_, builder_.bytes(), builder_.fds())); }
  void raw(std::string_view bytes) { EXPECT_TRUE(send(socket_, std::as_bytes(std::span{bytes}), {})); }

  /// Hands a new session out with this handle and expects that it is accepted. Returns luod's end.
  Fd hand_out(wire::Command command, std::uint64_t handle) {
    const Request request = expect(command);
    Pipe pipe = make_pipe().value();
    const int number = pipe.read.raw();
    answer(request, 0, wire::NameArg{}, {&number, 1}, handle);
    pipe.read.close();
    const Request accept = expect(wire::Command::Accept);
    EXPECT_EQ(accept.header.session, handle);
    answer(accept);
    return std::move(pipe.write);
  }

  Request hello;
  wire::Builder& builder() { return builder_; }
  FdRef socket() const { return socket_; }

 private:
  static bool wait_for(const Fd& fd) {
    pollfd wait{fd.raw(), POLLIN, 0};
    const int n = poll(&wait, 1, 20'000);
    EXPECT_EQ(n, 1) << "nothing came from the client";
    return n == 1;
  }

  std::string folder_;
  Fd listener_, socket_;
  wire::Builder builder_;
  std::array<std::byte, wire::kMaxMessage> buffer_{};
  std::thread thread_;
};

}  // namespace luo::client
