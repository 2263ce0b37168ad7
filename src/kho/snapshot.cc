#include "kho/snapshot.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>

#include "kho/arena_open.h"
#include "kho/heap.h"
#include "kho/image_checksum.h"
#include "kho/image_extents.h"
#include "kho/image_open.h"
#include "kho/undo_log.h"

namespace luo::kho {
namespace {

constexpr std::uint64_t kLineBytes = 64;
using Line = std::array<std::byte, kLineBytes>;

/// Memory of our own for an arena's metadata, at the offsets that it has in the arena. Taken as it is written.
struct Unmap {
  std::uint64_t bytes = 0;
  void operator()(std::byte* at) const noexcept { ::munmap(at, bytes); }
};
using Metadata = std::unique_ptr<std::byte, Unmap>;

Result<Metadata> reserve(std::uint64_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return sys_fail("mmap({} bytes of addresses)", bytes);
  return Metadata{static_cast<std::byte*>(at), Unmap{bytes}};
}

/// Copies what is not zeros of [begin, end), both whole pages, to the same offsets behind `base`. Holes cost nothing.
Result<> copy_data(FdRef file, std::uint64_t begin, std::uint64_t end, std::byte* base, std::string_view what) {
  const std::array<std::byte, kPageBytes> zeros{};
  std::vector<std::byte> buffer;
  while (begin < end) {
    const off_t data = ::lseek(file.raw, static_cast<off_t>(begin), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return {};  // a hole up to the end
    if (data >= 0) begin = static_cast<std::uint64_t>(data) & ~(kPageBytes - 1);
    const off_t hole =
        data < 0 ? -1 : ::lseek(file.raw, data, SEEK_HOLE);  // a file system that knows none: all is data
    const std::uint64_t stop =
        hole < 0 ? end : std::min(end, (static_cast<std::uint64_t>(hole) + kPageBytes - 1) & ~(kPageBytes - 1));
    while (begin < stop) {
      buffer.resize(std::min<std::uint64_t>(stop - begin, std::uint64_t{1} << 20));
      LUO_TRY(read_at(file, begin, buffer, what));
      for (std::uint64_t page = 0; page < buffer.size(); page += kPageBytes)
        if (std::memcmp(buffer.data() + page, zeros.data(), kPageBytes) != 0)
          std::memcpy(base + begin + page, buffer.data() + page, kPageBytes);
      begin += buffer.size();
    }
  }
  return {};
}

}  // namespace

struct Snapshot::Impl {
  Impl(Fd from, Metadata reserved, const HeaderConstants& constants)
      : file{std::move(from)},
        metadata{std::move(reserved)},
        geometry{constants.geometry},
        log{metadata.get(), geometry.heap_at},
        heap{metadata.get(), geometry, log, file} {}

  std::byte* base() const noexcept { return metadata.get(); }
  Header& header() const noexcept { return *reinterpret_cast<Header*>(base()); }
  ArenaParts parts() const noexcept { return {base()}; }

  bool keep(Result<> result) {
    if (!result) faults.push_back(std::move(result).error());
    return result.has_value();
  }

  void read_arena();
  Result<> roll_back();
  Result<> undo(const LogEntry& entry, const std::byte* old);
  void read_image();
  Result<> read_image_table();
  Result<> read_image_bitmaps();
  Result<> read_image_segments();
  Result<> read_image_padding();
  void check_image_data();
  Result<> check_tables();
  Result<> read_raw(std::uint64_t at, std::span<std::byte> to) const;

