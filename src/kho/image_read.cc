#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "kho/arena_open.h"
#include "kho/heap.h"
#include "kho/image.h"
#include "kho/image_checksum.h"
#include "kho/image_extents.h"
#include "kho/image_open.h"
#include "kho/memfd.h"
#include "kho/undo_log.h"

namespace luo::kho {
namespace {

constexpr std::uint64_t page_end(std::uint64_t at) noexcept { return (at + kPageBytes - 1) & ~(kPageBytes - 1); }

/// Before anything else is believed: that it is an image, whole, and ours to read.
Result<> check_identity(const ImageHeader& h, std::uint64_t size) {
  if (h.magic == __builtin_bswap64(kImageMagic) && h.byte_order == __builtin_bswap32(kByteOrder))
    return fail(EPROTO, "image header: written in the other byte order");
  if (h.magic == kArenaMagic) return fail(EBADMSG, "image header: this is an arena, not an image of one");
  if (h.magic != kImageMagic)
    return fail(EBADMSG, "image header: magic is {:#018x}, not {:#018x}", h.magic, kImageMagic);
  if (h.byte_order != kByteOrder) return fail(EBADMSG, "image header: byte order mark is {:#010x}", h.byte_order);
  if (h.format < kOldestImageFormat || h.format > kImageFormat)
    return fail(EPROTO, "image header: format {}, this program reads formats {} to {}", h.format, kOldestImageFormat,
                kImageFormat);
  if (h.checksum != image_checksum(h))
    return fail(EBADMSG, "image header: checksum is {:#x}, not {:#x}", h.checksum, image_checksum(h));
  if (h.page_bytes != kPageBytes)
    return fail(EPROTO, "image header: pages of {} bytes, here {}", h.page_bytes, kPageBytes);
  if ((h.features & ~std::uint64_t{kImageFeatures}) != 0)
    return fail(EPROTO, "image header: features {:#x}, this program knows {:#x}", h.features,
                std::uint64_t{kImageFeatures});
  if (h.file_bytes != size)
    return fail(EBADMSG, "image header: the image should have {} bytes, the file has {}", h.file_bytes, size);
  return {};
}

/// From here on a difference means that somebody else, with the same format number, wrote it.
Result<> check_header(const ImageHeader& h) {
  const HeaderConstants& c = h.constants;
  if (c.magic != kArenaMagic || c.byte_order != kByteOrder)
    return fail(EBADMSG, "image header: the arena's header in it is none");
  if (c.format != kFormat)
    return fail(EPROTO, "image header: an arena of format {}, this program reads format {}", c.format, kFormat);
  LUO_TRY_DURING("image header", check_pages(c.pages));
  const std::uint64_t heap = c.geometry.heap_bytes;
  if (heap < kMinHeapBytes || heap > kMaxHeapBytes || c != constants_of(c.layout, geometry_of(heap, c.pages), c.pages))
    return fail(EBADMSG, "image header: the arena's sections are not where a heap of {} bytes has them", heap);
  if (h.state.frontier > c.geometry.chunks)
    return fail(EBADMSG, "image header: {} chunks in use of {}", h.state.frontier, c.geometry.chunks);
  if (h.header_bytes != sizeof h || h.table_bytes != h.state.frontier * sizeof(Chunk) ||
      h.bitmaps_bytes % kBitmapBytes != 0 || h.bitmaps_bytes / kBitmapBytes > h.state.frontier ||
      h.segments > h.file_bytes / kPageBytes || (h.format != 1 && h.data_sum != 0))
    return fail(EBADMSG, "image header: its numbers do not fit each other");
  const ImageSections s = sections_of(h.format, h.table_bytes, h.bitmaps_bytes, h.segments);
  if (h.table_at != s.table_at || h.bitmaps_at != s.bitmaps_at || h.segments_at != s.segments_at ||
      h.data_at != s.data_at || h.data_at > h.file_bytes)
    return fail(EBADMSG, "image header: sections overlap, have gaps, or reach beyond the file");
  return {};
}

}  // namespace

Result<> read_at(FdRef file, std::uint64_t at, std::span<std::byte> to, std::string_view what) {
  while (!to.empty()) {
    const ssize_t n = ::pread(file.raw, to.data(), to.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return sys_fail("{}: pread(fd {}, {} bytes at {})", what, file.raw, to.size(), at);
    if (n == 0) return fail(EBADMSG, "{}: the image ends at {}, {} bytes are missing", what, at, to.size());
    to = to.subspan(static_cast<std::size_t>(n));
    at += static_cast<std::uint64_t>(n);
  }
  return {};
}

namespace {

Result<ImageHeader> read_header(FdRef image, bool may_be_longer) {
  struct stat st {};
  if (::fstat(image.raw, &st) != 0) return sys_fail("fstat(fd {})", image.raw);
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, "fd {} is not a file", image.raw);
  const auto size = static_cast<std::uint64_t>(st.st_size);
  ImageHeader header;
  if (size < sizeof header)
    return fail(EBADMSG, "image header: the file has only {} bytes of its {}", size, sizeof header);
  LUO_TRY(read_at(image, 0, std::as_writable_bytes(std::span{&header, 1}), "image header"));
  LUO_TRY(check_identity(header, may_be_longer ? std::min(size, header.file_bytes) : size));
  LUO_TRY(check_header(header));
  return header;
}

}  // namespace

Result<ImageHeader> read_image_header(FdRef image) { return read_header(image, false); }

Result<std::uint64_t> image_length(FdRef image) { return LUO_TRY(read_header(image, true)).file_bytes; }

Result<> check_sum(std::string_view what, std::uint64_t is, std::uint64_t stored) {
  if (is == stored) return {};
  return fail(EBADMSG, "{}: checksum is {:#x}, not {:#x}", what, is, stored);
}

namespace {

/// The arena that is being built; nobody has seen it yet.
class Builder {
 public:
  Builder(FdRef image, const ImageHeader& header)
      : image_{image}, header_{header}, geometry_{header.constants.geometry} {}

