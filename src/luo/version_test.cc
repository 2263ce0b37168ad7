// Versions of the records: 1 is read and becomes 2, 2 becomes 1 again, with all that lies there.
#include <gmock/gmock.h>

#include "luo/engine_testing.h"
#include "luo/records.h"

namespace luo::testing {
namespace {

using ::testing::HasSubstr;

std::uint64_t version_of(const World& w) {
  return w.arena->get(Ref<RootRecord>{w.arena->root(0).raw()})->magic == kRootMagic1 ? 1 : 2;
}
Result<> write_version_before(World& w) {
  return w.step([&](Change& c) { return w.engine->write_version_before(c); });
}
std::string described(const Engine& engine) {
  std::string text;
  engine.for_each_session([&](const SessionView& s) {
    text += fmt::format("{} {} {} {} {}\n", s.id.raw(), s.name, to_string(s.state), s.holder[0].write_fd, s.owner.uid);
    engine.for_each_file(s.id, [&](const FileView& f) {
      text += fmt::format("  {} {} {} {}\n", f.token.raw(), f.handler, f.fd, f.retrieve_status);
    });
  });
  return text;
}

class Versions : public ::testing::Test {
 protected:
  Versions() {
    w.preserve(w.create("incoming"), 1);
    w.preserve(w.create("retrieved"), 2);
    w.cross();
    w.engine->sweep();
    w.retrieve_session("retrieved");
    out = w.create("outgoing");
    for (std::uint64_t token = 0; token < 20; ++token) w.preserve(out, token);
  }
  World w;
  SessionId out;
};

TEST_F(Versions, GoBackAndForthWithData) {
  const std::string before = described(*w.engine);
  const auto blocks = w.arena->stats().blocks;
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(write_version_before(w).has_value());
    EXPECT_EQ(version_of(w), 1U);
    EXPECT_EQ(described(*w.engine), before) << "what is shown stays";
    // Version 1 leaves in a block's slack whatever was there.
    w.engine->for_each_session([&](const SessionView&) {});
    auto* root = w.arena->get(Ref<RootRecord>{w.arena->root(0).raw()});
    for (auto s = root->outgoing.sessions.first; s; s = w.arena->get(s)->links.next)
      for (auto f = w.arena->get(s)->files.first; f; f = w.arena->get(f)->links.next)
        w.arena->get(f)->charge_kib = 0xdeadbeef;
    w.reopen();
    EXPECT_EQ(version_of(w), 2U);
    EXPECT_EQ(described(*w.engine), before);
    w.engine->for_each_file(out, [](const FileView& f) { EXPECT_EQ(f.charge_bytes, 0U); });
    EXPECT_EQ(w.arena->stats().blocks, blocks);
    w.expect_sound();
  }
  w.preserve(out, 100);
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->set_hold(c, out, Hold::User, ""); }).has_value());
  w.expect_sound();
}

TEST_F(Versions, NothingIsWrittenBeforeTheArenaIsTakenOver) {
  ASSERT_TRUE(write_version_before(w).has_value());
  w.engine.reset();
  const auto opened = Engine::open(*w.arena, w.registry, nullptr, Engine::Take::Later);
  ASSERT_TRUE(opened.has_value());
  EXPECT_EQ(version_of(w), 1U);
  EXPECT_EQ(opened->session_count(), 3U);
  w.open();
  EXPECT_EQ(version_of(w), 2U);
  w.expect_sound();
}

TEST_F(Versions, WhatTheOldOneCannotExpressIsNotLost) {
  const auto expect_refused = [&](std::string_view why) {
    const auto refused = write_version_before(w);
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().code, ENOTSUP);
    EXPECT_THAT(refused.error().what, HasSubstr(why));
    EXPECT_THAT(refused.error().what, HasSubstr("'outgoing'"));
    EXPECT_EQ(version_of(w), 2U);
    w.expect_sound();
  };
  ASSERT_TRUE(w.step([&](Change& c) { return w.engine->set_hold(c, out, Hold::User, ""); }).has_value());
  expect_refused("held");
  ASSERT_TRUE(w.step([&](Change& c) { return w.engine->set_hold(c, out, Hold::Off, ""); }).has_value());
  ASSERT_TRUE(w.step([&](Change& c) { return w.engine->owner_prepare(c, out); }).has_value());
  expect_refused("prepared");
  ASSERT_TRUE(w.step([&](Change& c) { return w.engine->owner_cancel(c, out); }).has_value());
  ASSERT_TRUE(w.step([&](Change& c) { return w.engine->set_carry(c, out, kCarryGrow, 0); }).has_value());
  expect_refused("another kernel");
  ASSERT_TRUE(w.step([&](Change& c) { return w.engine->set_carry(c, out, 0, kCarryGrow); }).has_value());
  const std::uint64_t after[] = {3};
  const int fd = memfd().release();
  ASSERT_TRUE(w.step([&](Change& c) {
                 return w.engine->preserve(c, out, {.token = Token{200}, .fd = fd, .after = after});
               }).has_value());
  expect_refused("depend");
  ASSERT_TRUE(w.unpreserve(out, 200).has_value());
  EXPECT_TRUE(write_version_before(w).has_value());
  w.reopen();
}

}  // namespace
}  // namespace luo::testing
