// The processor's cycle counter: the one clock that a kexec does not stop or set (x86: TSC; arm64: the generic timer),
// so that times of two kernels can be told apart to the microsecond. CLOCK_REALTIME is set anew from the RTC, to the
// second.
#pragma once
#include <cstdint>

namespace luo {

/// 0: this processor has none that can be read from here.
std::uint64_t cycles() noexcept;

/// CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME and CLOCK_REALTIME, in nanoseconds.
std::uint64_t raw_clock_ns() noexcept;
std::uint64_t boot_clock_ns() noexcept;
std::uint64_t real_clock_ns() noexcept;

}  // namespace luo
