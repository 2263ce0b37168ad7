// Joins the clocks of two kernels, so that the time between them is measured.
#pragma once
#include <cstdint>

namespace luo::daemon {

/// How the time over a kexec is known: UpdateRec::clock.
enum class ClockJoin : std::uint32_t {
  None = 0,
  Cycles = 1,  ///< by the processor's cycle counter: exact
  Real = 2,    ///< by CLOCK_REALTIME, which the next kernel has read from the RTC: to some two seconds
};

/// One moment, just before the kernel is left, on every clock that there is. Travels in the image.
struct CrossingClock {
  std::uint64_t monotonic_ns, real_ns;
  std::uint64_t cycles, cycles_per_second;  ///< 0: not known
};
/// `start_cycles`, `start_raw_ns`: an earlier moment of this kernel.
CrossingClock clock_before(std::uint64_t start_cycles, std::uint64_t start_raw_ns) noexcept;

/// How long ago that was, now that another kernel runs.
struct Since {
  ClockJoin join;
  std::uint64_t ns;
};
Since time_since(const CrossingClock& before) noexcept;

}  // namespace luo::daemon
