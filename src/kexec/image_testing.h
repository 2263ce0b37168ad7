// Kernel images for tests, as small as they can be.
#pragma once
#include <zlib.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace luo::kexec {

/// All that a kernel needs for live updates.
inline constexpr std::string_view kGoodConfiguration =
    "# Linux/x86 7.3.4 Kernel Configuration\nCONFIG_64BIT=y\nCONFIG_KEXEC_HANDOVER=y\n"
    "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\nCONFIG_LIVEUPDATE=y\nCONFIG_LIVEUPDATE_MEMFD=y\n";

using namespace std::string_view_literals;
inline constexpr std::string_view kFormats = "\0kho-v4\0luo-v5\0memfd-v2\0"sv;

inline std::string gzip(std::string_view content) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, content.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

/// An unpacked kernel; with no configuration in it if that is empty.
inline std::string kernel_with(std::string_view configuration, std::string_view formats = kFormats) {
  std::string kernel =
      "\x7f"
      "ELF" +
      std::string(3000, 'k') + "IKCFG_ST is not it, IKCFG_ED";
  if (!configuration.empty()) kernel += "IKCFG_ST" + gzip(configuration) + "IKCFG_ED";
  kernel += formats;
  return kernel + std::string(5000, 'e');
}

template <class T>
void put_le(std::string& out, std::size_t at, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out[at + i] = static_cast<char>(value >> (8 * i));
}

/// `payload` is the packed kernel.
inline std::string bzimage(std::string_view release, std::string_view payload) {
  constexpr std::size_t kSetup = 2 * 512, kVersion = 0x300, kCode = 64;  // one sector of setup
  std::string out(kSetup + kCode, '\0');
  out += payload;
  out.resize((out.size() + 3 + 15) / 16 * 16);  // a few bytes behind the payload: a kernel has its length there
  put_le<std::uint8_t>(out, 0x1f1, 1);
  put_le(out, 0x1f4, static_cast<std::uint32_t>((out.size() - kSetup) / 16));
  put_le<std::uint16_t>(out, 0x1fe, 0xAA55);
  out.replace(0x202, 4, "HdrS");
  put_le<std::uint16_t>(out, 0x206, 0x020f);
  put_le<std::uint16_t>(out, 0x20e, kVersion - 512);
  put_le<std::uint8_t>(out, 0x211, 1);
  put_le<std::uint16_t>(out, 0x236, 3);
  put_le<std::uint32_t>(out, 0x238, 2047);
  put_le<std::uint32_t>(out, 0x248, kCode);
  put_le(out, 0x24c, static_cast<std::uint32_t>(payload.size()));
  out.replace(kVersion, release.size(), release);
  return out;
}

}  // namespace luo::kexec
