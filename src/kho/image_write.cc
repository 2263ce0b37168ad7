#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kho/image.h"
#include "kho/image_checksum.h"
#include "kho/image_extents.h"

namespace luo::kho {
namespace {

Result<> write_at(FdRef file, std::uint64_t at, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(file.raw, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return sys_fail("pwrite(fd {}, {} bytes at {})", file.raw, bytes.size(), at);
    if (n == 0) return fail(EIO, "pwrite(fd {}, {} bytes at {}) wrote nothing", file.raw, bytes.size(), at);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    at += static_cast<std::uint64_t>(n);
  }
  return {};
}

Result<> resize(FdRef file, std::uint64_t bytes) {
  while (::ftruncate(file.raw, static_cast<off_t>(bytes)) != 0)
    if (errno != EINTR) return sys_fail("ftruncate(fd {}, {})", file.raw, bytes);
  return {};
}

/// The bitmaps of the chunks that have one, one after the other.
std::vector<std::byte> bitmaps_in(ArenaParts arena) {
  std::vector<std::byte> out;
  for (std::uint32_t index = 0; index < arena.frontier(); index = arena.after(index)) {
    if (arena.table()[index].state != ChunkState::Small) continue;
    const auto* bitmap = reinterpret_cast<const std::byte*>(arena.bitmap(index));
    out.insert(out.end(), bitmap, bitmap + kBitmapBytes);
  }
  return out;
}

std::vector<std::byte> in_format(std::uint32_t format, const std::vector<Segment>& segments) {
  std::vector<std::byte> out(segments.size() * segment_bytes_in(format));
  for (std::size_t i = 0; i < segments.size(); ++i)
    std::memcpy(out.data() + i * segment_bytes_in(format), &segments[i], segment_bytes_in(format));
  return out;
}
static_assert(offsetof(Segment, sum) == sizeof(SegmentV1), "format 1 is the front of format 2");

Result<std::uint64_t> write(const Arena& arena, FdRef file, const ImageOptions& options) {
  if (options.format < kOldestImageFormat || options.format > kImageFormat)
    return fail(EINVAL, "format {} is not in {} .. {}", options.format, kOldestImageFormat, kImageFormat);
  struct stat st {};
  if (::fstat(file.raw, &st) != 0) return sys_fail("fstat(fd {})", file.raw);
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, "fd {} is not a file", file.raw);
  const ArenaParts parts{arena.control().data() - Arena::kControlOffset};
  const auto& log = *reinterpret_cast<const LogHeader*>(parts.base + kLogAt);
  if (tail_of(log.tail) != 0) return fail(EBUSY, "a transaction is open");
  LUO_TRY(arena.check());

  const std::vector<Extent> extents = extents_of(parts, options.control);
  const std::span table{reinterpret_cast<const std::byte*>(parts.table()), parts.frontier() * sizeof(Chunk)};
  const std::vector<std::byte> bitmaps = bitmaps_in(parts);
  const ImageSections at = sections_of(options.format, table.size(), bitmaps.size(), extents.size());
  std::uint64_t file_bytes = at.data_at;
  for (const Extent& extent : extents) file_bytes += extent.bytes;

  if (options.in_place) {
    if (static_cast<std::uint64_t>(st.st_size) < file_bytes)
      return fail(ENOSPC, "the image has {} bytes, the file it is to be in only {}", file_bytes, st.st_size);
    // What an earlier image left: its header, and what is padding in this one.
    const std::vector<std::byte> zeros(kPageBytes);
    LUO_TRY(write_at(file, 0, std::span{zeros}.first(sizeof(ImageHeader))));
    LUO_TRY(write_at(file, at.segments_end, std::span{zeros}.first(at.data_at - at.segments_end)));
  } else {
    LUO_TRY(resize(file, 0));
    LUO_TRY(resize(file, file_bytes));
  }
  std::vector<Segment> segments;
  segments.reserve(extents.size());
  ImageChecksum all;
  std::vector<std::byte> buffer;
  std::uint64_t place = at.data_at;
  for (const Extent& extent : extents) {
    if (buffer.size() < extent.bytes) buffer.resize(extent.bytes);
    const std::span data{buffer.data(), extent.bytes};
    copy_extent(parts, extent, data.data());
    if (options.format == 1) all.add(data);
    segments.push_back({extent.at, extent.bytes, options.format == 1 ? 0 : image_checksum(data)});
    LUO_TRY(write_at(file, place, data));
    place += extent.bytes;
  }
  const std::vector<std::byte> segment_table = in_format(options.format, segments);
  ImageHeader header{.magic = kImageMagic,
                     .byte_order = kByteOrder,
                     .format = options.format,
                     .page_bytes = kPageBytes,
                     .header_bytes = sizeof(ImageHeader),
                     .features = options.control ? kImageControl : std::uint64_t{0},
                     .file_bytes = file_bytes,
                     .table_at = at.table_at,
                     .table_bytes = table.size(),
                     .bitmaps_at = at.bitmaps_at,
                     .bitmaps_bytes = bitmaps.size(),
                     .segments_at = at.segments_at,
                     .segments = segments.size(),
                     .data_at = at.data_at,
                     .table_sum = image_checksum(table),
                     .bitmaps_sum = image_checksum(bitmaps),
                     .segments_sum = image_checksum(segment_table),
                     .data_sum = options.format == 1 ? all.value() : 0,
                     .constants = parts.header().constants,
                     .state = parts.header().state,
                     .checksum = 0};
  header.checksum = image_checksum(header);
  LUO_TRY(write_at(file, at.table_at, table));
  LUO_TRY(write_at(file, at.bitmaps_at, bitmaps));
  LUO_TRY(write_at(file, at.segments_at, segment_table));
  LUO_TRY(write_at(file, 0, std::as_bytes(std::span{&header, 1})));
  return file_bytes;
}

}  // namespace

Result<std::uint64_t> write_image(const Arena& arena, FdRef file, const ImageOptions& options) {
  return LUO_TRY_DURING("write image", write(arena, file, options));
}

Result<Fd> seal(const Arena& arena, std::string_view name, const ImageOptions& options) {
  const auto make = [&]() -> Result<Fd> {
    const std::string text{name};
    Fd fd = Fd::adopt(::memfd_create(text.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd.valid()) return sys_fail("memfd_create({})", name);
    LUO_TRY(write(arena, fd, options));
    if (::fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
      return sys_fail("fcntl(fd {}, F_ADD_SEALS, WRITE | SHRINK | GROW | SEAL)", fd.raw());
    return fd;
  };
  return LUO_TRY_DURING("seal arena", make());
}

}  // namespace luo::kho
