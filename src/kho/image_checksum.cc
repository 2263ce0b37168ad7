#include "kho/image_checksum.h"

#include <cstddef>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace luo::kho {

std::uint64_t image_checksum(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t image_checksum(const ImageHeader& header) noexcept {
  return XXH3_64bits(&header, offsetof(ImageHeader, checksum));
}

struct ImageChecksum::State {
  XXH3_state_t xxh;
};

ImageChecksum::ImageChecksum() : state_{std::make_unique<State>()} { XXH3_64bits_reset(&state_->xxh); }
ImageChecksum::~ImageChecksum() = default;
void ImageChecksum::add(std::span<const std::byte> bytes) noexcept {
  if (!bytes.empty()) XXH3_64bits_update(&state_->xxh, bytes.data(), bytes.size());
}
std::uint64_t ImageChecksum::value() const noexcept { return XXH3_64bits_digest(&state_->xxh); }

}  // namespace luo::kho
