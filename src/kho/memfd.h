// The few system calls that an arena needs, each with an error that says what was tried.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/fd.h"
#include "kho/arena.h"

namespace luo::kho {

/// A memfd of that size, all holes; it can neither grow nor shrink, so that a mapping of it stays valid.
/// Pages::Hugetlb: of whole huge pages, which only give_memory takes from the pool.
Result<Fd> create_memfd(std::string_view name, std::uint64_t bytes, Pages pages = Pages::Normal);

/// Gives [at, at + bytes) memory; what is there stays. Repeats after a signal. ENOMEM, ENOSPC. Of hugetlb memory it
/// gives all huge pages that lie in part in there, and after an error keeps what it could get.
Result<> give_memory(FdRef fd, std::uint64_t at, std::uint64_t bytes);

/// Gives the memory of [at, at + bytes) back to the kernel; it reads as zeros then.
Result<> take_memory(FdRef fd, std::uint64_t at, std::uint64_t bytes);

/// Asks for huge pages in place of those in [at, at + bytes), all of which have memory; whole huge pages. What is
/// there stays. Where the kernel cannot, nothing changes.
void join_pages(std::byte* at, std::uint64_t bytes) noexcept;

/// Memory that the file has, in bytes.
Result<std::uint64_t> memory_of(FdRef fd);

/// One mapping of the front of a file; sole owner.
class Mapping {
 public:
  /// SharedHuge: at an address where huge pages of the file can be mapped as such.
  enum class Kind { Shared, SharedHuge, Private };
  Mapping() noexcept = default;
  /// No memory is reserved and nothing is read.
  static Result<Mapping> map(FdRef fd, std::uint64_t bytes, Kind kind);
  /// Zeros of our own.
  static Result<Mapping> anonymous(std::uint64_t bytes);
  Mapping(Mapping&& from) noexcept : at_{std::exchange(from.at_, nullptr)}, bytes_{std::exchange(from.bytes_, 0)} {}
  Mapping& operator=(Mapping from) noexcept {
    std::swap(at_, from.at_);
    std::swap(bytes_, from.bytes_);
    return *this;
  }
  ~Mapping();
  std::byte* at() const noexcept { return at_; }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  static Result<Mapping> map_aligned(FdRef fd, std::uint64_t bytes);
  Mapping(std::byte* at, std::uint64_t bytes) noexcept : at_{at}, bytes_{bytes} {}
  std::byte* at_ = nullptr;
  std::uint64_t bytes_ = 0;
};

}  // namespace luo::kho
