// Records that come from another system and were not made there: sessions which wait since crossings before, and an
// arena that has hardly room for what is new.
#include <gmock/gmock.h>

#include "luo/arrival_testing.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;

/// Unclaimed, held, and dropped ones that the crossing before has left to be swept.
class OlderArrivals : public Arrivals {
 protected:
  OlderArrivals() {
    World& w = there.w;
    w.preserve(w.create("dropped"), 1);
    w.cross();
    EXPECT_FALSE(w.engine->find_incoming("unclaimed").has_value());
    w.preserve(w.create("unclaimed"), 1, event());
    held = w.create("held");
    EXPECT_TRUE(hold(w, held).has_value());
    for (std::uint64_t token = 1; token <= 4; ++token) w.preserve(held, token);
    w.preserve(held, 5, event());
    unit = w.create("unit");
    EXPECT_TRUE(hold(w, unit, Hold::Unit, "vm.service").has_value());
    w.preserve(unit, 1);
    w.cross();
    EXPECT_TRUE(w.engine->find_incoming("unclaimed").has_value());
    w.retrieve_session("unit");
    EXPECT_TRUE(w.retrieve(unit, 1).has_value());
    out = w.create("out");
    EXPECT_TRUE(hold(w, out, Hold::Executable, "/bin/vm").has_value());
    w.preserve(out, 1);
  }
  SessionId held, unit, out;
};

TEST_F(OlderArrivals, WhatNobodyClaimedIsDroppedWhatIsHeldWaitsOn) {
  const auto arrived = cross([&](const SessionView& s, const FileView& f) -> Engine::Arrival {
    if (s.id == held && f.token == Token{2}) return {.error = EIO};
    if (s.id == held && f.token == Token{3}) return {.gone = true};
    return another(s, f);
  });
  ASSERT_TRUE(arrived.has_value()) << to_string(arrived.error());
  EXPECT_THAT(brought, ::testing::UnorderedElementsAre("out 1", "held 1", "held 4", "held 5", "unit 1"))
      << "nothing is brought for what is dropped";
  here.w.expect_sound();
  expect_nothing_closed();
  EXPECT_EQ(here.w.engine->session_count(), 3U);
  EXPECT_FALSE(here.w.engine->find_incoming("unclaimed").has_value());
  EXPECT_FALSE(here.w.engine->find_incoming("dropped").has_value());
  EXPECT_EQ(incoming(here.w, "held"), held);
  EXPECT_EQ(here.w.engine->find(unit)->hold, Hold::Unit);
  EXPECT_EQ(here.w.engine->find(unit)->held_for, "vm.service");
  EXPECT_EQ(here.w.engine->find(unit)->state, SessionState::Incoming) << "who had it is gone";
  EXPECT_EQ(here.w.engine->find(out)->held_for, "/bin/vm");
  EXPECT_THAT(here.w.tokens(held), ElementsAre(1, 2, 4, 5));
  EXPECT_EQ(file(here.w, held, 2).retrieve_status, -EIO);
  EXPECT_EQ(file(here.w, unit, 1).retrieve_status, 0);
  here.w.reopen();
  here.w.expect_sound();
  here.w.retrieve_session("held");
  EXPECT_EQ(code(here.w.retrieve(held, 2)), EIO);
  EXPECT_TRUE(here.w.retrieve(held, 5).has_value());
  const SessionId other = here.w.create("other");
  const Fd same = Fd::adopt(fcntl(file(here.w, held, 5).fd, F_DUPFD_CLOEXEC, 0));
  EXPECT_EQ(code(here.w.try_preserve(other, 1, duplicate(same))), EBUSY);
  here.w.closed(held);
  EXPECT_EQ(here.w.state(held), SessionState::Incoming);
  here.w.expect_sound();
}

