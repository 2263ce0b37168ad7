#include "daemon/crossing_clock.h"

#include "daemon/control.h"
#include "sys/cycles.h"

namespace luo::daemon {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
/// Over less than this the counter's frequency is not known to a thousandth.
constexpr std::uint64_t kShortest = kSecond / 20;
/// Nobody's blackout takes a day: the counter was set, or is another machine's.
constexpr std::uint64_t kLongest = 86'400 * kSecond;

std::uint64_t scaled(std::uint64_t value, std::uint64_t times, std::uint64_t by) noexcept {
  if (by == 0) return 0;
  const unsigned __int128 result = static_cast<unsigned __int128>(value) * times / by;
  return result > UINT64_MAX ? UINT64_MAX : static_cast<std::uint64_t>(result);
}

}  // namespace

CrossingClock clock_before(std::uint64_t start_cycles, std::uint64_t start_raw_ns) noexcept {
  CrossingClock clock{monotonic_ns(), real_clock_ns(), cycles(), 0};
  const std::uint64_t passed = raw_clock_ns() - start_raw_ns;
  if (start_cycles != 0 && clock.cycles > start_cycles && passed >= kShortest)
    clock.cycles_per_second = scaled(clock.cycles - start_cycles, kSecond, passed);
  return clock;
}

Since time_since(const CrossingClock& before) noexcept {
  const std::uint64_t now = cycles();
  if (before.cycles_per_second != 0 && now > before.cycles) {
    const std::uint64_t ns = scaled(now - before.cycles, kSecond, before.cycles_per_second);
    if (ns < kLongest) return {ClockJoin::Cycles, ns};
  }
  const std::uint64_t real = real_clock_ns();
  if (real > before.real_ns && real - before.real_ns < kLongest) return {ClockJoin::Real, real - before.real_ns};
  return {ClockJoin::None, 0};
}

}  // namespace luo::daemon
