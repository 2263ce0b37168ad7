// What the benchmarks have in common: a clock, a connection to luod, and sessions.
#pragma once
#include <luo/luo.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace bench {

inline constexpr std::size_t kBatch = 253;  // SCM_MAX_FD

inline std::uint64_t now_ns() noexcept {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Microseconds of each of `count` operations since `began`.
inline double us_each(std::uint64_t began, std::size_t count) {
  return static_cast<double>(now_ns() - began) / 1e3 / static_cast<double>(count);
}

inline auto luo_fail(int result, std::string_view what) { return luo::fail(-result, "{}: {}", what, luo_last_error()); }

class Connection {
 public:
  static luo::Result<Connection> open(const std::string& socket) {
    luo_connection* raw = nullptr;
    if (const int result = luo_open(socket.empty() ? nullptr : socket.c_str(), &raw); result < 0)
      return luo_fail(result, "connect to luod");
    return Connection{raw};
  }
  luo_connection* get() const noexcept { return raw_.get(); }

 private:
  explicit Connection(luo_connection* raw) : raw_{raw, &luo_close} {}
  std::unique_ptr<luo_connection, decltype(&luo_close)> raw_;
};

inline std::vector<int> numbers_of(const std::vector<luo::Fd>& fds) {
  std::vector<int> numbers;
  for (const luo::Fd& fd : fds) numbers.push_back(fd.raw());
  return numbers;
}

inline luo::Result<luo::Fd> create(const Connection& to, const std::string& name) {
  const int fd = luo_session_create(to.get(), name.c_str());
  if (fd < 0) return luo_fail(fd, "create " + name);
  return luo::Fd::adopt(fd);
}

inline luo::Result<luo::Fd> retrieve(const Connection& to, const std::string& name) {
  const int fd = luo_session_retrieve(to.get(), name.c_str());
  if (fd < 0) return luo_fail(fd, "retrieve " + name);
  return luo::Fd::adopt(fd);
}

}  // namespace bench
