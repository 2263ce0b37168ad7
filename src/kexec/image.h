// The headers of kernel images: what kind it is, and where in the file the kernel proper lies. Any thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace luo::kexec {

enum class Format : std::uint8_t { X86BzImage, Arm64Image, Elf };
std::string_view name_of(Format format) noexcept;

struct Image {
  Format format = Format::Elf;
  std::string machine;                ///< as uname(2) calls it: "x86_64"
  std::string release;                ///< "7.3.4-luo"; empty: the header does not tell
  std::uint32_t page_size = 0;        ///< Bytes; 0: the header does not tell
  std::uint32_t longest_line = 0;     ///< of a command line, without its NUL; 0: the header does not tell
  std::string unloadable;             ///< why kexec_file_load(2) does not take it; empty: nothing speaks against it
  bool packed = false;                ///< `kernel` has to be decompressed
  std::span<const std::byte> kernel;  ///< within the file that was parsed
};

/// EBADMSG: it is no kernel image, or not all of one; the text says what it looks like.
Result<Image> parse_image(std::span<const std::byte> file);

/// What follows the first "Linux version " of an unpacked kernel, up to the blank; empty: nothing.
std::string release_in(std::span<const std::byte> kernel);

/// Letters, digits and ".+~_-" only, not too long: fit for a file's name and a terminal.
bool is_release(std::string_view text) noexcept;

}  // namespace luo::kexec