  Fd file;
  Kind kind = Kind::Arena;
  Metadata metadata;
  Geometry geometry;
  UndoLog log;
  Heap heap;
  std::optional<ImageHeader> image;
  std::vector<Segment> segments;
  std::vector<std::uint64_t> segment_places;  ///< in the image, of their data
  std::vector<Error> faults;
  OpenTransaction open;
  std::unordered_map<std::uint64_t, Line> undone;  ///< by number: lines of the heap as they were committed
  Bytes memory{};
  bool sealed = false, sound_table = false, sound_blocks = false, has_control = false;
};

// --- an arena -----------------------------------------------------------------------------------------

void Snapshot::Impl::read_arena() {
  if (!keep(copy_data(file, 0, kLogAt + kLogBytes, base(), "header and undo log")) ||
      !keep(copy_data(file, geometry.backed_at, geometry.heap_at, base(), "chunk table and bitmaps")))
    return;
  has_control = true;
  if (!keep(roll_back())) return;
  sound_table = keep(check_tables());
}

/// The metadata as a whole; of the heap, only what a rollback would change.
Result<> Snapshot::Impl::roll_back() {
  LUO_TRY(log.adopt([&](std::uint64_t at, std::uint64_t length) { return may_roll_back(geometry, at, length); }));
  const std::byte* const entries = base() + kLogAt + sizeof(LogHeader);
  std::vector<std::uint64_t> places;
  for (std::uint64_t place = 0; place < log.tail();) {
    LogEntry entry;
    std::memcpy(&entry, entries + place, sizeof entry);
    places.push_back(place);
    place += sizeof entry + ((entry.length + std::uint64_t{7}) & ~std::uint64_t{7});
  }
  open = {places.size(), log.tail()};
  for (auto place = places.rbegin(); place != places.rend(); ++place) {  // the oldest has the last word
    LogEntry entry;
    std::memcpy(&entry, entries + *place, sizeof entry);
    if (entry.offset >= geometry.heap_at) LUO_TRY(undo(entry, entries + *place + sizeof entry));
  }
  log.roll_back_to(0);
  return {};
}

Result<> Snapshot::Impl::undo(const LogEntry& entry, const std::byte* old) {
  const std::uint64_t end = entry.offset + entry.length;
  for (std::uint64_t at = entry.offset; at < end;) {
    const std::uint64_t begin = at & ~(kLineBytes - 1);
    const auto [line, fresh] = undone.try_emplace(begin / kLineBytes);
    if (fresh) LUO_TRY(read_at(file, begin, line->second, "heap"));
    const std::uint64_t here = std::min(end, begin + kLineBytes) - at;
    std::memcpy(line->second.data() + (at - begin), old + (at - entry.offset), here);
    at += here;
  }
  return {};
}

/// Only what all looking relies on decides; what is wrong in the bitmaps alone is told, no more.
Result<> Snapshot::Impl::check_tables() {
  LUO_TRY(heap.check_table());
  sound_blocks = keep(heap.check_blocks());
  for (unsigned slot = 0; slot < Arena::kRoots; ++slot)
    if (const std::uint64_t root = header().state.roots[slot]; root != 0 && !heap.is_allocated(root, 1))
      keep(fail(EBADMSG, "header: root {} is {:#x}, where no block is", slot, root));
  return {};
}

// --- an image -----------------------------------------------------------------------------------------

void Snapshot::Impl::read_image() {
  const Header both{image->constants, image->state};
  std::memcpy(base(), &both, sizeof both);
  if (!keep(read_image_table()) || !keep(read_image_bitmaps())) return;
  auto* words = reinterpret_cast<std::uint64_t*>(base() + geometry.backed_at);
  for (const Extent& run : chunks_in_use(parts())) {
    const std::uint64_t first = (run.at - geometry.heap_at) / kChunkBytes;
    const std::uint64_t end = first + run.bytes / kChunkBytes;
    const std::uint64_t unit = header().constants.pages == Pages::Hugetlb ? kHugeChunks : 1;
    for (std::uint64_t i = first / unit * unit; i < (end + unit - 1) / unit * unit; ++i)
      words[i / 64] |= std::uint64_t{1} << (i % 64);
  }
  sound_table = keep(check_tables());
  if (!sound_table || !sound_blocks || !keep(read_image_segments())) return;
  keep(read_image_padding());
  check_image_data();
}

Result<> Snapshot::Impl::read_image_table() {
  const std::span table{base() + geometry.table_at, image->table_bytes};
  LUO_TRY(read_at(file, image->table_at, table, "chunk table"));
  LUO_TRY(check_sum("chunk table", image_checksum(table), image->table_sum));
  return heap.check_table();
}

Result<> Snapshot::Impl::read_image_bitmaps() {
  ImageChecksum sum;
  std::uint64_t place = image->bitmaps_at;
  const std::uint64_t end = place + image->bitmaps_bytes;
  for (std::uint32_t index = 0; index < parts().frontier(); index = parts().after(index)) {
    if (parts().table()[index].state != ChunkState::Small) continue;
    const std::span bitmap{base() + geometry.bitmap_at + index * kBitmapBytes, kBitmapBytes};
    if (place == end)
      return fail(EBADMSG, "bitmaps: {} of them, the chunk table needs more", image->bitmaps_bytes / kBitmapBytes);
    LUO_TRY(read_at(file, place, bitmap, "bitmaps"));
    sum.add(bitmap);
    place += kBitmapBytes;
  }
  if (place != end)
    return fail(EBADMSG, "bitmaps: {} of them, the chunk table needs fewer", image->bitmaps_bytes / kBitmapBytes);
  return check_sum("bitmaps", sum.value(), image->bitmaps_sum);
}

Result<> Snapshot::Impl::read_image_segments() {
  const std::vector<Extent> used = extents_of(parts(), (image->features & kImageControl) != 0);
  if (image->segments != used.size())
    return fail(EBADMSG, "segment table: {} segments, what is in use makes {}", image->segments, used.size());
  const std::uint64_t each = segment_bytes_in(image->format);
  std::vector<std::byte> raw(used.size() * each);
  LUO_TRY(read_at(file, image->segments_at, raw, "segment table"));
  LUO_TRY(check_sum("segment table", image_checksum(raw), image->segments_sum));
  std::vector<Segment> found(used.size());
  std::vector<std::uint64_t> places;
  std::uint64_t place = image->data_at;
  for (std::size_t i = 0; i < used.size(); ++i) {
    std::memcpy(&found[i], raw.data() + i * each, each);
    if (Extent{found[i].at, found[i].bytes} != used[i])
      return fail(EBADMSG, "segment {}: {} bytes at {:#x}, in use are {} at {:#x}", i, found[i].bytes, found[i].at,
                  used[i].bytes, used[i].at);
    places.push_back(place);
    place += used[i].bytes;
  }
  if (place != image->file_bytes)
    return fail(EBADMSG, "segment table: data up to {}, the file has {} bytes", place, image->file_bytes);
  segments = std::move(found);
  segment_places = std::move(places);
  return {};
}

Result<> Snapshot::Impl::read_image_padding() {
  const std::uint64_t end = image->segments_at + image->segments * segment_bytes_in(image->format);
  std::vector<std::byte> padding(image->data_at - end);  // less than a page
  LUO_TRY(read_at(file, end, padding, "padding"));
  const auto used = std::ranges::find_if(padding, [](std::byte b) { return b != std::byte{}; });
  if (used == padding.end()) return {};
  return fail(EBADMSG, "padding: byte {} of the image is not 0",
              end + static_cast<std::uint64_t>(used - padding.begin()));
}

void Snapshot::Impl::check_image_data() {
  ImageChecksum all;
  std::vector<std::byte> data;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const auto what = fmt::format("segment {} ({} bytes at {:#x}, in the image at {:#x})", i, segments[i].bytes,
                                  segments[i].at, segment_places[i]);
    data.resize(segments[i].bytes);
    if (!keep(read_at(file, segment_places[i], data, what))) return;
    const bool good = image->format == 1 || keep(check_sum(what, image_checksum(data), segments[i].sum));
    if (image->format == 1) all.add(data);
    if (segments[i].at != kControlAt || !good) continue;
    std::memcpy(base() + kControlAt, data.data(), data.size());
    has_control = true;
  }
  if (image->format == 1) keep(check_sum("data", all.value(), image->data_sum));
}

// --- both ---------------------------------------------------------------------------------------------

/// Of a range that lies in the heap's used part.
Result<> Snapshot::Impl::read_raw(std::uint64_t at, std::span<std::byte> to) const {
  if (kind == Kind::Arena) {
    LUO_TRY(read_at(file, at, to, "heap"));
    if (undone.empty()) return {};
    const std::uint64_t end = at + to.size();
    for (std::uint64_t begin = at & ~(kLineBytes - 1); begin < end; begin += kLineBytes) {
      const auto line = undone.find(begin / kLineBytes);
      if (line == undone.end()) continue;
      const std::uint64_t from = std::max(at, begin), here = std::min(end, begin + kLineBytes) - from;
      std::memcpy(to.data() + (from - at), line->second.data() + (from - begin), here);
    }
    return {};
  }
  while (!to.empty()) {  // a block may lie in several segments
    const auto after = std::ranges::upper_bound(segments, at, {}, &Segment::at);
    if (after == segments.begin()) return fail(EBADMSG, "heap: {:#x} is in no segment", at);
    const auto index = static_cast<std::size_t>(after - segments.begin()) - 1;
    const std::uint64_t from = at - segments[index].at;
    if (from >= segments[index].bytes) return fail(EBADMSG, "heap: {:#x} is in no segment", at);
    const std::uint64_t here = std::min<std::uint64_t>(to.size(), segments[index].bytes - from);
    LUO_TRY(read_at(file, segment_places[index] + from, to.first(here), "heap"));
    to = to.subspan(here);
    at += here;
  }
  return {};
}

Snapshot::Snapshot(std::unique_ptr<Impl> impl) noexcept : impl_{std::move(impl)} {}
Snapshot::Snapshot(Snapshot&&) noexcept = default;
Snapshot& Snapshot::operator=(Snapshot&&) noexcept = default;
Snapshot::~Snapshot() = default;

Result<Snapshot> Snapshot::read(Fd file) {
  struct stat st {};
  if (::fstat(file.raw(), &st) != 0) return sys_fail("fstat(fd {})", file.raw());
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, "it is not a file");
  if (st.st_size == 0) return fail(EBADMSG, "header: the file is empty");
  std::uint64_t magic = 0;
  LUO_TRY(read_at(file, 0, std::as_writable_bytes(std::span{&magic, 1}), "header"));
  const auto is = [&](std::uint64_t wanted) { return magic == wanted || magic == __builtin_bswap64(wanted); };
  if (!is(kArenaMagic) && !is(kImageMagic))
    return fail(EBADMSG, "header: magic is {:#018x}, neither an arena's ({:#018x}) nor an image's ({:#018x})", magic,
                kArenaMagic, kImageMagic);