  Result<Fd> build(std::string_view name) {
    fd_ = LUO_TRY(create_memfd(name, geometry_.file_bytes, header_.constants.pages));
    map_ = LUO_TRY(map_whole(fd_, geometry_, header_.constants.pages));
    const Pages pages = header_.constants.pages;
    LUO_TRY(pages == Pages::Hugetlb ? give_first_pages(fd_, geometry_, pages) : give_memory(fd_, 0, kPageBytes));
    const Header header{header_.constants, header_.state};
    std::memcpy(map_.at(), &header, sizeof header);
    LUO_TRY(read_table());
    LUO_TRY(read_bitmaps());
    mark_backed();
    LUO_TRY(check_state(map_.at(), geometry_, fd_));
    LUO_TRY(heap().check_blocks());
    const std::vector<Segment> segments = LUO_TRY(read_segments());
    LUO_TRY(read_padding());
    LUO_TRY(give_memory(fd_, 0, kLogAt + kLogBytes));
    UndoLog::format(map_.at());
    for (const Extent& run : chunks_in_use(parts())) LUO_TRY(give_memory(fd_, run.at, run.bytes));
    LUO_TRY(read_data(segments));
    for (const Extent& run : chunks_in_use(parts()))
      heap().join(static_cast<std::uint32_t>((run.at - geometry_.heap_at) / kChunkBytes),
                  static_cast<std::uint32_t>(run.bytes / kChunkBytes));
    return std::move(fd_);
  }

 private:
  ArenaParts parts() const noexcept { return {map_.at()}; }
  Heap heap() { return Heap{map_.at(), geometry_, no_log_, fd_}; }

