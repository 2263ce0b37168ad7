// Arenas of hugetlb pages, killed at every system call and at instructions all over what differs there: memory that
// is taken, cannot be had, or goes back; and a takeover that rolls back, when the pool is empty, too.
#include <gtest/gtest.h>
#include <unistd.h>

#include <iostream>

#include "arena_stage.h"
#include "kho/hugetlb_testing.h"
#include "support/kill_harness.h"

namespace luo::kho {
namespace {

class HugetlbCrash : public ::testing::Test {
 protected:
  void expect_all_or_nothing(unsigned kills, const std::function<void()>& set_up,
                             const std::function<void()>& operate) {
    const test::KillCase c{.set_up = [&]() -> Result<Fd> {
                             set_up();
                             return stage.memfd();
                           },
                           .operate = operate,
                           .recover = recover,
                           .also_right = {}};
    const auto calls = test::kill_at_every_syscall(c);
    ASSERT_TRUE(calls) << to_string(calls.error());
    std::cout << calls->points << " system call stops\n";
    if (!test::kStepsInstructions) return;
    const auto steps = test::kill_at_some_instructions(c, kills);
    ASSERT_TRUE(steps) << to_string(steps.error());
    std::cout << steps->points << " instructions, " << steps->finished << " of them after\n";
  }
  Stage stage;
};

TEST_F(HugetlbCrash, AllocateWithGrowth) {
  const HugetlbPool pool{12};
  if (!pool.why().empty()) GTEST_SKIP() << pool.why();
  expect_all_or_nothing(
      25,
      [&] {
        stage.make(16_MiB, Pages::Hugetlb);
        stage.add(0, 100);
      },
      [&] { stage.add(1, 5000000); });
}

TEST_F(HugetlbCrash, AllocateWithTooFewPagesInThePool) {
  const HugetlbPool pool{8};
  if (!pool.why().empty()) GTEST_SKIP() << pool.why();
  if (HugetlbPool::has_more()) GTEST_SKIP() << "this system has huge pages of its own";
  expect_all_or_nothing(
      10,
      [&] {
        stage.make(64_MiB, Pages::Hugetlb);
        stage.add(0, 100);
      },
      [&] {
        Tx tx{stage.arena()};
        tx.set(stage.directory().number, 9);
        if (tx.allocate(12000000)) ::_exit(1);
        tx.commit();
      });
}

TEST_F(HugetlbCrash, ReleaseWithAHole) {
  const HugetlbPool pool{12};
  if (!pool.why().empty()) GTEST_SKIP() << pool.why();
  expect_all_or_nothing(
      40,
      [&] {
        stage.make(16_MiB, Pages::Hugetlb);
        stage.add(0, 5000000);
        stage.add(1, 100);
      },
      [&] { stage.drop(0); });
}

TEST_F(HugetlbCrash, TakeoverThatRollsBack) {
  const HugetlbPool pool{6};
  if (!pool.why().empty()) GTEST_SKIP() << pool.why();
  if (HugetlbPool::has_more()) GTEST_SKIP() << "this system has huge pages of its own";
  expect_all_or_nothing(
      3,
      [&] {
        stage.make(8_MiB, Pages::Hugetlb);  // takes all of the pool, with what follows
        stage.add(0, 100);
        stage.add(1, 3000000);
        die_inside(stage);
      },
      [&] {
        if (!Arena::open(stage.memfd().value(), kLayout)) ::_exit(1);
      });
}

}  // namespace
}  // namespace luo::kho
