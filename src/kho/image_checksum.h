// The checksum of images: XXH3, 64 bits.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kho/image_format.h"

namespace luo::kho {

std::uint64_t image_checksum(std::span<const std::byte> bytes) noexcept;
std::uint64_t image_checksum(const ImageHeader& header) noexcept;

/// The same over pieces that come one after the other.
class ImageChecksum {
 public:
  ImageChecksum();
  ~ImageChecksum();
  void add(std::span<const std::byte> bytes) noexcept;
  std::uint64_t value() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace luo::kho
