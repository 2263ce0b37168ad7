// Any bytes as a kernel's image, as packed data, and as a command line: refused, or read, within what is there. The
// first byte says what: bit 0 set: packed data, else an image whose header is made right if bit 1 is set.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "kexec/command_line.h"
#include "kexec/decompress.h"
#include "kexec/image.h"

namespace {

using namespace luo::kexec;
using Content = std::span<const std::byte>;

void require(bool what) {
  if (!what) std::abort();
}

/// What is found must not hang on how the kernel is cut into pieces.
void look_for_configuration(Content kernel) {
  EmbeddedConfiguration whole, halves;
  whole.feed(kernel);
  halves.feed(kernel.first(kernel.size() / 2));
  halves.feed(kernel.subspan(kernel.size() / 2));
  require(whole.text() == halves.text());
}

void unpack(Content packed) {
  constexpr std::size_t kEnough = 1 << 20;
  std::vector<std::byte> out;
  const auto done = decompress(packed, [&out](Content piece) {
    out.insert(out.end(), piece.begin(), piece.end());
    return out.size() < kEnough;
  });
  if (!done) {
    const int code = done.error().code;
    require(code == EBADMSG || code == EOPNOTSUPP || code == EFBIG || code == ENOMEM);
  }
  look_for_configuration(out);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto* first = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes{first + 1, first + size};
  const std::string_view text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  (void)turned_on(text.substr(0, 4096), parse_configuration(text).value_or(Configuration{}), "x86_64");
  if ((data[0] & 1) != 0) {
    unpack(bytes);
    return 0;
  }
  constexpr std::size_t kHeader = 0x268;
  if ((data[0] & 2) != 0 && bytes.size() > kHeader) {
    const auto put = [&bytes](std::size_t at, std::initializer_list<int> values) {
      for (const int value : values) bytes[at++] = static_cast<std::byte>(value);
    };
    put(0x1fe, {0x55, 0xaa});
    put(0x202, {'H', 'd', 'r', 'S', 0x0f, 2});
  }
  const auto image = parse_image(bytes);
  if (!image) {
    require(image.error().code == EBADMSG);
    return 0;
  }
  require(image->release.empty() || is_release(image->release));
  if (image->kernel.empty()) return 0;
  require(image->kernel.data() >= bytes.data() &&
          image->kernel.data() + image->kernel.size() <= bytes.data() + bytes.size());
  if (image->packed) unpack(image->kernel);
  else look_for_configuration(image->kernel);
  return 0;
}