  std::optional<ImageHeader> image;
  if (is(kImageMagic)) image = LUO_TRY(read_image_header(file));
  const HeaderConstants constants = image ? image->constants : LUO_TRY(read_constants_of_copy(file));
  Metadata metadata = LUO_TRY(reserve(constants.geometry.heap_at));
  auto impl = std::make_unique<Impl>(std::move(file), std::move(metadata), constants);
  constexpr int kSeals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;
  const int seals = ::fcntl(impl->file.raw(), F_GET_SEALS);  // EINVAL: a file that has none
  impl->sealed = seals >= 0 && (seals & kSeals) == kSeals;
  impl->memory = Bytes{static_cast<std::uint64_t>(st.st_blocks) * 512};
  impl->image = image;
  impl->kind = image ? Kind::Image : Kind::Arena;
  if (image) impl->read_image();
  else impl->read_arena();
  return Snapshot{std::move(impl)};
}

Snapshot::Kind Snapshot::kind() const noexcept { return impl_->kind; }
std::span<const Error> Snapshot::faults() const noexcept { return impl_->faults; }
const HeaderConstants& Snapshot::constants() const noexcept { return impl_->header().constants; }
const HeaderState& Snapshot::state() const noexcept { return impl_->header().state; }
const std::optional<ImageHeader>& Snapshot::image() const noexcept { return impl_->image; }
std::span<const Segment> Snapshot::segments() const noexcept { return impl_->segments; }
Snapshot::OpenTransaction Snapshot::open_transaction() const noexcept { return impl_->open; }
Bytes Snapshot::memory() const noexcept { return impl_->memory; }
bool Snapshot::sealed() const noexcept { return impl_->sealed; }

