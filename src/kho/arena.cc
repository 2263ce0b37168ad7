#include "kho/arena.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "kho/arena_open.h"
#include "kho/heap.h"
#include "kho/hugetlb.h"
#include "kho/image_extents.h"
#include "kho/memfd.h"
#include "kho/undo_log.h"

namespace luo::kho {
namespace {

/// What a release needs of the log at commit at most (456), free neighbours joined aside: those can wait.
constexpr std::size_t kReleaseRoom = 512;
/// What an allocation that grows and splits may need.
constexpr std::size_t kGrowRoom = 16 << 10;

}  // namespace

struct Arena::Impl {
  Impl(Fd file, Mapping map, const Geometry& geo) noexcept
      : fd{std::move(file)},
        mapping{std::move(map)},
        geometry{geo},
        log{mapping.at()},
        heap{mapping.at(), geo, log, fd} {}
  Header& header() const noexcept { return *reinterpret_cast<Header*>(mapping.at()); }
  void save(void* at, std::size_t n) noexcept {
    const auto offset = static_cast<std::uint64_t>(static_cast<std::byte*>(at) - mapping.at());
    LUO_CHECK(offset >= geometry.heap_at && offset < geometry.file_bytes && n <= geometry.file_bytes - offset);
    log.save(offset, n);
  }

