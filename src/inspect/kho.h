// What the kernel has handed over a kexec (KHO) and what it would hand over now, by its debugfs; as one JSON object.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "inspect/report.h"

namespace luo::inspect {

inline constexpr const char* kKhoFolder = "/sys/kernel/debug/kho";

/// This machine's memory by physical address.
class PhysicalMemory {
 public:
  virtual ~PhysicalMemory() = default;
  /// All of `into`, or an error.
  virtual Result<> read(std::uint64_t at, std::span<std::byte> into) const = 0;
};

/// /proc/kcore, or a file like it. EACCES and EPERM: for root only, and not in a locked-down kernel; ENOENT: this
/// kernel has none; EBADMSG: it is something else.
class CoreMemory : public PhysicalMemory {
 public:
  static Result<CoreMemory> open(const std::string& path = "/proc/kcore");
  Result<> read(std::uint64_t at, std::span<std::byte> into) const override;

 private:
  struct Segment {
    std::uint64_t physical, bytes, offset;
  };
  explicit CoreMemory(Fd file) : file_{std::move(file)} {}
  Fd file_;
  std::vector<Segment> segments_;
};

/// What a map of preserved memory counts.
struct Preserved {
  std::uint64_t bytes = 0, blocks = 0;
  std::uint64_t map_bytes = 0;  ///< that the map itself takes
};

/// Walks the map that begins at `root`; it may change meanwhile. EBADMSG: it is none.
Result<Preserved> count_preserved(const PhysicalMemory& memory, std::uint64_t root);

/// `folder`: kKhoFolder, or a copy of it. `memory`: of the machine whose folder it is; nullptr: that is another one; an
/// error says why there is none. ENOENT: nothing of KHO is there; EACCES: for root only. What is damaged is among the
/// faults.
Result<Report> kho_report(const std::string& folder, const Result<const PhysicalMemory*>& memory);

}  // namespace luo::inspect
