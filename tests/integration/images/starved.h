// What a test and luod_starved share: which allocation is to fail.
#pragma once
#include <atomic>
#include <cstdint>

namespace luo::test {

inline constexpr const char* kStarvedVariable = "LUO_TEST_ALLOCATIONS";  ///< names a file that holds a Starved

struct Starved {
  std::atomic<std::int32_t> process;  ///< whose allocations count; 0: nobody's; -p: all processes' but p's
  std::atomic<std::int64_t> until;    ///< the first that fails, counted from 1; counts down
  std::atomic<std::int64_t> times;    ///< how many fail, one after the other
  std::atomic<std::uint64_t> failed;  ///< so many have
};
static_assert(std::atomic<std::int64_t>::is_always_lock_free);

}  // namespace luo::test