  /// What Heap::grow() gives memory to as chunks come into use.
  Result<> read_table() {
    const std::uint64_t chunks = header_.state.frontier;
    if (chunks == 0) return check_sum("chunk table", image_checksum(std::span<const std::byte>{}), header_.table_sum);
    const auto give = [&](std::uint64_t at, std::uint64_t bytes) { return give_memory(fd_, at, page_end(bytes)); };
    LUO_TRY(give(geometry_.backed_at, std::min(chunks / 64 * 8 + 8, geometry_.backed_bytes)));
    LUO_TRY(give(geometry_.table_at, chunks * sizeof(Chunk)));
    LUO_TRY(give(geometry_.bitmap_at, chunks * kBitmapBytes));
    const std::span table{map_.at() + geometry_.table_at, header_.table_bytes};
    LUO_TRY(read_at(image_, header_.table_at, table, "chunk table"));
    LUO_TRY(check_sum("chunk table", image_checksum(table), header_.table_sum));
    return heap().check_table();
  }

  Result<> read_bitmaps() {
    ImageChecksum sum;
    std::uint64_t place = header_.bitmaps_at;
    const std::uint64_t end = place + header_.bitmaps_bytes;
    const auto small = [&](std::uint32_t i) { return parts().table()[i].state == ChunkState::Small; };
    for (std::uint32_t from = 0; from < parts().frontier();) {
      if (!small(from)) {
        from = parts().after(from);
        continue;
      }
      std::uint32_t to = from + 1;  // neighbours' bitmaps are neighbours here and there
      while (to < parts().frontier() && small(to)) ++to;
      const std::span bitmaps{map_.at() + geometry_.bitmap_at + from * kBitmapBytes, (to - from) * kBitmapBytes};
      if (bitmaps.size() > end - place)
        return fail(EBADMSG, "bitmaps: {} of them, the chunk table needs more", header_.bitmaps_bytes / kBitmapBytes);
      LUO_TRY(read_at(image_, place, bitmaps, "bitmaps"));
      sum.add(bitmaps);
      place += bitmaps.size();
      from = to;
    }
    if (place != end)
      return fail(EBADMSG, "bitmaps: {} of them, the chunk table needs fewer", header_.bitmaps_bytes / kBitmapBytes);
    return check_sum("bitmaps", sum.value(), header_.bitmaps_sum);
  }

  void mark_backed() noexcept {
    auto* words = reinterpret_cast<std::uint64_t*>(map_.at() + geometry_.backed_at);
    for (const Extent& run : chunks_in_use(parts())) {
      const std::uint64_t first = (run.at - geometry_.heap_at) / kChunkBytes;
      const std::uint64_t end = first + run.bytes / kChunkBytes;
      const std::uint64_t unit = header_.constants.pages == Pages::Hugetlb ? kHugeChunks : 1;
      for (std::uint64_t i = first / unit * unit; i < (end + unit - 1) / unit * unit; ++i)
        words[i / 64] |= std::uint64_t{1} << (i % 64);
    }
  }

  /// They have to be exactly what the chunk table has in use.
  Result<std::vector<Segment>> read_segments() {
    const std::vector<Extent> used = extents_of(parts(), (header_.features & kImageControl) != 0);
    if (header_.segments != used.size())
      return fail(EBADMSG, "segment table: {} segments, what is in use makes {}", header_.segments, used.size());
    const std::uint64_t each = segment_bytes_in(header_.format);
    std::vector<std::byte> raw(used.size() * each);
    LUO_TRY(read_at(image_, header_.segments_at, raw, "segment table"));
    LUO_TRY(check_sum("segment table", image_checksum(raw), header_.segments_sum));
    std::vector<Segment> segments(used.size());
    std::uint64_t data = 0;
    for (std::size_t i = 0; i < used.size(); ++i) {
      std::memcpy(&segments[i], raw.data() + i * each, each);
      const Segment& segment = segments[i];
      if (i != 0 && segment.at < segments[i - 1].at + segments[i - 1].bytes)
        return fail(EBADMSG, "segment {}: {} bytes at {:#x} overlap the segment before", i, segment.bytes, segment.at);
      if (Extent{segment.at, segment.bytes} != used[i])
        return fail(EBADMSG, "segment {}: {} bytes at {:#x}, in use are {} at {:#x}", i, segment.bytes, segment.at,
                    used[i].bytes, used[i].at);
      data += segment.bytes;
    }
    if (data != header_.file_bytes - header_.data_at)
      return fail(EBADMSG, "segment table: {} bytes of data, the file has {}", data,
                  header_.file_bytes - header_.data_at);
    return segments;
  }

