#include "sys/cycles.h"

#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace luo {
namespace {
std::uint64_t now(clockid_t clock) noexcept {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(t.tv_nsec);
}
}  // namespace

std::uint64_t cycles() noexcept {
#if defined(__x86_64__)
  return __rdtsc();
#elif defined(__aarch64__)
  std::uint64_t count = 0;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return 0;
#endif
}

std::uint64_t raw_clock_ns() noexcept { return now(CLOCK_MONOTONIC_RAW); }
std::uint64_t boot_clock_ns() noexcept { return now(CLOCK_BOOTTIME); }
std::uint64_t real_clock_ns() noexcept { return now(CLOCK_REALTIME); }

}  // namespace luo