std::span<const Chunk> Snapshot::chunks() const noexcept {
  if (!impl_->sound_table) return {};
  return {impl_->parts().table(), impl_->parts().frontier()};
}

bool Snapshot::has_memory(std::uint32_t chunk) const noexcept {
  if (chunk >= chunks().size()) return false;
  const auto* words = reinterpret_cast<const std::uint64_t*>(impl_->base() + impl_->geometry.backed_at);
  return (words[chunk / 64] >> (chunk % 64) & 1U) != 0;
}

std::size_t Snapshot::block_bytes(PhysAddr at) const noexcept {
  return impl_->sound_table ? impl_->heap.usable_size(at.raw()) : 0;
}

Result<> Snapshot::read(PhysAddr at, std::span<std::byte> to) const {
  if (!impl_->sound_table) return fail(EBADMSG, "heap: its tables are damaged");
  if (impl_->kind == Kind::Image && impl_->segments.empty()) return fail(EBADMSG, "heap: it has no segment");
  if (!impl_->heap.is_allocated(at.raw(), to.size()))
    return fail(EBADMSG, "heap: there is no block that holds {} bytes at {:#x}", to.size(), at.raw());
  return impl_->read_raw(at.raw(), to);
}

std::optional<std::span<const std::byte, Arena::kControlBytes>> Snapshot::control() const noexcept {
  if (!impl_->has_control) return std::nullopt;
  return std::span<const std::byte, Arena::kControlBytes>{impl_->base() + kControlAt, Arena::kControlBytes};
}

}  // namespace luo::kho
