// What the engine's tests share: a world with an arena, an engine, and handlers that write down how they
// are called. Sessions are held by real pipes, files are real memfds.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "luo/engine.h"

namespace luo::testing {

using Calls = std::vector<std::string>;

/// Takes the files that `wants` likes; writes "call token" into a log shared by several.
class FakeHandler final : public Handler {
 public:
  FakeHandler(std::string name, Calls& calls) : name_{std::move(name)}, calls_{&calls} {}
  std::string_view name() const noexcept override { return name_; }
  bool can_preserve(const FileInfo& file) const noexcept override { return wants(file); }
  Identity identity(const FileInfo& file) const noexcept override {
    return identify ? identify(file) : Handler::identity(file);
  }
  Result<HandlerData> preserve(const FileInfo&, SessionId, Token token) override {
    note("preserve", token);
    if (const int code = error_for("preserve", token)) return fail(code, "fake preserve");
    return HandlerData{token.raw(), 1, 0, 0};
  }
  void unpreserve(const KeptFile& f) noexcept override { note("unpreserve", f.token); }
  Result<HandlerData> freeze(const KeptFile& f) override {
    note("freeze", f.token);
    if (const int code = error_for("freeze", f.token)) return fail(code, "fake freeze");
    HandlerData data = f.data;
    ++data[1];
    return data;
  }
  void unfreeze(const KeptFile& f) noexcept override { note("unfreeze", f.token); }
  Result<> retrieve(const KeptFile& f) override {
    note("retrieve", f.token);
    if (const int code = error_for("retrieve", f.token)) return fail(code, "fake retrieve");
    return {};
  }
  bool can_finish(const KeptFile& f) const noexcept override {
    note("can_finish", f.token);
    return error_for("can_finish", f.token) == 0;
  }
  void finish(const KeptFile& f, bool retrieved) noexcept override { note(retrieved ? "finish+" : "finish-", f.token); }

  std::function<bool(const FileInfo&)> wants = [](const FileInfo& f) {
    return S_ISREG(f.st.st_mode) && f.st.st_nlink == 0;
  };
  std::function<Identity(const FileInfo&)> identify;
  std::map<std::string, int> errors;  ///< "freeze 7" → errno

 private:
  void note(const char* call, Token token) const { calls_->push_back(fmt::format("{} {}", call, token.raw())); }
  int error_for(const char* call, Token token) const {
    const auto found = errors.find(fmt::format("{} {}", call, token.raw()));
    return found == errors.end() ? 0 : found->second;
  }
  std::string name_;
  Calls* calls_;
};

/// Writes down how it is called; its object is itself.
class FakeFlb final : public Flb {
 public:
  FakeFlb(std::string name, Calls& calls) : name_{std::move(name)}, calls_{&calls} {}
  std::string_view name() const noexcept override { return name_; }
  Result<State> preserve() override {
    calls_->push_back("preserve " + name_);
    if (preserve_error != 0) return fail(preserve_error, "fake FLB");
    return State{++data, no_object ? nullptr : this};
  }
  void unpreserve(const State& state) noexcept override {
    calls_->push_back("unpreserve " + name_);
    last = state;
  }
  Result<void*> retrieve(std::uint64_t came) override {
    calls_->push_back(fmt::format("retrieve {} {}", name_, came));
    if (retrieve_error != 0) return fail(retrieve_error, "fake FLB");
    return this;
  }
  Result<void*> reattach(std::uint64_t came) override {
    calls_->push_back(fmt::format("reattach {} {}", name_, came));
    return this;
  }
  void finish(const State& state) noexcept override {
    calls_->push_back(fmt::format("finish {} {}", name_, state.data));
    last = state;
  }
  void forget(void*) noexcept override { calls_->push_back("forget " + name_); }
  int preserve_error = 0, retrieve_error = 0;
  bool no_object = false;
  std::uint64_t data = 100;
  State last;

 private:
  std::string name_;
  Calls* calls_;
};

inline Fd memfd() { return Fd::adopt(memfd_create("test", MFD_CLOEXEC)); }
inline Fd duplicate(const Fd& fd) { return Fd::adopt(fcntl(fd.raw(), F_DUPFD_CLOEXEC, 0)); }
inline bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

/// A session fd: what the client has, and what the engine gets.
struct Capability {
  Fd client;
  Holder holder;  ///< its descriptors belong to the engine once a step that names them is committed
};
inline Capability capability(bool accepted = true) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) std::abort();
  struct stat st {};
  fstat(ends[0], &st);
  return {Fd::adopt(ends[0]), Holder{ends[1], -1, st.st_ino, accepted, PeerId{1}}};
}
inline bool pipe_is_closed(int write_fd) {
  pollfd p{write_fd, 0, 0};
  return poll(&p, 1, 0) == 1 && (p.revents & POLLERR) != 0;
}

struct Name {
  char bytes[64] = {};
  explicit Name(std::string_view text) { text.copy(bytes, sizeof bytes); }
  operator std::span<const char, 64>() const { return std::span<const char, 64>{bytes}; }
};

