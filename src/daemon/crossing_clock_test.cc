// The clocks of two kernels, joined. Moments are made up, so that nothing here depends on how fast it runs.
#include "daemon/crossing_clock.h"

#include <gtest/gtest.h>

#include "sys/cycles.h"

namespace luo::daemon {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000, kDay = 86'400 * kSecond;

TEST(CrossingClock, IsExactByTheCycleCounter) {
  if (cycles() < 20) GTEST_SKIP() << "this processor has no cycle counter that can be read";
  // Half of all cycles that there were, a thousand of them each second: how long that is nobody else knows.
  const std::uint64_t now = cycles();
  const std::uint64_t per_second = now / 1000 + 1;
  const CrossingClock before{1, real_clock_ns(), now / 2, per_second};
  const Since since = time_since(before);
  EXPECT_EQ(since.join, ClockJoin::Cycles);
  EXPECT_GE(since.ns, 499 * kSecond) << "500 seconds, and what this took";
  EXPECT_LT(since.ns, kDay);
}

TEST(CrossingClock, FallsBackToTheTimeOfDay) {
  const std::uint64_t five_seconds_ago = real_clock_ns() - 5 * kSecond;
  const auto expect_real = [&](std::uint64_t then, std::uint64_t per_second, const char* why) {
    const Since since = time_since({1, five_seconds_ago, then, per_second});
    EXPECT_EQ(since.join, ClockJoin::Real) << why;
    EXPECT_GE(since.ns, 5 * kSecond) << why;
    EXPECT_LT(since.ns, kDay) << why;
  };
  expect_real(0, 0, "there is no counter");
  expect_real(cycles() / 2, 0, "its frequency is not known");
  expect_real(UINT64_MAX, 1'000'000'000, "it was set back");
  if (const std::uint64_t now = cycles(); now > 2 * 86'401) {
    expect_real(now - 86'401 * 2, 1, "more than a day");
    // So many that nanoseconds of them do not fit into 64 bits.
    expect_real(1, 1, "centuries");
  }
}

TEST(CrossingClock, SaysWhenItDoesNotKnow) {
  const std::uint64_t now = real_clock_ns();
  for (const std::uint64_t real : {now + kDay, now - 2 * kDay, std::uint64_t{0}, UINT64_MAX}) {
    const Since since = time_since({1, real, 0, 0});
    EXPECT_EQ(since.join, ClockJoin::None) << real;
    EXPECT_EQ(since.ns, 0U);
  }
}

TEST(CrossingClock, TellsTheCountersFrequencyFromAnEarlierMoment) {
  const std::uint64_t raw = raw_clock_ns(), count = cycles();
  EXPECT_EQ(clock_before(0, raw - kSecond).cycles_per_second, 0U) << "it was not read then";
  EXPECT_EQ(clock_before(UINT64_MAX, raw - kSecond).cycles_per_second, 0U) << "it was set back since";
  if (count < 20) GTEST_SKIP() << "this processor has no cycle counter that can be read";
  // Half of its cycles in ten seconds, or in a hundred.
  const CrossingClock clock = clock_before(count / 2, raw - 10 * kSecond);
  EXPECT_GE(clock.cycles, count);
  EXPECT_GT(clock.cycles_per_second, 0U);
  EXPECT_GT(clock.real_ns, 0U);
  EXPECT_GT(clock.monotonic_ns, 0U);
  EXPECT_LT(clock_before(count / 2, raw - 1000 * kSecond).cycles_per_second, clock.cycles_per_second);
  const Since since = time_since(clock);
  EXPECT_EQ(since.join, ClockJoin::Cycles);
}

TEST(CrossingClock, AMomentThatIsTooNearSaysNothing) {
  for (;;) {
    const std::uint64_t raw = raw_clock_ns();
    const CrossingClock clock = clock_before(1, raw);
    if (raw_clock_ns() - raw >= kSecond / 20) continue;  // this process was stopped in between
    EXPECT_EQ(clock.cycles_per_second, 0U);
    return;
  }
}

}  // namespace
}  // namespace luo::daemon
