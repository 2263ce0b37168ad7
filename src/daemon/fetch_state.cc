#include "daemon/fetch_state.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <vector>

#include "base/log.h"
#include "kho/image.h"
#include "kho/image_open.h"
#include "luo/engine.h"
#include "medium/kernel.h"
#include "sys/memfd.h"

namespace luo::daemon {
namespace {

constexpr std::size_t kPiece = 1 << 20;
constexpr off_t kControlEnd = kho::Arena::kControlOffset + kho::Arena::kControlBytes;

/// Of this boot: what is saved names kernel sessions, which the next kernel has not got.
Result<std::string> saved_path(const Control& control) {
  const Fd file = Fd::adopt(open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return sys_fail("open('/proc/sys/kernel/random/boot_id')");
  std::string id = LUO_TRY(read_all(file, 4_KiB));
  while (!id.empty() && id.back() == '\n') id.pop_back();
  return fmt::format("{}/arrived-{}.image", control.state_dir, id);
}

Result<> write_at(FdRef to, std::span<const std::byte> bytes, off_t at) {
  while (!bytes.empty()) {
    const ssize_t n = pwrite(to.raw, bytes.data(), bytes.size(), at);
    if (n < 0 && errno != EINTR) return sys_fail("pwrite({} bytes at {})", bytes.size(), at);
    const auto written = static_cast<std::size_t>(std::max<ssize_t>(n, 0));
    bytes = bytes.subspan(written);
    at += static_cast<off_t>(written);
  }
  return {};
}

Result<> copy(FdRef from, FdRef to, off_t bytes) {
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min<off_t>(bytes, kPiece)));
  for (off_t at = 0; at < bytes;) {
    const auto wanted = std::min<std::size_t>(piece.size(), static_cast<std::size_t>(bytes - at));
    const ssize_t n = pread(from.raw, piece.data(), wanted, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return sys_fail("pread({} at {})", wanted, at);
    if (n == 0) return fail(EIO, "it ends at {} of {}", at, bytes);
    LUO_TRY(write_at(to, std::span{piece}.first(static_cast<std::size_t>(n)), at));
    at += n;
  }
  return {};
}

/// The whole arena but the control page, which this luod's processes share already.
Result<> replace_arena(const kho::Arena& with, FdRef arena) {
  struct stat st {};
  if (fstat(with.fd().raw, &st) != 0) return sys_fail("fstat");
  const off_t size = st.st_size;
  if (fstat(arena.raw, &st) != 0) return sys_fail("fstat");
  // An arena's size is sealed, and its control page is mapped by all of this luod.
  if (st.st_size != size)
    return fail(EPROTO, "it is an arena of {} bytes, this luod's have {}: another luod made it", size, st.st_size);
  constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (fallocate(arena.raw, kPunch, 0, kho::Arena::kControlOffset) != 0 ||
      fallocate(arena.raw, kPunch, kControlEnd, size - kControlEnd) != 0)
    return sys_fail("fallocate(PUNCH_HOLE)");
  const std::byte* const base = with.control().data() - kho::Arena::kControlOffset;
  const auto take = [&](off_t from, off_t to) {
    return from < to ? write_at(arena, {base + from, base + to}, from) : Result<>{};
  };
  for (off_t at = 0;;) {
    const off_t data = lseek(with.fd().raw, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return {};
    const off_t end = data < 0 ? -1 : lseek(with.fd().raw, data, SEEK_HOLE);
    if (end < 0) return sys_fail("lseek");
    LUO_TRY(take(data, std::min<off_t>(end, kho::Arena::kControlOffset)));
    LUO_TRY(take(std::max(data, kControlEnd), end));
    at = end;
  }
}

/// For a luod that can read it. Renamed into place, so that it is whole or not there.
Result<> save(const std::string& path, FdRef image) {
  struct stat st {};
  if (fstat(image.raw, &st) != 0) return sys_fail("fstat of the image");
  const std::string part = path + ".part";
  const Fd file = Fd::adopt(open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) return sys_fail("open('{}')", part);
  auto saved = [&]() -> Result<> {
    LUO_TRY_DURING(fmt::format("write '{}'", part), copy(image, file, st.st_size));
    if (fsync(file.raw()) != 0) return sys_fail("fsync('{}')", part);
    if (rename(part.c_str(), path.c_str()) != 0) return sys_fail("rename('{}')", path);
    return {};
  }();
  if (!saved) unlink(part.c_str());
  return saved;
}

/// Its room was larger than it is. Nothing is cut of what this luod cannot read: another may, and it is to be saved.
/// Where vm.memfd_noexec is set, Linux 7.3 brings the image back sealed (D2), and what can only be read is copied.
Result<Fd> cut_to_length(Fd image) {
  const auto bytes = kho::image_length(image);
  struct stat st {};
  if (!bytes || fstat(image.raw(), &st) != 0 || static_cast<std::uint64_t>(st.st_size) == *bytes) return image;
  const auto length = static_cast<off_t>(*bytes);
  if (ftruncate(image.raw(), length) == 0) return image;
  if (errno != EPERM && errno != EINVAL) return sys_fail("ftruncate of the image to {}", length);
  Fd shorter = LUO_TRY(make_memfd("luod-image", 0));
  LUO_TRY_DURING("copy the image, which cannot be cut", copy(image, shorter, length));
  return shorter;
}

/// What a worker that was killed, or gave up, had brought already. Not sessions: to close one is to finish it.
void close_brought(const Control& control) {
  std::vector<int> named{0, 1, 2}, open;
  append_control_fds(control, named);
  std::error_code error;
  for (std::filesystem::directory_iterator entry{"/proc/self/fd", error}, end; !error && entry != end;
       entry.increment(error)) {
    const std::string text = entry->path().filename();
    int fd = -1;
    std::from_chars(text.data(), text.data() + text.size(), fd);
    open.push_back(fd);
  }
  if (error) {  // no descriptor is left to look with
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int fd = 3; static_cast<rlim_t>(fd) < limit.rlim_max; ++fd) open.push_back(fd);
  }
  for (const int fd : open) {
    if (std::ranges::find(named, fd) != named.end()) continue;
    constexpr std::string_view kSession = "anon_inode:[luo_session]";
    char link[kSession.size()];
    const ssize_t n = readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), link, sizeof link);
    if (n > 0 && std::string_view{link, static_cast<std::size_t>(n)} != kSession) close_number(fd);
  }
}

