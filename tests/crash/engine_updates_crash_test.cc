// The steps of updates, killed anywhere: all or nothing (engine_stage.h).
#include "engine_stage.h"

namespace luo::testing {
namespace {

TEST_F(EngineCrash, PrepareAndCancel) {
  expect_all_or_nothing(
      [](World& w) { w.preserve(w.create("vm"), 1); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->begin_prepare(c, kFirst).has_value(); }); });
  expect_all_or_nothing(
      [](World& w) {
        w.preserve(w.create("vm"), 1);
        must(w, [&](Change& c) { return w.engine->freeze_one(c, kFirst).has_value(); });
      },
      [](World& w) {
        must(w, [&](Change& c) {
          w.engine->cancel_prepare(c, kFirst);
          return true;
        });
      });
}

TEST_F(EngineCrash, FreezeOne) {
  expect_all_or_nothing(
      [](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->freeze_one(c, kFirst).has_value(); }); });
}

TEST_F(EngineCrash, FreezeAllGoesSessionBySession) {
  expect_all_or_nothing(
      [](World& w) {
        w.preserve(w.create("a"), 1);
        w.preserve(w.create("b"), 2);
      },
      [](World& w) {
        if (!w.engine->freeze_all().has_value()) ::_exit(4);
      },
      [](const std::string& state) {  // in this order, and only whole sessions
        return state.find("'a' frozen") != std::string::npos && state.find("'b' outgoing") != std::string::npos;
      });
}

TEST_F(EngineCrash, CrossWithAnUnclaimedSessionOnTheOtherSide) {
  expect_all_or_nothing(
      [](World& w) {
        make_incoming(w);
        w.preserve(w.create("next"), 4);
        if (!w.engine->freeze_all().has_value()) ::_exit(4);
        w.clients.clear();
      },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->cross(c).has_value(); });
        w.engine->sweep();
      });
}

TEST_F(EngineCrash, AddASuccessor) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        w.preserve(w.create("vm"), 1);
        holder = new_holder(false);
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->add_successor(c, kFirst, holder, {3, 4}).has_value(); });
      });
}

/// A session whose successor is ready to take over.
class EngineCrashSuccessor : public EngineCrash {
 protected:
  void make_successor(World& w) {
    w.preserve(w.create("vm"), 1);
    const Holder holder = new_holder();
    must(w, [&](Change& c) { return w.engine->add_successor(c, kFirst, holder, {3, 4}).has_value(); });
    must(w, [&](Change& c) { return w.engine->freeze_one(c, kFirst).has_value(); });
  }
};

TEST_F(EngineCrashSuccessor, TakesOver) {
  expect_all_or_nothing(
      [&](World& w) { make_successor(w); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->renew(c, kFirst, Role::Successor).has_value(); }); });
}

TEST_F(EngineCrashSuccessor, IsAbandoned) {
  expect_all_or_nothing([&](World& w) { make_successor(w); },
                        [](World& w) {
                          must(w, [&](Change& c) {
                            w.engine->abandon_successor(c, kFirst);
                            return true;
                          });
                        });
}

TEST_F(EngineCrashSuccessor, LivesOnWhenTheOwnerDies) {
  expect_all_or_nothing(
      [&](World& w) {
        make_successor(w);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

TEST_F(EngineCrash, SweepThatKeepsAHeldSession) {
  expect_all_or_nothing(
      [](World& w) {
        make_held(w);
        w.preserve(w.create("plain"), 9);
        w.cross();
        w.engine->sweep();
        ASSERT_TRUE(w.engine->freeze_all().has_value());
        ASSERT_TRUE(w.step([&](Change& c) { return w.engine->cross(c); }).has_value());
      },
      [](World& w) { w.engine->sweep(); },
      // Each step of the sweep is one of its own; whoever opens the arena goes on with it.
      [](const std::string& state) { return state.find("'vm' incoming") != std::string::npos; });
}

TEST_F(EngineCrash, OwnerPreparesFreezesCancels) {
  for (int steps = 0; steps < 3; ++steps) {
    SCOPED_TRACE(steps);
    const auto step = [](World& w, int n) {
      must(w, [&](Change& c) {
        if (n == 0) return w.engine->owner_prepare(c, kFirst).has_value();
        if (n == 1) return w.engine->owner_freeze(c, kFirst).has_value();
        return w.engine->owner_cancel(c, kFirst).has_value();
      });
    };
    expect_all_or_nothing(
        [&](World& w) {
          for (std::uint64_t token : {1, 2}) w.preserve(w.engine->find(kFirst) ? kFirst : w.create("vm"), token);
          for (int n = 0; n < steps; ++n) step(w, n);
        },
        [&](World& w) { step(w, steps); });
  }
}

TEST_F(EngineCrash, TheVersionBeforeIsWrittenAndTakenOver) {
  const auto make = [](World& w) {
    make_incoming(w);
    w.preserve(w.create("out"), 1);
  };
  expect_all_or_nothing(
      make, [](World& w) { must(w, [&](Change& c) { return w.engine->write_version_before(c).has_value(); }); });
  expect_all_or_nothing(
      [&](World& w) {
        make(w);
        must(w, [&](Change& c) { return w.engine->write_version_before(c).has_value(); });
        w.engine.reset();
      },
      [](World& w) { w.open(); });
}

}  // namespace
}  // namespace luo::testing