  Fd fd;
  Mapping mapping;
  Geometry geometry;
  UndoLog log;
  Heap heap;
  bool in_transaction = false;
  std::uint64_t transaction = 0;        ///< OpenTx::number()
  std::vector<std::uint64_t> releases;  ///< carried out at commit
  std::vector<Heap::Hole> holes;        ///< punched after it
};

Arena::Arena(std::unique_ptr<Impl> impl) noexcept : impl_{std::move(impl)}, base_{impl_->mapping.at()} {}
Arena::Arena(Arena&& from) noexcept : impl_{std::move(from.impl_)}, base_{std::exchange(from.base_, nullptr)} {}
Arena& Arena::operator=(Arena&& from) noexcept {
  std::swap(impl_, from.impl_);
  std::swap(base_, from.base_);
  return *this;
}
Arena::~Arena() = default;

Result<Arena> Arena::create(const ArenaOptions& options) {
  const std::uint64_t bytes = options.max_size.raw();
  if (bytes < kMinHeapBytes || bytes > kMaxHeapBytes)
    return fail(EINVAL, "create arena {}: {} bytes are not in {} .. {}", options.name, bytes, kMinHeapBytes,
                kMaxHeapBytes);
  const Geometry geometry = geometry_of(bytes, options.pages);
  const auto make = [&]() -> Result<Arena> {
    Fd fd = LUO_TRY(create_memfd(options.name, geometry.file_bytes, options.pages));
    LUO_TRY(give_first_pages(fd, geometry, options.pages));
    Mapping mapping = LUO_TRY(map_whole(fd, geometry, options.pages));
    Header header{};
    header.constants = constants_of(options.layout, geometry, options.pages);
    UndoLog::format(mapping.at());
    std::memcpy(mapping.at(), &header, sizeof header);
    return Arena{std::make_unique<Impl>(std::move(fd), std::move(mapping), geometry)};
  };
  return LUO_TRY_DURING(fmt::format("create arena {}", options.name), make());
}

namespace {

Result<HeaderConstants> constants_for(FdRef memfd, const Layout& expected) {
  const HeaderConstants constants = LUO_TRY(read_constants(memfd));
  if (constants.layout == expected) return constants;
  return fail(EPROTO, "it holds {}, expected is {}", to_string(constants.layout), to_string(expected));
}

// Checks what another process left and rolls its open transaction back. On error nothing has been written.
Result<> settle(const Mapping& mapping, const HeaderConstants& constants, FdRef memfd) {
  const Geometry& geometry = constants.geometry;
  const bool hugetlb = constants.pages == Pages::Hugetlb;
  if (hugetlb) LUO_TRY(give_first_pages(memfd, geometry, constants.pages));
  std::vector<Extent> written;
  const auto may_write = [&](std::uint64_t at, std::uint64_t length) {
    if (hugetlb) written.push_back({at, length});
    return may_roll_back(geometry, at, length);
  };
  UndoLog log{mapping.at()};
  LUO_TRY(log.adopt(may_write));
  Mapping trial;
  if (log.tail() != 0) {
    // Rolled back on private copies of the metadata's pages first, so that nothing is written if that
    // does not help.
    trial = hugetlb ? LUO_TRY(copy_metadata(mapping, geometry, log.tail()))
                    : LUO_TRY(Mapping::map(memfd, geometry.heap_at, Mapping::Kind::Private));
    UndoLog trial_log{trial.at(), geometry.heap_at};
    LUO_TRY(trial_log.adopt(may_write));
    trial_log.roll_back_to(0);
    if (hugetlb) LUO_TRY(check_copy(trial, mapping));
  }
  std::byte* const settled = log.tail() != 0 ? trial.at() : mapping.at();
  LUO_TRY(check_state(settled, geometry, memfd));
  if (hugetlb) LUO_TRY(give_noted(mapping, settled, written, memfd));
  log.roll_back_to(0);
  return {};
}

Result<std::uint64_t> inode_of(FdRef file) {
  struct stat st {};
  if (::fstat(file.raw, &st) != 0) return sys_fail("fstat(fd {})", file.raw);
  return std::uint64_t{st.st_ino};
}

}  // namespace

struct WarmArena::Impl {
  Mapping mapping;
  std::uint64_t inode;
};

WarmArena::WarmArena(std::unique_ptr<Impl> impl) noexcept : impl_{std::move(impl)} {}
WarmArena::WarmArena(WarmArena&&) noexcept = default;
WarmArena& WarmArena::operator=(WarmArena&&) noexcept = default;
WarmArena::~WarmArena() = default;

Result<WarmArena> Arena::warm(FdRef memfd, const Layout& expected) {
  const auto map = [&]() -> Result<WarmArena> {
    const HeaderConstants constants = LUO_TRY(constants_for(memfd, expected));
    Mapping mapping = LUO_TRY(map_whole(memfd, constants.geometry, constants.pages));
    bring_in(mapping.at(), constants.geometry);  // a kernel that cannot only makes the first use slower
    const std::uint64_t inode = LUO_TRY(inode_of(memfd));
    return WarmArena{std::make_unique<WarmArena::Impl>(WarmArena::Impl{std::move(mapping), inode})};
  };
  return LUO_TRY_DURING("warm arena", map());
}

Result<Arena> Arena::open(Fd memfd, const Layout& expected) {
  const auto take_over = [&]() -> Result<Arena> {
    const HeaderConstants constants = LUO_TRY(constants_for(memfd, expected));
    const Geometry& geometry = constants.geometry;
    Mapping mapping = LUO_TRY(map_whole(memfd, geometry, constants.pages));
    LUO_TRY(settle(mapping, constants, memfd));
    return Arena{std::make_unique<Impl>(std::move(memfd), std::move(mapping), geometry)};
  };
  return LUO_TRY_DURING("open arena", take_over());
}

Result<Arena> Arena::open(Fd memfd, const Layout& expected, WarmArena warm) {
  const auto take_over = [&]() -> Result<Arena> {
    const HeaderConstants constants = LUO_TRY(constants_for(memfd, expected));
    const Geometry& geometry = constants.geometry;
    const std::uint64_t inode = LUO_TRY(inode_of(memfd));
    if (warm.impl_ == nullptr || warm.impl_->inode != inode)
      return fail(EINVAL, "fd {} is not the file that was warmed", memfd.raw());
    LUO_TRY(settle(warm.impl_->mapping, constants, memfd));
    return Arena{std::make_unique<Impl>(std::move(memfd), std::move(warm.impl_->mapping), geometry)};
  };
  return LUO_TRY_DURING("open arena", take_over());
}

Result<ArenaInfo> Arena::inspect(FdRef memfd) {
  const auto look = [&]() -> Result<ArenaInfo> {
    const HeaderConstants constants = LUO_TRY(read_constants(memfd));
    LogHeader log{};
    if (::pread(memfd.raw, &log, sizeof log, static_cast<off_t>(kLogAt)) != sizeof log)
      return sys_fail("pread(fd {}, undo log)", memfd.raw);
    return ArenaInfo{constants.layout, constants.format, Bytes{LUO_TRY(memory_of(memfd))}, tail_of(log.tail) != 0,
                     constants.pages};
  };
  return LUO_TRY_DURING("inspect arena", look());
}

FdRef Arena::fd() const noexcept { return impl_->fd; }

Fd Arena::release() noexcept {
  LUO_CHECK(!impl_->in_transaction);
  Fd fd = std::move(impl_->fd);
  impl_.reset();
  base_ = nullptr;
  return fd;
}

bool Arena::is_allocated(PhysAddr at, std::size_t bytes) const noexcept {
  return impl_->heap.is_allocated(at.raw(), bytes);
}
std::size_t Arena::usable_size(PhysAddr at) const noexcept { return impl_->heap.usable_size(at.raw()); }

PhysAddr Arena::root(unsigned slot) const noexcept {
  LUO_CHECK(slot < kRoots);
  return PhysAddr{impl_->header().state.roots[slot]};
}

std::span<std::byte, Arena::kControlBytes> Arena::control() const noexcept {
  return std::span<std::byte, kControlBytes>{base_ + kControlAt, kControlBytes};
}

ArenaStats Arena::stats() const noexcept {
  const HeaderState& state = impl_->header().state;
  return {.max_bytes = impl_->geometry.heap_bytes,
          .committed_bytes = impl_->heap.backed_bytes(),
          .used_bytes = state.used_bytes,
          .blocks = state.blocks};
}

Result<> Arena::check() const {
  LUO_TRY_DURING("check arena", impl_->heap.check_blocks());
  return {};
}

Tx::Tx(Arena& arena) noexcept : arena_{&arena}, base_{arena.base_} {
  LUO_CHECK(arena.impl_ != nullptr && !arena.impl_->in_transaction);
  arena.impl_->in_transaction = true;
  ++arena.impl_->transaction;
}

Tx::~Tx() {
  if (arena_ != nullptr) abort();
}

Result<PhysAddr> Tx::allocate(std::size_t bytes) {
  LUO_CHECK(arena_ != nullptr);
  Arena::Impl& impl = *arena_->impl_;
  impl.heap.keep_log_room(impl.releases.size() * kReleaseRoom);
  return PhysAddr{LUO_TRY(impl.heap.allocate(bytes))};
}

void Tx::release(PhysAddr block) noexcept {
  LUO_CHECK(arena_ != nullptr);
  if (block == PhysAddr{}) return;
  LUO_CHECK(arena_->impl_->heap.is_block_start(block.raw()));
  arena_->impl_->releases.push_back(block.raw());
}

void Tx::save(void* at, std::size_t n) noexcept {
  LUO_CHECK(arena_ != nullptr);
  if (n != 0) arena_->impl_->save(at, n);
}

OpenTx::OpenTx(Arena& arena) noexcept : arena_{&arena} {
  LUO_CHECK(arena.impl_ != nullptr && arena.impl_->in_transaction);
}
void OpenTx::save(void* at, std::size_t n) noexcept {
  if (n != 0) arena_->impl_->save(at, n);
}
std::uint64_t OpenTx::number() const noexcept { return arena_->impl_->transaction; }

void Tx::set_root(unsigned slot, PhysAddr at) noexcept {
  LUO_CHECK(arena_ != nullptr && slot < Arena::kRoots);
  std::uint64_t& root = arena_->impl_->header().state.roots[slot];
  arena_->impl_->log.save(static_cast<std::uint64_t>(reinterpret_cast<std::byte*>(&root) - base_), sizeof root);
  root = at.raw();
}

Tx::Mark Tx::mark() const noexcept {
  LUO_CHECK(arena_ != nullptr);
  ++arena_->impl_->transaction;  // what was saved before is not what back_to() would need
  return {arena_->impl_->log.tail(), arena_->impl_->releases.size()};
}

void Tx::back_to(Mark mark) noexcept {
  LUO_CHECK(arena_ != nullptr && mark.releases <= arena_->impl_->releases.size());
  arena_->impl_->log.roll_back_to(mark.log_bytes);
  ++arena_->impl_->transaction;
  arena_->impl_->releases.resize(mark.releases);
}

std::size_t Tx::room() const noexcept {
  LUO_CHECK(arena_ != nullptr);
  const std::size_t kept = kGrowRoom + arena_->impl_->releases.size() * kReleaseRoom;
  const std::size_t left = arena_->impl_->log.room();
  return left > kept ? left - kept : 0;
}

void Tx::commit() noexcept {
  LUO_CHECK(arena_ != nullptr);
  Arena::Impl& impl = *arena_->impl_;
  std::size_t left = impl.releases.size();
  for (const std::uint64_t block : impl.releases) {
    impl.heap.keep_log_room(--left * kReleaseRoom);
    if (const auto hole = impl.heap.release(block)) impl.holes.push_back(*hole);
  }
  impl.log.commit();
  for (const Heap::Hole& hole : impl.holes) impl.heap.punch(hole);
  if (!impl.releases.empty()) impl.heap.trim();
  impl.holes.clear();
  impl.releases.clear();
  impl.in_transaction = false;
  arena_ = nullptr;
}

void Tx::abort() noexcept {
  LUO_CHECK(arena_ != nullptr);
  arena_->impl_->log.roll_back_to(0);
  ++arena_->impl_->transaction;
  arena_->impl_->releases.clear();
  arena_->impl_->in_transaction = false;
  arena_ = nullptr;
}

}  // namespace luo::kho