TEST_F(OlderArrivals, CrossAgainAndAgain) {
  ASSERT_TRUE(cross(bring_all()).has_value());
  here.w.retrieve_session("out");
  ASSERT_TRUE(here.w.retrieve(out, 1).has_value());
  ASSERT_TRUE(renew(here.w, out).has_value());
  const SessionId fresh = here.w.create("fresh");
  here.w.preserve(fresh, 1, event());
  here.w.expect_sound();
  here.w.cross();  // simulated
  here.w.engine->sweep();
  here.w.expect_sound();
  EXPECT_EQ(here.w.state(out), SessionState::Incoming);
  EXPECT_EQ(here.w.state(held), SessionState::Incoming);
  here.w.retrieve_session("out");
  ASSERT_TRUE(renew(here.w, out).has_value());
  // Over the next kexec, the systems' parts exchanged.
  ASSERT_TRUE(here.w.engine->freeze_all().has_value());
  const Fd next_image = memfd();
  ASSERT_TRUE(kho::write_image(*here.w.arena, next_image));
  System third;
  third.w.engine.reset();
  third.w.arena.emplace(kho::populate(next_image, Engine::kLayout, "third").value());
  third.w.engine.emplace(Engine::open(*third.w.arena, third.w.registry, pipe_is_closed, Engine::Take::Later).value());
  ASSERT_TRUE(third.w.engine->arrive(bring_all()).has_value());
  third.w.expect_sound();
  EXPECT_TRUE(here.w.engine->check().has_value()) << "its descriptors are as they were";
  EXPECT_EQ(third.w.engine->generation(), there.w.engine->generation() + 3);
  EXPECT_THAT(third.w.tokens(out), ElementsAre(1));
  EXPECT_THAT(third.w.tokens(held), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_FALSE(third.w.engine->find_incoming("fresh").has_value()) << "nobody claimed it";
}

/// Memory for the new tables may be short: an arena that is full but for a little.
TEST(ArrivalWithoutMemory, IsAnErrorAtEveryPlaceAndNeverACrash) {
  System there{1_MiB};
  const SessionId vm = there.w.create("vm");
  for (std::uint64_t token = 0; token < 300; ++token) there.w.preserve(vm, token, token % 2 == 0 ? memfd() : event());
  const SessionId held = there.w.create("held");
  ASSERT_TRUE(hold(there.w, held).has_value());
  ASSERT_TRUE(there.w.engine->freeze_all().has_value());
  const Fd image = memfd();
  ASSERT_TRUE(kho::write_image(*there.w.arena, image));
  bool failed = false, arrived = false;
  for (std::uint64_t left = 0; left <= 60 && !arrived; left += 5) {
    System here{1_MiB};
    here.w.engine.reset();
    here.w.arena.emplace(kho::populate(image, Engine::kLayout, "arrived").value());
    std::vector<PhysAddr> blocks;
    {  // all that there is, and some of it back
      kho::Tx tx{*here.w.arena};
      for (const std::size_t size : {std::size_t{65536}, std::size_t{4096}, std::size_t{256}, std::size_t{16}})
        while (tx.room() > 65536) {
          const auto block = tx.allocate(size);
          if (!block) break;
          blocks.push_back(*block);
        }
      tx.commit();
    }
    {
      kho::Tx tx{*here.w.arena};
      for (std::uint64_t i = 0; i < left && !blocks.empty(); ++i) {
        // The large ones came first; small ones first back.
        tx.release(blocks.back());
        blocks.pop_back();
      }
      for (std::uint64_t i = 0; i < left / 10 && i < blocks.size(); ++i) tx.release(blocks[i]);
      tx.commit();
    }
    auto opened = Engine::open(*here.w.arena, here.w.registry, pipe_is_closed, Engine::Take::Later);
    if (!opened) {
      EXPECT_EQ(opened.error().code, ENOMEM);
      continue;
    }
    here.w.engine.emplace(std::move(*opened));
    std::vector<int> given;
    const auto done = here.w.engine->arrive([&](const SessionView&, const FileView& f) -> Engine::Arrival {
      given.push_back(renumbered(f.handler == "events-v1" ? event() : memfd()));
      return {.fd = given.back()};
    });
    arrived = done.has_value();
    if (done) {
      here.w.expect_sound();
      continue;
    }
    failed = true;
    EXPECT_EQ(code(done), ENOMEM) << to_string(done.error());
    EXPECT_TRUE(there.w.engine->check().has_value()) << "nothing of the other system's was closed";
    here.w.engine.reset();  // its arena is made again from the image
    for (const int fd : given)
      if (is_open(fd)) ::close(fd);
  }
  EXPECT_TRUE(failed);
  EXPECT_TRUE(arrived);
}

}  // namespace
}  // namespace luo::testing
