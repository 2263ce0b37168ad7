// What is done to sessions, killed anywhere: all or nothing (engine_stage.h).
#include "engine_stage.h"

namespace luo::testing {
namespace {

TEST_F(EngineCrash, FirstOpen) {
  expect_all_or_nothing(
      [](World& w) {
        w.engine.reset();
        w.arena.emplace(kho::Arena::create({.name = "fresh", .layout = Engine::kLayout, .max_size = 64_MiB}).value());
      },
      [](World& w) { w.open(); });
}

TEST_F(EngineCrash, Create) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        w.create("other");
        holder = new_holder();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->create_session(c, Name{"vm"}, holder, {1, 2}, 3).has_value(); });
      });
}

TEST_F(EngineCrash, CreateAfterTheLastCloseOfOneOfThatName) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        w.preserve(id, 1);
        w.clients.clear();
        holder = new_holder();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->create_session(c, Name{"vm"}, holder, {1, 2}, 3).has_value(); });
      });
}

TEST_F(EngineCrash, RetrieveSession) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        make_incoming(w);
        holder = new_holder(false);
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->retrieve_session(c, Name{"vm"}, holder, {2, 3}).has_value(); });
      });
}

TEST_F(EngineCrash, Accept) {
  expect_all_or_nothing(
      [](World& w) { make_retrieved(w, false); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->accept(c, kFirst, Role::Owner).has_value(); }); });
}

TEST_F(EngineCrash, Finish) {
  expect_all_or_nothing([](World& w) { make_retrieved(w); },
                        [](World& w) { must(w, [&](Change& c) { return w.engine->finish(c, kFirst).has_value(); }); });
}

TEST_F(EngineCrash, RenewOfARetrievedSession) {
  expect_all_or_nothing(
      [](World& w) { make_retrieved(w); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->renew(c, kFirst, Role::Owner).has_value(); }); });
}

TEST_F(EngineCrash, CloseOfAnOutgoingSession) {
  expect_all_or_nothing(
      [](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

TEST_F(EngineCrash, CloseOfARetrievedSession) {
  expect_all_or_nothing(
      [](World& w) {
        make_retrieved(w);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

TEST_F(EngineCrash, CloseOfASessionThatWasNotAccepted) {
  expect_all_or_nothing(
      [](World& w) {
        make_retrieved(w, false);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

TEST_F(EngineCrash, SetHold) {
  expect_all_or_nothing(
      [](World& w) { w.preserve(w.create("vm"), 1); },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->set_hold(c, kFirst, Hold::Executable, "/usr/bin/vmm").has_value(); });
      });
}

TEST_F(EngineCrash, SetCarry) {
  expect_all_or_nothing(
      [](World& w) { w.preserve(w.create("vm"), 1); },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->set_carry(c, kFirst, kCarryTransient, kCarryGrow).has_value(); });
      });
}

TEST_F(EngineCrash, TheHolderOfAHeldSessionCloses) {
  expect_all_or_nothing(
      [](World& w) {
        make_held(w);
        EXPECT_TRUE(w.step([&](Change& c) { return w.engine->owner_prepare(c, kFirst); }).has_value());
        EXPECT_TRUE(w.step([&](Change& c) { return w.engine->owner_freeze(c, kFirst).has_value(); }));
      },
      [](World& w) {
        must(w, [&](Change& c) {
          w.engine->holder_closed(c, kFirst, Role::Owner);
          return true;
        });
      });
}

TEST_F(EngineCrash, RetrieveAHeldSessionWhoseHolderIsDead) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        make_held(w);
        w.clients.clear();
        holder = new_holder(false);
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->retrieve_session(c, Name{"vm"}, holder, {2, 3}).has_value(); });
      });
}

TEST_F(EngineCrash, Drop) {
  expect_all_or_nothing(
      [](World& w) {
        make_held(w);
        w.clients.clear();
        w.closed(kFirst);
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->drop(c, kFirst).has_value(); }); });
}

}  // namespace
}  // namespace luo::testing
