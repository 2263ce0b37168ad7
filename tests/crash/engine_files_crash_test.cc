// What is done to files, killed anywhere: all or nothing (engine_stage.h).
#include "engine_stage.h"

namespace luo::testing {
namespace {

TEST_F(EngineCrash, Preserve) {
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        w.preserve(w.create("vm"), 1);
        file = new_file();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->preserve(c, kFirst, {Token{2}, file, 0}).has_value(); });
      });
}

TEST_F(EngineCrash, PreserveThatMakesTheTablesGrow) {
  std::uint64_t grows_at = 0;  // which file is the first that does not fit: found, not assumed
  {
    World scout;
    const SessionId id = scout.create("vm");
    for (std::uint64_t used = 0, grown = 0; grown < 1000; grown = scout.arena->stats().used_bytes - used) {
      used = scout.arena->stats().used_bytes;
      scout.preserve(id, ++grows_at);
      ASSERT_LT(grows_at, 1000U);
    }
  }
  ASSERT_GT(grows_at, 2U);
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token = 1; token < grows_at; ++token) w.preserve(id, token);
        file = new_file();
      },
      [&](World& w) {
        const std::uint64_t used = w.arena->stats().used_bytes;
        must(w, [&](Change& c) { return w.engine->preserve(c, kFirst, {Token{grows_at}, file, 0}).has_value(); });
        if (w.arena->stats().used_bytes < used + 200) ::_exit(5);
      });
}

TEST_F(EngineCrash, PreserveOfSeveralInOneStepWithOneRefused) {
  int files[3] = {};
  expect_all_or_nothing(
      [&](World& w) {
        w.preserve(w.create("vm"), 1);
        for (int& file : files) file = new_file();
      },
      [&](World& w) {
        must(w, [&](Change& c) {
          return w.engine->preserve(c, kFirst, {Token{2}, files[0], 0}).has_value() &&
                 !w.engine->preserve(c, kFirst, {Token{1}, files[1], 0}).has_value() &&
                 w.engine->preserve(c, kFirst, {Token{3}, files[2], 0}).has_value();
        });
      });
}

TEST_F(EngineCrash, Unpreserve) {
  expect_all_or_nothing(
      [](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->unpreserve(c, kFirst, Token{2}).has_value(); }); });
}

TEST_F(EngineCrash, RetrieveFile) {
  expect_all_or_nothing(
      [](World& w) { make_retrieved(w); },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->retrieve(c, kFirst, Role::Owner, Token{2}).has_value(); });
      });
}

TEST_F(EngineCrash, RetrieveFileThatFails) {
  expect_all_or_nothing(
      [](World& w) {
        make_retrieved(w);
        w.fake.errors["retrieve 2"] = EIO;
      },
      [](World& w) {
        must(w, [&](Change& c) { return code(w.engine->retrieve(c, kFirst, Role::Owner, Token{2})) == EIO; });
      });
}

TEST_F(EngineCrash, PreserveOfAFileThatDependsOnOthers) {
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2}) w.preserve(id, token);
        file = new_file();
      },
      [&](World& w) {
        if (!preserve_after(w, 3, {1, 2}, file)) ::_exit(4);
      });
}

TEST_F(EngineCrash, UnpreserveOfAFileThatDependsOnOthers) {
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2}) w.preserve(id, token);
        EXPECT_TRUE(preserve_after(w, 3, {2}, new_file()).has_value());
        EXPECT_TRUE(preserve_after(w, 4, {2, 1}, new_file()).has_value());
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->unpreserve(c, kFirst, Token{4}).has_value(); }); });
}

}  // namespace
}  // namespace luo::testing
