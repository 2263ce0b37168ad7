// An engine whose content can be told as text, for tests that kill what works on it at every instruction and every
// system call: the next worker finds all of it or nothing, and can go on.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <optional>
#include <set>

#include "luo/engine_testing.h"
#include "support/in_child.h"
#include "support/kill_harness.h"

namespace luo::testing {

/// What an engine knows, as text. Descriptors are shown by what they lead to: their numbers differ from
/// run to run.
inline Result<std::string> describe(const kho::Arena& arena, const Engine& engine) {
  LUO_TRY(engine.check());
  LUO_TRY(arena.check());
  std::string text = fmt::format("generation {}, {} sessions, {} files\n", engine.generation(), engine.session_count(),
                                 engine.file_count());
  engine.for_each_flb([&](const Engine::FlbView& f) {
    text += fmt::format("FLB {} {} {} {} {}\n", f.name, f.outgoing, f.outgoing_files, f.incoming, f.incoming_files);
  });
  std::string trouble;
  engine.for_each_session([&](const SessionView& s) {
    text += fmt::format("{} '{}' {} of uid {} since {}:", s.id.raw(), s.name, to_string(s.state), s.owner.uid,
                        s.created_ms);
    for (const Holder& holder : s.holder) {
      if (holder.write_fd >= 0 && !is_open(holder.write_fd))
        trouble = fmt::format("session {}: its holder is closed", s.name);
      text += fmt::format(" holder {} {} {}", holder.write_fd >= 0, holder.read_fd >= 0, holder.accepted);
    }
    text += '\n';
    engine.for_each_file(s.id, [&](const FileView& f) {
      struct stat st {};
      if (fstat(f.fd, &st) != 0 || st.st_ino != f.inode)
        trouble = fmt::format("token {}: its descriptor leads elsewhere", f.token.raw());
      text += fmt::format("  {} {} {} data {} {}\n", f.token.raw(), f.handler, f.retrieve_status, f.data[0], f.data[1]);
    });
  });
  if (!trouble.empty()) return fail(EBADMSG, "{}", trouble);
  // Blocks that nobody leads to would show here.
  text += fmt::format("{} blocks of {} bytes", arena.stats().blocks, arena.stats().used_bytes);
  return text;
}

class EngineCrash : public ::testing::Test {
 protected:
  ~EngineCrash() override { clean_up(); }

  /// A file to be preserved. What becomes of it depends on when the child dies, so clean_up() closes it.
  static int new_file() { return memfd().release(); }
  /// A session fd to be handed out; the client's end stays open until the next run.
  Holder new_holder(bool accepted = true) {
    Capability cap = capability(accepted);
    clients_.push_back(std::move(cap.client));
    return cap.holder;
  }

  /// `prepare` and `operate` get the world; `operate` runs in the child that is killed.
  void expect_all_or_nothing(const std::function<void(World&)>& prepare, const std::function<void(World&)>& operate,
                             std::function<bool(const std::string&)> also_right = {}) {
    const test::KillCase c{
        .set_up = [&]() -> Result<Fd> {
          clean_up();
          world_.emplace();
          prepare(*world_);
          if (HasFailure()) return fail(EINVAL, "set up");
          return Fd::adopt(fcntl(world_->arena->fd().raw, F_DUPFD_CLOEXEC, 0));
        },
        .operate =
            [&] {
              operate(*world_);
              if (HasFailure()) ::_exit(3);
            },
        .recover = [&](Fd memfd) { return test::in_child([&] { return recover(std::move(memfd)); }); },
        .also_right = std::move(also_right)};
    const auto calls = test::kill_at_every_syscall(c);
    ASSERT_TRUE(calls.has_value()) << to_string(calls.error());
    if (!test::kStepsInstructions) {
      std::cout << calls->points << " system call stops; not at every instruction, because of the sanitizer\n";
      return;
    }
    const auto steps = test::kill_at_every_instruction(c, 2);
    ASSERT_TRUE(steps.has_value()) << to_string(steps.error());
    std::cout << calls->points << " system call stops, " << steps->points << " instructions, " << steps->recovered
              << " states recovered, " << steps->finished << " of them after\n";
  }

 private:
  /// As the next worker does, in a child: the engine may close descriptors there.
  Result<std::string> recover(Fd memfd) {
    kho::Arena arena = LUO_TRY(kho::Arena::open(std::move(memfd), Engine::kLayout));
    Engine engine = LUO_TRY(Engine::open(arena, world_->registry, pipe_is_closed));
    engine.settle_flbs();
    std::string text = LUO_TRY(describe(arena, engine));
    // And it can be worked with.
    const Capability cap = capability();
    Change change{arena};
    const SessionId id = LUO_TRY(engine.create_session(change, Name{"afterwards"}, cap.holder, {}, 1));
    const Fd file = testing::memfd();
    LUO_TRY(engine.preserve(change, id, {Token{1}, file.raw(), 0}));
    change.commit();
    LUO_TRY(engine.check());
    LUO_TRY(arena.check());
    return text;
  }

  static std::set<int> open_descriptors() {
    std::set<int> all;
    for (const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd"}) {
      const int fd = std::stoi(entry.path().filename());
      all.insert(fd);
    }
    std::erase_if(all, [](int fd) { return !is_open(fd); });  // the listing's own
    return all;
  }
  /// The child wrote into the arena that our world's engine uses too, so the world cannot know any more
  /// which descriptors are its own: all that were opened since the beginning go.
  void clean_up() {
    clients_.clear();
    if (world_) world_->engine.reset();
    world_.reset();
    for (const int fd : open_descriptors())
      if (!at_first_.contains(fd)) close_number(fd);
  }

  std::set<int> at_first_ = open_descriptors();
  std::vector<Fd> clients_;
  std::optional<World> world_;
};

inline constexpr SessionId kFirst{1};

inline Result<> preserve_after(World& w, std::uint64_t token, std::vector<std::uint64_t> after, int fd) {
  return w.step(
      [&](Change& c) { return w.engine->preserve(c, kFirst, {.token = Token{token}, .fd = fd, .after = after}); });
}
inline void make_held(World& w) {
  const SessionId id = w.create("vm");
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->set_hold(c, id, Hold::User, ""); }).has_value());
  for (std::uint64_t token : {1, 2}) w.preserve(id, token);
}

/// One session that came over the update with three files.
inline void make_incoming(World& w) {
  const SessionId id = w.create("vm");
  for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
  w.cross();
  w.engine->sweep();
}
inline void make_retrieved(World& w, bool accepted = true) {
  make_incoming(w);
  w.retrieve_session("vm", accepted);
}
template <class Do>
inline void must(World& w, Do&& what) {
  Change change{*w.arena};
  if (!what(change)) ::_exit(4);
  change.commit();
}

}  // namespace luo::testing
