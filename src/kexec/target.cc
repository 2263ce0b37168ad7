#include "kexec/target.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>

#include "base/strong.h"
#include "kexec/decompress.h"
#include "sys/memfd.h"

namespace luo::kexec {
namespace {

constexpr Bytes kLargest = 1024_MiB;  // a vmlinux with all its symbols; a bzImage has ten or twenty
constexpr std::size_t kPiece = 1 << 20;

Result<std::string> read_image(FdRef file) {
  struct stat about {};
  if (fstat(file.raw, &about) != 0) return sys_fail("fstat");
  if (!S_ISREG(about.st_mode)) return fail(EINVAL, "it is no regular file");
  return read_all(file, kLargest);
}

}  // namespace

Verdict has_luo_by_age(std::string_view release) noexcept {
  constexpr std::pair kFirst{6U, 19U};
  std::pair version{0U, 0U};
  const char* const end = release.data() + release.size();
  const auto major = std::from_chars(release.data(), end, version.first);
  if (major.ec != std::errc{} || major.ptr == end || *major.ptr != '.') return Verdict::NotKnown;
  if (std::from_chars(major.ptr + 1, end, version.second).ec != std::errc{}) return Verdict::NotKnown;
  return version >= kFirst ? Verdict::Yes : Verdict::No;
}

Result<Target> examine(FdRef file, const std::string& path) {
  const std::string content = LUO_TRY(read_image(file));
  Image image = LUO_TRY(parse_image(std::as_bytes(std::span{content})));
  Target out;
  out.format = image.format;
  out.machine = std::move(image.machine);
  out.release = std::move(image.release);
  out.unloadable = std::move(image.unloadable);
  out.page_size = image.page_size;
  out.longest_line = image.longest_line;
  out.size = content.size();
  EmbeddedConfiguration embedded;
  FormatFinder formats;
  const auto look_at = [&](std::span<const std::byte> piece) {
    embedded.feed(piece);
    formats.feed(piece);
    return true;
  };
  if (!image.packed) {
    for (auto rest = image.kernel; !rest.empty();) {
      const auto piece = rest.first(std::min(rest.size(), kPiece));
      look_at(piece);
      rest = rest.subspan(piece.size());
    }
  } else {
    const auto unpacked = decompress(image.kernel, look_at);
    if (!unpacked && unpacked.error().code == EBADMSG) return std::unexpected(unpacked.error());
    if (!unpacked) out.unread = unpacked.error().what;
  }
  if (embedded.text()) {
    out.configuration = LUO_TRY(parse_configuration(*embedded.text()));
    out.configuration.found = "in the image";
  } else {
    out.configuration = find_beside(path, out.release);
  }
  out.formats = formats.found();
  out.has_luo_by_age = has_luo_by_age(out.release);
  return out;
}

}  // namespace luo::kexec
