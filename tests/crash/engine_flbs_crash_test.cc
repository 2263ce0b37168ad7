// What files share (FLBs), killed anywhere: all or nothing (engine_stage.h).
#include "engine_stage.h"

namespace luo::testing {
namespace {

class FlbCrash : public EngineCrash {
 protected:
  void tie(World& w) {
    for (FakeFlb* flb : {&a_, &b_}) EXPECT_TRUE(w.registry.add_flb(w.fake, *flb).has_value());
    w.reopen();
  }
  Calls calls_;
  FakeFlb a_{"a", calls_}, b_{"b", calls_};
};

TEST_F(FlbCrash, PreserveOfTheFirstFile) {
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        w.create("vm");
        file = new_file();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->preserve(c, kFirst, {Token{2}, file, 0}).has_value(); });
      });
}

TEST_F(FlbCrash, CloseOfTheLastFile) {
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2}) w.preserve(id, token);
      },
      [](World& w) {
        must(w, [&](Change& c) {
          w.engine->holder_closed(c, kFirst, Role::Owner);
          return true;
        });
      });
}

TEST_F(FlbCrash, Cross) {
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        make_incoming(w);
        w.preserve(w.create("next"), 7);
        EXPECT_TRUE(w.engine->freeze_all().has_value());
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->cross(c).has_value(); }); });
}

TEST_F(FlbCrash, FinishAndRenew) {
  for (const bool renew : {false, true})
    expect_all_or_nothing(
        [&](World& w) {
          tie(w);
          make_retrieved(w);
        },
        [&](World& w) {
          must(w, [&](Change& c) {
            return renew ? w.engine->renew(c, kFirst, Role::Owner).has_value()
                         : w.engine->finish(c, kFirst).has_value();
          });
        });
}

TEST_F(FlbCrash, Settle) {
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        w.preserve(w.create("vm"), 1);
        EXPECT_TRUE(w.engine->get_outgoing(a_).has_value());
        EXPECT_TRUE(w.unpreserve(kFirst, 1).has_value());
        w.engine->put_outgoing(a_);
      },
      [](World& w) { w.engine->settle_flbs(); });
}

}  // namespace
}  // namespace luo::testing
