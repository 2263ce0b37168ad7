// Two systems for tests of arrival: an image of one engine's arena, read in as if another kernel ran. Both are this
// process, so that what the first has open under the numbers in the image is there to be closed by mistake.
#pragma once
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <map>

#include "kho/image.h"
#include "luo/engine_testing.h"

namespace luo::testing {

constexpr int kFirstNumber = 3000;  ///< what is brought has numbers that nothing in the image has

/// One system: three kinds of files, of which one shares state.
struct System {
  explicit System(Bytes arena_size = 64_MiB) : w{{&files, &shared, &events}, arena_size} {
    files.wants = [](const FileInfo& f) { return S_ISREG(f.st.st_mode) && f.st.st_size % 2 == 0; };
    shared.wants = [](const FileInfo& f) { return S_ISREG(f.st.st_mode) && f.st.st_size % 2 == 1; };
    events.wants = [](const FileInfo& f) { return !S_ISREG(f.st.st_mode); };
    events.identify = [](const FileInfo& f) { return Identity{f.st.st_dev, f.st.st_ino, true}; };
    EXPECT_TRUE(w.registry.add_flb(shared, flb).has_value());
    w.reopen();
  }
  Calls calls;
  FakeHandler files{"files-v1", calls}, shared{"shared-v1", calls}, events{"events-v1", calls};
  FakeFlb flb{"flb", calls};
  World w;
};

inline Fd event() { return Fd::adopt(eventfd(0, EFD_CLOEXEC)); }
inline Fd odd_memfd() {
  Fd fd = memfd();
  EXPECT_EQ(ftruncate(fd.raw(), 1), 0);
  return fd;
}
inline int renumbered(Fd fd) { return fcntl(fd.raw(), F_DUPFD_CLOEXEC, kFirstNumber); }

inline Result<> preserve_after(World& w, SessionId id, std::uint64_t token, std::vector<std::uint64_t> after) {
  Fd fd = memfd();
  auto result = w.step(
      [&](Change& c) { return w.engine->preserve(c, id, {.token = Token{token}, .fd = fd.raw(), .after = after}); });
  if (result) (void)fd.release();
  return result;
}
inline Result<> hold(World& w, SessionId id, Hold how = Hold::User, std::string_view who = "") {
  return w.step([&](Change& c) { return w.engine->set_hold(c, id, how, who); });
}
inline Result<> renew(World& w, SessionId id) {
  return w.step([&](Change& c) { return w.engine->renew(c, id, Role::Owner); });
}
inline SessionId incoming(World& w, std::string_view name) {
  const auto id = w.engine->find_incoming(name);
  EXPECT_TRUE(id.has_value()) << name;
  return id.value_or(SessionId{});
}
inline FileView file(World& w, SessionId id, std::uint64_t token) {
  FileView found{};
  w.engine->for_each_file(id, [&](const FileView& f) {
    if (f.token == Token{token}) found = f;
  });
  EXPECT_EQ(found.token, Token{token});
  return found;
}
inline Engine::FlbView shared_state(World& w) {
  Engine::FlbView view{};
  w.engine->for_each_flb([&](const Engine::FlbView& f) { view = f; });
  return view;
}

class Arrivals : public ::testing::Test {
 protected:
  /// What is brought by default: another file of the same kind for each, as from another kernel.
  Engine::Arrival another(const SessionView& session, const FileView& f) {
    brought.push_back(fmt::format("{} {}", session.name, f.token.raw()));
    EXPECT_EQ(f.fd, -1) << "no number of the other system is shown";
    Fd fd = f.handler == "events-v1" ? event() : f.handler == "shared-v1" ? odd_memfd() : memfd();
    return {.fd = renumbered(std::move(fd)), .data = {f.data[0], f.data[1], 7, 7}};
  }
  /// Freezes `there`, and has its image arrive `here`.
  Result<> cross(const Engine::Bring& bring) {
    const auto frozen = there.w.engine->freeze_all();
    EXPECT_TRUE(frozen.has_value());
    image = memfd();
    EXPECT_TRUE(kho::write_image(*there.w.arena, image));
    return arrive(bring);
  }
  Result<> arrive(const Engine::Bring& bring) {
    here.w.engine.reset();
    here.w.arena.emplace(kho::populate(image, Engine::kLayout, "arrived").value());
    here.w.engine.emplace(Engine::open(*here.w.arena, here.w.registry, pipe_is_closed, Engine::Take::Later).value());
    here.w.take_calls();
    brought.clear();
    auto result = here.w.engine->arrive(bring);
    if (result) here.w.engine->settle_flbs();
    return result;
  }
  Engine::Bring bring_all() {
    return [this](const SessionView& s, const FileView& f) { return another(s, f); };
  }
  static std::pair<dev_t, ino_t> inode_of(int fd) {
    struct stat st {};
    return fstat(fd, &st) == 0 ? std::pair{st.st_dev, st.st_ino} : std::pair<dev_t, ino_t>{};
  }
  /// Every number that the image names is what it was, and nothing here has one of them.
  void expect_nothing_closed() {
    for (const auto& [fd, inode] : in_image) EXPECT_EQ(inode_of(fd), inode) << fd;
    for (const int fd : here.w.fds()) EXPECT_FALSE(in_image.contains(fd)) << fd;
  }

  System there, here;
  Fd image;
  std::map<int, std::pair<dev_t, ino_t>> in_image;  ///< descriptors
  std::vector<std::string> brought;
};

}  // namespace luo::testing
