// Files that depend on others.
#include <gmock/gmock.h>

#include "luo/engine_testing.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<> preserve_after(World& w, SessionId id, std::uint64_t token, std::vector<std::uint64_t> after) {
  Fd fd = memfd();
  auto result = w.step(
      [&](Change& c) { return w.engine->preserve(c, id, {.token = Token{token}, .fd = fd.raw(), .after = after}); });
  if (result) (void)fd.release();
  return result;
}

TEST(Relations, WhatAFileDependsOnComesFirstAndGoesLast) {
  World w;
  const SessionId id = w.create("vm");
  const auto refused = preserve_after(w, id, 3, {1, 2});
  EXPECT_EQ(code(refused), ENOLINK);
  EXPECT_THAT(to_string(refused.error()), HasSubstr("token 1"));
  EXPECT_EQ(w.engine->file_count(), 0U);
  w.preserve(id, 1);
  EXPECT_EQ(code(preserve_after(w, id, 3, {1, 2})), ENOLINK);
  w.preserve(id, 2);
  EXPECT_TRUE(preserve_after(w, id, 3, {2, 1}).has_value());
  EXPECT_TRUE(preserve_after(w, id, 4, {3, 1}).has_value());
  EXPECT_THAT(w.engine->depends_on(id, Token{3}), ElementsAre(Token{2}, Token{1}));
  EXPECT_THAT(w.engine->depends_on(id, Token{1}), ElementsAre());
  w.expect_sound();
  w.reopen();
  for (const std::uint64_t token : {1U, 2U, 3U}) EXPECT_EQ(code(w.unpreserve(id, token)), EBUSY) << token;
  EXPECT_TRUE(w.unpreserve(id, 4).has_value());
  EXPECT_TRUE(w.unpreserve(id, 3).has_value());
  w.expect_sound();
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  EXPECT_TRUE(w.unpreserve(id, 2).has_value());
  w.expect_sound();
}

TEST(Relations, AreBounded) {
  World w;
  const SessionId id = w.create("vm");
  std::vector<std::uint64_t> many;
  for (std::uint64_t token = 0; token < 17; ++token) {
    w.preserve(id, token);
    many.push_back(token);
  }
  EXPECT_EQ(code(preserve_after(w, id, 100, many)), EINVAL);
  EXPECT_EQ(code(preserve_after(w, id, 100, {1, 1})), EINVAL);
  EXPECT_EQ(code(preserve_after(w, id, 100, {100})), ENOLINK) << "itself";
  many.pop_back();
  EXPECT_TRUE(preserve_after(w, id, 100, many).has_value());
  EXPECT_EQ(w.engine->depends_on(id, Token{100}).size(), 16U);
  w.expect_sound();
}

TEST(Relations, EndInReverseWithTheSession) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  EXPECT_TRUE(preserve_after(w, id, 2, {1}).has_value());
  EXPECT_TRUE(preserve_after(w, id, 3, {2}).has_value());
  w.take_calls();
  w.clients.clear();
  w.closed(id);
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 3", "unpreserve 2", "unpreserve 1"));
  w.expect_sound();
}

TEST(Relations, CrossAndAreFinishedInReverse) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  EXPECT_TRUE(preserve_after(w, id, 2, {1}).has_value());
  w.cross();
  w.reopen();
  w.retrieve_session("vm");
  EXPECT_TRUE(w.retrieve(id, 2).has_value()) << "in any order";
  EXPECT_THAT(w.engine->depends_on(id, Token{2}), ElementsAre(Token{1}));
  w.take_calls();
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("can_finish 1", "can_finish 2", "finish+ 2", "finish- 1"));
  w.expect_sound();
}

TEST(Relations, OfManyFilesAreSweptInSteps) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 0);
  for (std::uint64_t token = 1; token < 1000; ++token) {
    std::vector<std::uint64_t> after{token - 1};
    if (token / 2 != token - 1) after.push_back(token / 2);
    ASSERT_TRUE(preserve_after(w, id, token, after).has_value());
  }
  w.expect_sound();
  w.clients.clear();
  w.closed(id);
  EXPECT_EQ(w.engine->session_count(), 0U);
  w.expect_sound();
}

}  // namespace
}  // namespace luo::testing
