#include "daemon/state.h"

#include <gtest/gtest.h>

namespace luo::daemon {
namespace {

constexpr kho::Layout kLayout{"test", 1};

/// As many as one connection could have with a table of millions: more than the log of one step can hold.
TEST(State, AnyNumberOfGrantsIsDroppedInStepsThatTheLogCanHold) {
  constexpr std::uint64_t kGrants = 40'000;
  auto arena = kho::Arena::create({.name = "state", .layout = kLayout, .max_size = 256_MiB});
  ASSERT_TRUE(arena.has_value());
  auto state = State::open(*arena);
  ASSERT_TRUE(state.has_value());
  for (std::uint64_t i = 0; i < kGrants;) {
    Change change{*arena};
    for (std::uint64_t end = i + 1000; i < end; ++i) {
      ASSERT_TRUE(state->add_grant(change, 1, SessionId{i + 1}, Role::Owner).has_value());            // of one peer
      ASSERT_TRUE(state->add_grant(change, i + 2, SessionId{kGrants + 1}, Role::Owner).has_value());  // to one session
    }
    change.commit();
  }
  std::uint64_t steps = 0;
  for (bool more = true; more; ++steps) {
    Change change{*arena};
    more = state->drop_some_grants_of_peer(change, 1);
    EXPECT_GT(change.tx.room(), std::size_t{1} << 20);
    change.commit();
  }
  EXPECT_GE(steps, kGrants / State::kGrantsPerStep);
  EXPECT_EQ(state->find_grant(1, 1), nullptr);
  for (bool more = true; more;) {
    Change change{*arena};
    more = state->drop_some_grants_of_session(change, SessionId{kGrants + 1}, [](const GrantRec&) { return true; });
    EXPECT_GT(change.tx.room(), std::size_t{1} << 20);
    change.commit();
  }
  EXPECT_TRUE(State::open(*arena).has_value());
  EXPECT_TRUE(arena->check().has_value());
  int left = 0;
  state->for_each_grant(SessionId{kGrants + 1}, [&](GrantRec&) { ++left; });
  EXPECT_EQ(left, 0);
}

TEST(State, OnlyTheGrantsThatAreMeantAreDropped) {
  auto arena = kho::Arena::create({.name = "state", .layout = kLayout, .max_size = 16_MiB});
  ASSERT_TRUE(arena.has_value());
  auto state = State::open(*arena);
  ASSERT_TRUE(state.has_value());
  {
    Change change{*arena};
    ASSERT_TRUE(state->add_grant(change, 1, SessionId{7}, Role::Owner).has_value());
    ASSERT_TRUE(state->add_grant(change, 2, SessionId{7}, Role::Successor).has_value());
    ASSERT_TRUE(state->add_grant(change, 1, SessionId{8}, Role::Owner).has_value());
    change.commit();
  }
  {
    Change change{*arena};
    EXPECT_TRUE(state->drop_some_grants_of_session(change, SessionId{7}, [](const GrantRec& grant) {
      return grant.role == static_cast<std::uint32_t>(Role::Successor);
    }));
    change.commit();
  }
  // As the next worker finds it.
  const auto again = State::open(*arena);
  ASSERT_TRUE(again.has_value());
  EXPECT_NE(again->find_grant(1, 7), nullptr);
  EXPECT_EQ(again->find_grant(2, 7), nullptr);
  EXPECT_NE(again->find_grant(1, 8), nullptr);
}

}  // namespace
}  // namespace luo::daemon
