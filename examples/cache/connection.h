// One client: its socket, and its half-read input and half-written output in the arena.
#pragma once
#include "cache/commands.h"
#include "cache/request.h"
#include "cache/store.h"

namespace luo::cache {

/// How much one peer may make us keep.
struct ConnectionLimits {
  std::size_t request_bytes = 1U << 30;   ///< one request
  std::size_t output_pause = 256U << 20;  ///< while more waits to be sent, its requests wait too
  std::size_t output_bytes = 1U << 30;    ///< one answer on top of that: the connection is closed
  RequestLimits request;
  /// As the defaults, but within what `maxmemory` (0 = no limit) lets one peer use.
  static ConnectionLimits within(std::uint64_t maxmemory) noexcept;
};

/// Loop thread only. Does not close the socket: who owns it says so in close().
class Connection {
 public:
  Connection(Fd socket, ConnectionRecord& record, const ConnectionLimits& limits)
      : socket_{std::move(socket)}, record_{&record}, limits_{&limits}, parser_{limits.request} {}

  enum class State {
    Open,
    Closed,  ///< the peer is gone, broke the protocol or has been answered QUIT: give it up
  };
  /// Receives what fits, once.
  State receive(Store& store);
  /// Executes what has been received and sends the answers, as far as both go.
  State work(Store& store, Interpreter& interpreter, std::int64_t now_ms);
  /// Sends what waits.
  State send(Store& store);

  bool wants_to_send() const noexcept { return record_->output.begin != record_->output.end; }
  bool wants_to_receive() const noexcept {
    return record_->closing == 0 && record_->output.end - record_->output.begin < limits_->output_pause;
  }
  bool has_input() const noexcept { return record_->input.begin != record_->input.end; }
  /// Gives buffers back that have been idle since the last call.
  void trim(Store& store);
  /// What the arena says counts: forgets what was parsed of a request that is still incomplete.
  void restart() noexcept { parser_.reset(); }

  FdRef socket() const noexcept { return socket_; }
  Fd take_socket() noexcept { return std::move(socket_); }
  ConnectionRecord& record() const noexcept { return *record_; }
  std::uint64_t token() const noexcept { return record_->token; }

  std::uint32_t watched = 0;  ///< epoll events asked for; the server's

 private:
  bool execute(Store& store, Interpreter& interpreter, std::int64_t now_ms, State& state);

  Fd socket_;
  ConnectionRecord* record_;
  const ConnectionLimits* limits_;
  RequestParser parser_;
  bool active_ = true;  // since the last trim()
};

}  // namespace luo::cache