  Result<> read_padding() {
    std::array<std::byte, kPageBytes> gap{};
    const std::uint64_t end = header_.segments_at + header_.segments * segment_bytes_in(header_.format);
    const std::span padding{gap.data(), header_.data_at - end};
    LUO_TRY(read_at(image_, end, padding, "padding"));
    const auto used = std::ranges::find_if(padding, [](std::byte b) { return b != std::byte{}; });
    if (used != padding.end())
      return fail(EBADMSG, "padding: byte {} of the image is not 0",
                  end + static_cast<std::uint64_t>(used - padding.begin()));
    return {};
  }

  Result<> read_data(const std::vector<Segment>& segments) {
    ImageChecksum all;
    std::uint64_t place = header_.data_at;
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const std::span data{map_.at() + segments[i].at, segments[i].bytes};
      const auto what = [&] {
        return fmt::format("segment {} ({} bytes at {:#x}, in the image at {:#x})", i, data.size(), segments[i].at,
                           place);
      };
      LUO_TRY(read_at(image_, place, data, what()));
      if (header_.format == 1) all.add(data);
      else LUO_TRY(check_sum(what(), image_checksum(data), segments[i].sum));
      place += data.size();
    }
    return header_.format == 1 ? check_sum("data", all.value(), header_.data_sum) : Result<>{};
  }

  FdRef image_;
  const ImageHeader& header_;
  const Geometry& geometry_;
  Fd fd_;
  Mapping map_;
  UndoLog no_log_;
};

}  // namespace

Result<Arena> populate(FdRef image, const Layout& expected, std::string_view name) {
  const auto make = [&]() -> Result<Arena> {
    const ImageHeader header = LUO_TRY(read_image_header(image));
    if (header.constants.layout != expected)
      return fail(EPROTO, "image header: it holds {}, expected is {}", to_string(header.constants.layout),
                  to_string(expected));
    Fd fd = LUO_TRY(Builder(image, header).build(name));
    return Arena::open(std::move(fd), expected);
  };
  return LUO_TRY_DURING("populate arena", make());
}

Result<ImageInfo> inspect_image(FdRef image) {
  const auto look = [&]() -> Result<ImageInfo> {
    const ImageHeader h = LUO_TRY(read_image_header(image));
    constexpr int kSeals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    const int seals = ::fcntl(image.raw, F_GET_SEALS);  // EINVAL: a file that has none
    ImageInfo info{.format = h.format,
                   .layout = h.constants.layout,
                   .max_size = Bytes{h.constants.geometry.heap_bytes},
                   .file_bytes = Bytes{h.file_bytes},
                   .data_bytes = Bytes{h.file_bytes - h.data_at},
                   .segments = h.segments,
                   .used_bytes = h.state.used_bytes,
                   .blocks = h.state.blocks,
                   .roots = {},
                   .control = (h.features & kImageControl) != 0,
                   .sealed = seals >= 0 && (seals & kSeals) == kSeals};
    for (unsigned slot = 0; slot < Arena::kRoots; ++slot) info.roots[slot] = PhysAddr{h.state.roots[slot]};
    return info;
  };
  return LUO_TRY_DURING("inspect image", look());
}

}  // namespace luo::kho
