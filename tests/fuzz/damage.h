// A memory image that is damaged by an input, used, and put back as it was, for fuzz targets that open what
// another process left.
//
// An input is a list of eight-byte edits: offset (4 bytes, in the regions one after the other), what to do
// (1 byte), and three bytes of argument. An edit that copies eight bytes from one place to another makes what
// random bits hardly ever make: links to real, but wrong records.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace luo::fuzz {

class Damage {
 public:
  /// The regions lie in memory that stays mapped. As they are now is how restore() makes them again.
  explicit Damage(std::vector<std::span<std::byte>> regions) : regions_{std::move(regions)} {
    for (const auto& region : regions_) {
      pristine_.emplace_back(region.begin(), region.end());
      total_ += region.size();
    }
  }

  void apply(std::span<const std::uint8_t> input) {
    for (; input.size() >= 8; input = input.subspan(8)) {
      std::uint32_t at;
      std::memcpy(&at, input.data(), sizeof at);
      const std::uint8_t what = input[4];
      const std::uint32_t argument = static_cast<std::uint32_t>(input[5] | input[6] << 8 | input[7] << 16);
      edit(at, what, argument);
    }
  }

  void restore() {
    for (std::size_t i = 0; i < regions_.size(); ++i)
      std::memcpy(regions_[i].data(), pristine_[i].data(), pristine_[i].size());
  }

 private:
  std::span<std::byte> place(std::uint64_t offset, std::size_t bytes) {
    offset %= total_;
    for (const auto& region : regions_) {
      if (offset < region.size()) {
        // Whole words are aligned: so do the fields lie that a target reads.
        if (bytes == 8) offset &= ~std::uint64_t{7};
        return offset + bytes <= region.size() ? region.subspan(offset, bytes) : region.last(bytes);
      }
      offset -= region.size();
    }
    return {};
  }

  void edit(std::uint32_t at, std::uint8_t what, std::uint32_t argument) {
    constexpr std::uint64_t kTelling[] = {0,          1,          2,          ~std::uint64_t{0},
                                          1ULL << 31, 1ULL << 32, 1ULL << 63, 0x7fffffffffffffff};
    switch (what % 6) {
      case 0: place(at, 1)[0] ^= static_cast<std::byte>(1U << (argument & 7)); break;
      case 1: place(at, 1)[0] = static_cast<std::byte>(argument); break;
      case 2: put(at, kTelling[argument & 7]); break;
      case 3: put(at, get(at) + argument); break;
      case 4: put(at, get(at) - argument); break;
      default: put(at, get(std::uint64_t{argument} * 8)); break;
    }
  }
  std::uint64_t get(std::uint64_t at) {
    std::uint64_t value;
    std::memcpy(&value, place(at, 8).data(), 8);
    return value;
  }
  void put(std::uint64_t at, std::uint64_t value) { std::memcpy(place(at, 8).data(), &value, 8); }

  std::vector<std::span<std::byte>> regions_;
  std::vector<std::vector<std::byte>> pristine_;
  std::uint64_t total_ = 0;
};

/// Ends the run: what the target relies on does not hold.
[[noreturn]] inline void found(const char* what) {
  std::fprintf(stderr, "found: %s\n", what);
  std::abort();
}

}  // namespace luo::fuzz
