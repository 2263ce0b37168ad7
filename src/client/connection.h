// A connection to luod: requests with a nonce, answers to them, events in between. What luod does to it
// (a second answer after a crash, an event at any time) ends here.
//
// One thread at a time, except that events() may be used from any.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "client/event_queue.h"
#include "sys/packet_socket.h"
#include "wire/message.h"

namespace luo::client {

struct Answer {
  wire::Header header;  ///< .error is luod's verdict: 0 or a positive errno, and then the payload may be a sentence
  std::vector<std::byte> payload;
  std::vector<Fd> fds;
  bool fds_missing = false;  ///< there was no free number for some (the first ones are here)
};

/// The answer if luod did what it was asked, else its errno and sentence.
Result<Answer> verdict(Answer answer);

struct Introduction {
  std::string name;          ///< of the program, for people
  std::uint64_t ticket = 0;  ///< of the update whose successor this process is, 0 if none
};

class Connection {
 public:
  /// Connects and says hello; waits for as long as luod is being replaced. Errors: those of
  /// connect_packets(); EPROTO what answers is not a luod.
  static Result<Connection> open(const std::string& path, const Introduction& who);
  /// The same over a socket that is connected already.
  static Result<Connection> over(Fd socket, const Introduction& who);

  /// Sends a request (its nonce is put in here) and waits for its answer. Events that come in between are queued. A
  /// luod that dies meanwhile is waited for. Errors: EBADF, EINVAL, ETOOMANYREFS: a descriptor cannot be
  /// sent, nothing was sent; ECONNRESET: luod is gone; EPROTO: it sends what it must not. After the last two
  /// the connection is of no use any more and gives the same error each time.
  Result<Answer> call(wire::Builder& request);

  /// `count` requests, sent without waiting for each other's answers, so that luod and we need not take turns for each.
  /// build(i) returns the i-th one, and may be called for it more than once; take(i, ...) gets its answer, or why it
  /// was not sent (EBADF, EINVAL, ETOOMANYREFS), in order. Errors: ECONNRESET, EPROTO; take() was not called for the
  /// rest.
  Result<> call_each(std::size_t count, const std::function<wire::Builder&(std::size_t)>& build,
                     const std::function<void(std::size_t, Result<Answer>)>& take);

  /// The two halves of call(), for one who waits for other things too: socket() polls readable when
  /// take_answer() should be tried. It returns nothing while the answer is not there yet.
  Result<> post(wire::Builder& request);
  Result<std::optional<Answer>> take_answer();

  /// Queues the events that have arrived; does not wait. No answer may be outstanding.
  Result<> take_events();

  EventQueue& events() noexcept { return *events_; }
  FdRef socket() const noexcept { return socket_; }
  std::uint64_t capabilities() const noexcept { return hello_.capabilities; }
  const wire::HelloArg& hello() const noexcept { return hello_; }

 private:
  Connection(Fd socket, std::unique_ptr<EventQueue> events);
  Result<> say_hello(const Introduction& who);
  Result<> send_next(wire::Builder& request, int flags);
  Result<std::optional<Answer>> receive_one(int flags);
  std::unexpected<Error> broken(Error why);

  Fd socket_;
  std::unique_ptr<EventQueue> events_;
  std::unique_ptr<std::byte[]> buffer_;
  Received received_;
  std::uint64_t last_nonce_ = 0;  ///< of what was sent
  std::uint64_t awaited_ = 0;     ///< whose answer comes next; those before it have been given up or answered
  std::optional<Error> broken_;
  wire::HelloArg hello_{};
};

}  // namespace luo::client