class World {
 public:
  /// Some worlds have thousands of sessions.
  static void raise_fd_limit() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  }
  explicit World(std::vector<Handler*> handlers = {}, Bytes arena_size = 256_MiB) {
    raise_fd_limit();
    if (handlers.empty()) handlers.push_back(&fake);
    for (Handler* handler : handlers) EXPECT_TRUE(registry.add(*handler).has_value());
    auto made = kho::Arena::create({.name = "engine-test", .layout = Engine::kLayout, .max_size = arena_size});
    EXPECT_TRUE(made.has_value());
    arena.emplace(std::move(*made));
    open();
  }
  ~World() {
    std::vector<int> fds;
    if (engine) engine->append_fds(fds);
    for (const int fd : fds) ::close(fd);
  }

  void open() {
    auto opened = Engine::open(*arena, registry, [this](int fd) {
      ++asked;
      return pipe_is_closed(fd);
    });
    ASSERT_TRUE(opened.has_value()) << to_string(opened.error());
    engine.emplace(std::move(*opened));
  }
  /// As the next worker does.
  void reopen() {
    engine.reset();
    auto again = kho::Arena::open(arena->release(), Engine::kLayout);
    ASSERT_TRUE(again.has_value()) << to_string(again.error());
    arena.emplace(std::move(*again));
    open();
  }
  void expect_sound() {
    const auto sound = engine->check();
    EXPECT_TRUE(sound.has_value()) << to_string(sound.error());
    EXPECT_TRUE(arena->check().has_value());
  }

  /// One operation, one step; committed also if it failed, as luod does for its answer.
  template <class Do>
  auto step(Do&& what) {
    Change change{*arena};
    auto result = what(change);
    change.commit();
    return result;
  }
  template <class Do>
  void run(Do&& what) {
    Change change{*arena};
    what(change);
    change.commit();
  }

  Result<SessionId> try_create(std::string_view name, const Holder& holder) {
    return step([&](Change& c) { return engine->create_session(c, Name{name}, holder, {1, 100}, 5); });
  }
  /// The client's end is kept in `clients`, by id.
  SessionId create(std::string_view name) {
    Capability cap = capability();
    auto id = try_create(name, cap.holder);
    EXPECT_TRUE(id.has_value()) << to_string(id.error());
    if (!id) return {};
    clients[*id] = std::move(cap.client);
    return *id;
  }
  Result<SessionId> try_retrieve_session(std::string_view name, const Holder& holder) {
    return step([&](Change& c) { return engine->retrieve_session(c, Name{name}, holder, {2, 200}); });
  }
  SessionId retrieve_session(std::string_view name, bool accepted = true) {
    Capability cap = capability(accepted);
    auto id = try_retrieve_session(name, cap.holder);
    EXPECT_TRUE(id.has_value()) << to_string(id.error());
    if (!id) return {};
    clients[*id] = std::move(cap.client);
    return *id;
  }
  Result<> try_preserve(SessionId id, std::uint64_t token, Fd fd, int client_errno = 0) {
    auto result = step([&](Change& c) { return engine->preserve(c, id, {Token{token}, fd.raw(), client_errno}); });
    if (result) (void)fd.release();
    return result;
  }
  void preserve(SessionId id, std::uint64_t token, Fd fd = memfd()) {
    const auto result = try_preserve(id, token, std::move(fd));
    EXPECT_TRUE(result.has_value()) << to_string(result.error());
  }
  Result<> unpreserve(SessionId id, std::uint64_t token) {
    return step([&](Change& c) { return engine->unpreserve(c, id, Token{token}); });
  }
  Result<int> retrieve(SessionId id, std::uint64_t token, Role role = Role::Owner) {
    return step([&](Change& c) { return engine->retrieve(c, id, role, Token{token}); });
  }
  Result<> finish(SessionId id) {
    return step([&](Change& c) { return engine->finish(c, id); });
  }
  void closed(SessionId id, Role role = Role::Owner) {
    run([&](Change& c) { engine->holder_closed(c, id, role); });
  }
  /// Freeze and cross; the clients' ends are gone afterwards.
  void cross() {
    const auto frozen = engine->freeze_all();
    ASSERT_TRUE(frozen.has_value()) << to_string(frozen.error().error);
    const auto crossed = step([&](Change& c) { return engine->cross(c); });
    ASSERT_TRUE(crossed.has_value()) << to_string(crossed.error());
    clients.clear();
  }
  std::vector<std::uint64_t> tokens(SessionId id) {
    std::vector<std::uint64_t> all;
    engine->for_each_file(id, [&](const FileView& f) { all.push_back(f.token.raw()); });
    return all;
  }
  std::vector<int> fds() {
    std::vector<int> all;
    engine->append_fds(all);
    return all;
  }
  Calls take_calls() { return std::exchange(calls, {}); }
  SessionState state(SessionId id) {
    const auto view = engine->find(id);
    EXPECT_TRUE(view.has_value());
    return view ? view->state : SessionState{};
  }

  Calls calls;
  FakeHandler fake{"fake-v1", calls};
  HandlerRegistry registry;
  std::optional<kho::Arena> arena;
  std::optional<Engine> engine;
  std::map<SessionId, Fd> clients;
  int asked = 0;  ///< how often the engine wanted to know whether a holder is gone
};

template <class T>
int code(const Result<T>& result) {
  return result ? 0 : result.error().code;
}

}  // namespace luo::testing
