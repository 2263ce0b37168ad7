// luo.h for C++23: descriptors close themselves, failures are values. Header only; link libluo.
//
//   auto luo = luo::api::Connection::open();
//   auto session = luo->create("vm-7");
//   session->preserve(memfd, 1);
//
// What each call does, its errors, and which threads may call, stands in luo.h.
#ifndef LUO_LUO_HPP
#define LUO_LUO_HPP
#include <luo/luo.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace luo::api {

/// A failed call: a positive errno, and the sentence of luo_last_error().
struct Failure {
  int code;
  std::string text;
};

template <class T>
using Expected = std::expected<T, Failure>;

/// The failure of a call of this thread that has just returned `result` < 0.
inline std::unexpected<Failure> failure(int result) { return std::unexpected(Failure{-result, luo_last_error()}); }

/// Sole owner of a descriptor, or of none (get() == -1).
class Descriptor {
 public:
  Descriptor() noexcept = default;
  explicit Descriptor(int number) noexcept : number_{number} {}
  Descriptor(Descriptor&& from) noexcept : number_{from.release()} {}
  Descriptor& operator=(Descriptor from) noexcept {
    std::swap(number_, from.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int get() const noexcept { return number_; }
  [[nodiscard]] int release() noexcept { return std::exchange(number_, -1); }

 private:
  int number_ = -1;
};

class Connection;

/// A session that this process holds; giving the object up closes the descriptor. Must not outlive its
/// Connection.
class Session {
 public:
  Session(luo_connection* luo, Descriptor fd) noexcept : luo_{luo}, fd_{std::move(fd)} {}

  int fd() const noexcept { return fd_.get(); }
  /// The descriptor, to pass it on: the session lives as long as it is open.
  Descriptor release() && noexcept { return std::move(fd_); }

  Expected<std::string> name() const {
    char text[LUO_NAME_LENGTH];
    if (const int result = luo_session_get_name(luo_, fd(), text); result < 0) return failure(result);
    return std::string{text};
  }
  Expected<void> preserve(int file, std::uint64_t token) { return done(luo_preserve_fd(luo_, fd(), file, token)); }
  Expected<void> unpreserve(std::uint64_t token) { return done(luo_unpreserve_fd(luo_, fd(), token)); }

  /// For a file that depends on others, by their tokens.
  Expected<void> preserve(int file, std::uint64_t token, std::span<const std::uint64_t> after) {
    return done(luo_preserve_fd_after(luo_, fd(), file, token, after.data(), after.size()));
  }
  Expected<void> hold(luo_hold hold) { return done(luo_session_hold(luo_, fd(), hold)); }
  /// "transient" or "grow", each "refuse" or "allow".
  Expected<void> set_option(const char* key, const char* value) {
    return done(luo_session_set_option(luo_, fd(), key, value));
  }
  Expected<void> set_event(luo_event event) { return done(luo_session_set_event(luo_, fd(), event)); }
  Expected<luo_state> state() const {
    const int result = luo_session_get_state(luo_, fd());
    if (result < 0) return failure(result);
    return static_cast<luo_state>(result);
  }

  /// Each file's errno, 0 for those that are preserved. `files` and `tokens` have the same length.
  Expected<std::vector<int>> preserve(std::span<const int> files, std::span<const std::uint64_t> tokens) {
    std::vector<int> errors(files.size());
    if (files.size() != tokens.size()) return std::unexpected(Failure{EINVAL, "as many tokens as files are needed"});
    const int result = luo_preserve_many(luo_, fd(), files.data(), tokens.data(), errors.data(), files.size());
    if (result < 0) return failure(result);
    return errors;
  }

  Expected<Descriptor> retrieve(std::uint64_t token) {
    const int result = luo_retrieve_fd(luo_, fd(), token);
    if (result < 0) return failure(result);
    return Descriptor{result};
  }

  /// Each token's descriptor, or its errno.
  Expected<std::vector<std::expected<Descriptor, int>>> retrieve(std::span<const std::uint64_t> tokens) {
    std::vector<int> numbers(tokens.size());
    std::vector<std::expected<Descriptor, int>> files;
    files.reserve(tokens.size());
    const int result = luo_retrieve_many(luo_, fd(), tokens.data(), numbers.data(), tokens.size());
    if (result < 0) return failure(result);
    for (const int number : numbers) {
      if (number >= 0) files.emplace_back(Descriptor{number});
      else files.emplace_back(std::unexpected(-number));
    }
    return files;
  }

  /// In order of preservation.
  Expected<std::vector<std::uint64_t>> tokens() const {
    std::vector<std::uint64_t> all;
    for (;;) {
      const int count = luo_session_tokens(luo_, fd(), all.data(), all.size());
      if (count < 0) return failure(count);
      const auto n = static_cast<std::size_t>(count);
      const bool whole = n <= all.size();
      all.resize(n);
      if (whole) return all;
    }
  }

  Expected<void> finish() { return done(luo_session_finish(luo_, fd())); }
  Expected<void> renew() { return done(luo_session_renew(luo_, fd())); }
  /// Negative: for ever.
  Expected<void> take_over(std::chrono::milliseconds timeout) {
    return done(luo_session_take_over(luo_, fd(), static_cast<int>(timeout.count())));
  }

 private:
  static Expected<void> done(int result) {
    if (result < 0) return failure(result);
    return {};
  }

  luo_connection* luo_;
  Descriptor fd_;
};

/// What to do when an update is announced. Called from dispatch() only.
struct UpdateCallbacks {
  std::function<void(const luo_update&)> prepare;
  std::function<void(std::uint64_t id, const char* why)> resumed;
  std::function<void(std::uint64_t id)> handed_over;
};

class Connection {
 public:
  /// nullptr: where LUO_SOCKET or the default says.
  static Expected<Connection> open(const char* where = nullptr) {
    luo_connection* luo = nullptr;
    if (const int result = luo_open(where, &luo); result < 0) return failure(result);
    return Connection{luo};
  }

  luo_connection* get() const noexcept { return luo_.get(); }
  bool is_successor() const noexcept { return luo_is_successor(get()) != 0; }

  Expected<Session> create(const char* name) { return session(luo_session_create(get(), name)); }
  Expected<Session> retrieve(const char* name) { return session(luo_session_retrieve(get(), name)); }
  /// Negative: waits for ever.
  Expected<Session> retrieve(const char* name, std::chrono::milliseconds timeout) {
    return session(luo_session_retrieve_wait(get(), name, static_cast<int>(timeout.count())));
  }
  /// A session whose descriptor came from elsewhere.
  Session adopt(Descriptor fd) { return {get(), std::move(fd)}; }

  Expected<void> on_update(UpdateCallbacks callbacks) {
    *callbacks_ = std::move(callbacks);
    const luo_update_callbacks plain{[](void* self, const luo_update* update) {
                                       if (const auto& call = static_cast<UpdateCallbacks*>(self)->prepare)
                                         call(*update);
                                     },
                                     [](void* self, std::uint64_t id, const char* why) {
                                       if (const auto& call = static_cast<UpdateCallbacks*>(self)->resumed)
                                         call(id, why);
                                     },
                                     [](void* self, std::uint64_t id) {
                                       if (const auto& call = static_cast<UpdateCallbacks*>(self)->handed_over)
                                         call(id);
                                     }};
    return done(luo_on_update(get(), &plain, callbacks_.get()));
  }
  /// Polls readable when dispatch() has something to do.
  Expected<int> poll_fd() const { return number(luo_fd(get())); }
  /// Returns how many callbacks ran.
  Expected<int> dispatch() { return number(luo_dispatch(get())); }
  Expected<void> ready(std::uint64_t update) { return done(luo_update_ready(get(), update)); }
  Expected<void> refuse(std::uint64_t update, const char* why) { return done(luo_update_refuse(get(), update, why)); }

 private:
  struct Close {
    void operator()(luo_connection* luo) const noexcept { luo_close(luo); }
  };

  explicit Connection(luo_connection* luo) : luo_{luo}, callbacks_{std::make_unique<UpdateCallbacks>()} {}

  Expected<Session> session(int result) const {
    if (result < 0) return failure(result);
    return Session{get(), Descriptor{result}};
  }
  static Expected<int> number(int result) {
    if (result < 0) return failure(result);
    return result;
  }
  static Expected<void> done(int result) {
    if (result < 0) return failure(result);
    return {};
  }

  std::unique_ptr<luo_connection, Close> luo_;
  std::unique_ptr<UpdateCallbacks> callbacks_;  // at a place of its own: luo.h keeps its address
};

}  // namespace luo::api
#endif
