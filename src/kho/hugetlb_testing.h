// Huge pages for tests of hugetlb memory: for one test at a time on this machine, as surplus pages, which go back by
// themselves when the last descriptor of a file is closed. A test that is killed leaves the permission to have them,
// nr_overcommit_hugepages, as it was then.
#pragma once
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "kho/format.h"

namespace luo::kho {

class HugetlbPool {
 public:
  static constexpr unsigned kMemfdFlags = MFD_HUGETLB | 21U << 26;  ///< of 2 MiB, whatever the system's default is
  /// So many of 2 MiB, more than are reserved already. Waits for other tests.
  explicit HugetlbPool(std::uint64_t pages) {
    setting_ = Fd::adopt(::open((kFolder + "nr_overcommit_hugepages").c_str(), O_RDWR | O_CLOEXEC));
    if (!setting_.valid()) {
      why_ = "this system has no huge pages of 2 MiB, or their number may not be set: " + errno_text(errno);
      return;
    }
    if (::flock(setting_.raw(), LOCK_EX) != 0) {
      why_ = "flock: " + errno_text(errno);
      return;
    }
    old_ = number("nr_overcommit_hugepages");
    if (!set(old_ + pages)) {
      why_ = "the number of huge pages may not be set: " + errno_text(errno);
      return;
    }
    raised_ = true;
    const auto bytes = static_cast<off_t>(pages * kHugeBytes);
    const Fd fd = Fd::adopt(::memfd_create("probe", MFD_CLOEXEC | kMemfdFlags));
    if (!fd.valid() || (pages != 0 && (::ftruncate(fd.raw(), bytes) != 0 || ::fallocate(fd.raw(), 0, 0, bytes) != 0)))
      why_ = fmt::format("{} huge pages are not to be had: {}", pages, errno_text(errno));
  }
  HugetlbPool(const HugetlbPool&) = delete;
  HugetlbPool& operator=(const HugetlbPool&) = delete;
  ~HugetlbPool() {
    if (raised_) set(old_);
  }

  /// Why there are none; empty if there are.
  const std::string& why() const noexcept { return why_; }
  /// Whether others have left pages in the pool, so that ours are not all there are.
  static bool has_more() { return number("free_hugepages") != 0; }
  static std::uint64_t in_use() { return number("nr_hugepages") - number("free_hugepages"); }

 private:
  static inline const std::string kFolder = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  static std::uint64_t number(const std::string& name) {
    std::uint64_t value = 0;
    std::ifstream{kFolder + name} >> value;
    return value;
  }
  bool set(std::uint64_t pages) {
    const std::string text = std::to_string(pages);
    return ::pwrite(setting_.raw(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  }

  Fd setting_;
  std::uint64_t old_ = 0;
  bool raised_ = false;
  std::string why_;
};

}  // namespace luo::kho