Result<> populate(Control& control, FdRef image) {
  const kho::Arena arrived = LUO_TRY(kho::populate(image, Engine::kLayout, "luod-arrived"));
  LUO_TRY_DURING("put luod's state in its place", replace_arena(arrived, FdRef::borrow(control.arena_fd)));
  control.arrival.store(static_cast<std::uint32_t>(Arrival::Populated));
  return {};
}

}  // namespace

Result<> fetch_state(Control& control) {
  medium::LuoDevice device{FdRef::borrow(control.device_fd)};
  return fetch_state(control, device);
}

Result<> fetch_state(Control& control, medium::Device& device) {
  if (control.worker_starts.load() > 1) close_brought(control);
  const std::string path = LUO_TRY_DURING("look for saved state", saved_path(control));
  Fd saved = Fd::adopt(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!saved.valid()) saved = Fd::adopt(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (saved.valid()) {
    log(Level::Notice, "taking the state that an earlier luod saved in {}", path);
    auto cut = cut_to_length(std::move(saved));
    auto used = cut ? populate(control, *cut) : std::unexpected(std::move(cut).error());
    if (!used) return std::unexpected(std::move(used).error().during(fmt::format("use {}", path)));
    return used;
  }
  medium::Kernel::Left left =
      LUO_TRY_DURING("look for what the kernel before left", medium::Kernel::find_image(device));
  if (!left.session.valid()) {
    control.arrival.store(static_cast<std::uint32_t>(Arrival::Over));
    return {};
  }
  control.own_fd = left.session.release();
  left.image = LUO_TRY_DURING("look for what the kernel before left", cut_to_length(std::move(left.image)));
  auto populated = populate(control, left.image);
  if (populated || (populated.error().code != EBADMSG && populated.error().code != EPROTO)) return populated;
  const auto kept = save(path, left.image);
  return std::unexpected(std::move(populated).error().during(
      kept ? fmt::format(
                 "the state from the kernel before was saved in {}, and what it keeps is still in the kernel: stop "
                 "this luod and start one that can read it with the same --state-dir",
                 path)
           : fmt::format("the state from the kernel before could not be saved either ({}): make that possible, and "
                         "send SIGHUP to luod's keeper, which has it as long as it runs",
                         kept.error())));
}

void save_state(const Control& control) noexcept {
  medium::LuoDevice device{FdRef::borrow(control.device_fd)};
  save_state(control, device);
}

void save_state(const Control& control, medium::Device& device) noexcept {
  if (control.own_fd < 0) return;  // it came from where it was saved
  const auto path = saved_path(control);
  if (path && access(path->c_str(), F_OK) == 0) return;
  const auto saved = [&]() -> Result<> {
    if (!path) return std::unexpected(path.error());
    Fd image = LUO_TRY(medium::Kernel::image_in(device, FdRef::borrow(control.own_fd)));
    image = LUO_TRY(cut_to_length(std::move(image)));
    return save(*path, image);
  }();
  if (saved)
    log(Level::Error,
        "the state from the kernel before was saved in {}, and its files are still in the kernel: this luod can be "
        "ended, and one be started with the same --state-dir that can serve it",
        *path);
  else
    log(Level::Error, "the state from the kernel before could not be saved ({}), and is lost if this luod is ended",
        saved.error());
}

void forget_saved_state(const Control& control) noexcept {
  if (const auto path = saved_path(control)) unlink(path->c_str());
}

}  // namespace luo::daemon
