#include "kexec/image.h"

#include <elf.h>

#include <algorithm>
#include <optional>

namespace luo::kexec {
namespace {

using Content = std::span<const std::byte>;

constexpr std::size_t kLongestRelease = 64;  // of uname(2), with its NUL
constexpr std::size_t kSector = 512;

template <std::unsigned_integral T>
std::optional<T> read_le(Content file, std::size_t at) {
  if (at > file.size() || file.size() - at < sizeof(T)) return std::nullopt;
  T value = 0;
  for (std::size_t i = sizeof(T); i-- > 0;) value = static_cast<T>((value << 8) | std::to_integer<T>(file[at + i]));
  return value;
}

std::string_view as_text(Content bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

bool starts_with(Content file, std::string_view magic) { return as_text(file).starts_with(magic); }

std::string first_word(std::string_view text) {
  text = text.substr(0, text.find_first_of(std::string_view{" \0", 2}));
  return is_release(text) ? std::string{text} : std::string{};
}

/// Offsets are those of Linux's boot protocol for x86 (Documentation/arch/x86/boot.rst).
namespace x86 {
constexpr std::size_t kSetupSectors = 0x1f1, kSystemSize = 0x1f4, kBootFlag = 0x1fe, kMagic = 0x202, kProtocol = 0x206,
                      kVersionAt = 0x20e, kLoadFlags = 0x211, kMoreFlags = 0x236, kLineSize = 0x238, kPayloadAt = 0x248,
                      kPayloadSize = 0x24c, kHeaderEnd = 0x268;
constexpr std::uint16_t kOldest = 0x020c;             // the first with kMoreFlags
constexpr std::uint8_t kLoadedHigh = 1;               // in kLoadFlags
constexpr std::uint16_t kKernel64 = 1, kAbove4G = 2;  // in kMoreFlags
}  // namespace x86

bool is_bzimage(Content file) {
  return read_le<std::uint16_t>(file, x86::kBootFlag) == 0xAA55 &&
         read_le<std::uint32_t>(file, x86::kMagic) == 0x53726448;  // "HdrS"
}

Result<Image> parse_bzimage(Content file) {
  const auto truncated = [&] {
    return fail(EBADMSG, "it is an x86 bzImage of which only {} bytes are there", file.size());
  };
  if (file.size() < x86::kHeaderEnd) return truncated();
  const auto protocol = *read_le<std::uint16_t>(file, x86::kProtocol);
  Image image;
  image.format = Format::X86BzImage;
  image.machine = "x86_64";
  image.page_size = 4096;
  if (protocol < x86::kOldest) {
    image.unloadable = fmt::format("its boot protocol {}.{:02} is older than 2.12", protocol >> 8, protocol & 0xff);
    return image;
  }
  const auto flags = *read_le<std::uint16_t>(file, x86::kMoreFlags);
  const auto load_flags = *read_le<std::uint8_t>(file, x86::kLoadFlags);
  if ((load_flags & x86::kLoadedHigh) == 0) image.unloadable = "it is a zImage, not a bzImage";
  else if ((flags & x86::kKernel64) == 0) image.machine = "i686", image.unloadable = "it is a 32-bit kernel";
  else if ((flags & x86::kAbove4G) == 0) image.unloadable = "it is not relocatable (CONFIG_RELOCATABLE)";

  const std::size_t sectors = *read_le<std::uint8_t>(file, x86::kSetupSectors);
  const std::size_t setup = ((sectors == 0 ? 4 : sectors) + 1) * kSector;
  const std::uint64_t system = std::uint64_t{*read_le<std::uint32_t>(file, x86::kSystemSize)} * 16;
  if (setup > file.size() || system > file.size() - setup) return truncated();
  if (const std::size_t at = *read_le<std::uint16_t>(file, x86::kVersionAt); at != 0 && at + kSector < setup)
    image.release = first_word(as_text(file.subspan(at + kSector, setup - at - kSector)));
  image.longest_line = *read_le<std::uint32_t>(file, x86::kLineSize);

  const std::uint64_t payload = *read_le<std::uint32_t>(file, x86::kPayloadAt);
  const std::uint64_t length = *read_le<std::uint32_t>(file, x86::kPayloadSize);
  const Content rest = file.subspan(setup);
  if (payload > rest.size() || length > rest.size() - payload)
    return fail(EBADMSG, "it is an x86 bzImage whose payload of {} bytes ends outside the file", length);
  image.packed = true;
  image.kernel = rest.subspan(payload, length);
  return image;
}

/// Documentation/arch/arm64/booting.rst.
Result<Image> parse_arm64(Content file) {
  constexpr std::size_t kFlags = 24, kHeaderEnd = 64;
  if (file.size() < kHeaderEnd) return fail(EBADMSG, "it is an arm64 Image of only {} bytes", file.size());
  const auto flags = *read_le<std::uint64_t>(file, kFlags);
  Image image;
  image.format = Format::Arm64Image;
  image.machine = "aarch64";
  constexpr std::uint32_t kPageSizes[] = {0, 4096, 16384, 65536};
  image.page_size = kPageSizes[(flags >> 1) & 3];
  if ((flags & 1) != 0) image.unloadable = "it is a big-endian kernel";
  image.kernel = file;
  image.release = release_in(file);
  return image;
}

Result<Image> parse_elf(Content file) {
  if (file.size() < sizeof(Elf64_Ehdr)) return fail(EBADMSG, "it is an ELF file of only {} bytes", file.size());
  const auto machine = *read_le<std::uint16_t>(file, offsetof(Elf64_Ehdr, e_machine));
  Image image;
  image.format = Format::Elf;
  image.machine = machine == EM_X86_64    ? "x86_64"
                  : machine == EM_AARCH64 ? "aarch64"
                                          : fmt::format("ELF machine {}", machine);
  image.page_size = machine == EM_X86_64 ? 4096 : 0;
  image.unloadable = "it is an ELF file (a vmlinux?); what it takes is made from that: bzImage (x86), Image (arm64)";
  image.kernel = file;
  image.release = release_in(file);
  return image;
}

}  // namespace

std::string_view name_of(Format format) noexcept {
  switch (format) {
    case Format::X86BzImage: return "x86 bzImage";
    case Format::Arm64Image: return "arm64 Image";
    case Format::Elf: return "ELF file";
  }
  return "?";
}

bool is_release(std::string_view text) noexcept {
  static constexpr std::string_view kAlso = ".+~_-";
  return !text.empty() && text.size() <= kLongestRelease && text.front() >= '0' && text.front() <= '9' &&
         std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || kAlso.contains(c);
         });
}

std::string release_in(Content kernel) {
  constexpr std::string_view kBanner = "Linux version ";
  const std::string_view text = as_text(kernel);
  for (std::size_t at = text.find(kBanner); at != text.npos; at = text.find(kBanner, at + 1))
    if (auto release = first_word(text.substr(at + kBanner.size(), kLongestRelease + 1)); !release.empty())
      return release;
  return {};
}

Result<Image> parse_image(Content file) {
  if (is_bzimage(file)) return parse_bzimage(file);
  if (read_le<std::uint32_t>(file, 56) == 0x644d5241) return parse_arm64(file);  // "ARM\x64"
  if (starts_with(file, ELFMAG)) return parse_elf(file);
  if (starts_with(file, "\x1f\x8b")) return fail(EBADMSG, "it is compressed with gzip (an arm64 Image.gz? unpack it)");
  if (file.size() > 8 && starts_with(file, "MZ") && as_text(file).substr(4, 4) == "zimg")
    return fail(EBADMSG, "it is packed for EFI (zboot); take the Image that it is made from");
  return fail(EBADMSG, "it is none that is known here: x86 bzImage, arm64 Image, ELF vmlinux");
}

}  // namespace luo::kexec
