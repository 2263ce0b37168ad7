#include "medium/kernel.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/log.h"

namespace luo::medium {
namespace {

/// The kernel has no room for one more file, or one more session, in what it has.
bool is_full(int code) noexcept { return code == ENOSPC || code == ENOMEM; }

Error explained(Error error) {  // consumes it
  const auto because = [&](std::string_view why) { return std::move(error).during(why); };
  switch (error.code) {
    case ENOENT: return because("the kernel has no handler for files of this kind, it cannot carry one over a kexec");
    case EBUSY:
      return because(
          "the kernel has it preserved already, for somebody else; a file that was retrieved from the kernel's LUO "
          "must be "
          "finished there first");
    case EFBIG: return because("it is larger than the kernel can preserve (2^32 - 1 pages)");
    case EOPNOTSUPP: return because("the kernel cannot carry a file with these seals");
    case ENOSPC: return because("the kernel's LUO, or the file's own file system, is full");
    case ENOMEM: return because("the kernel has no memory to preserve it (holes are filled)");
    default: return error;
  }
}

}  // namespace

Kernel::Kernel(kho::Arena& arena, Device& device, Files files)
    : arena_{&arena}, device_{&device}, files_{std::move(files)} {}

bool Kernel::has_records(const kho::Arena& arena) noexcept { return arena.root(kRootSlot) != PhysAddr{}; }

Result<Kernel> Kernel::open(kho::Arena& arena, Device& device, Files files) {
  Kernel kernel{arena, device, std::move(files)};
  if (!has_records(arena)) {
    kho::Tx tx{arena};
    const auto ref = LUO_TRY(tx.make<KernelRoot>());
    KernelRoot& root = *arena.get(ref);
    root.magic = kKernelMagic;
    root.key = random_hash_key();
    root.next_serial = 1;
    tx.set_root(kRootSlot, ref.addr());
    tx.commit();
  }
  if (auto indexed = kernel.index(); !indexed)
    return std::unexpected(std::move(indexed).error().during("kernel medium"));
  return kernel;
}

Result<> Kernel::reserve() {
  while (free_.size() < kSpare) {
    kho::Tx tx{*arena_};
    const auto ref = LUO_TRY_DURING("room for more kernel sessions", tx.make<PartsChunk>());
    PartsChunk& chunk = *arena_->get(ref);
    for (PartRecord& part : chunk.part) part.fd = -1;
    // Behind all others: numbers are places in this list.
    if (parts_.empty()) {
      tx.set(root_->chunks, ref);
    } else {
      auto* last = reinterpret_cast<PartsChunk*>(reinterpret_cast<std::byte*>(parts_[parts_.size() - kPartsPerChunk]) -
                                                 offsetof(PartsChunk, part));
      tx.set(last->next, ref);
    }
    tx.commit();
    for (PartRecord& part : chunk.part) {
      parts_.push_back(&part);
      free_.push_back(static_cast<std::uint32_t>(parts_.size()));
    }
  }
  return {};
}

std::string Kernel::name_of(std::uint64_t serial) const {
  return fmt::format("luo-{:016x}-{}", siphash13(root_->key, std::as_bytes(std::span{&serial, 1})), serial);
}

/// Before anything is asked of the kernel.
void Kernel::mark(std::uint32_t number) noexcept {
  PartRecord& record = *part(number);
  if (std::ranges::find(touched_, number) == touched_.end()) touched_.push_back(number);
  record.marked = 1;
  root_->some_marked = 1;
}

/// Once for each transaction, however many files it is about.
void Kernel::save_files(std::uint32_t number) noexcept {
  kho::OpenTx tx{*arena_};
  std::uint64_t& saved = saved_[number];
  if (saved == tx.number()) return;
  PartRecord& record = *part(number);
  tx.save(&record.files, sizeof record.files);
  saved = tx.number();
}

// --- parts ---------------------------------------------------------------------------------------------

Result<> Kernel::create(PartRecord& record) {
  for (int tries = 0;; ++tries) {
    const std::uint64_t serial = root_->next_serial++;
    std::atomic_signal_fence(std::memory_order_seq_cst);  // what a part has is below it, whenever we are killed
    record.serial = serial;
    auto fd = device_->create_session(name_of(record.serial));
    if (fd) {
      // It goes over every exec of luod's, as what is in it does.
      fcntl(fd->raw(), F_SETFD, 0);
      record.fd = fd->release();
      return {};
    }
    // Somebody else's of that name. The next name also mends what the refusal leaves in Linux 7.3 (D1).
    if (fd.error().code == EEXIST && tries < 3) continue;
    return std::unexpected(std::move(fd).error().during("make a kernel session"));
  }
}

Result<std::uint32_t> Kernel::begin_part(std::uint64_t group, bool late) {
  if (free_.empty()) return fail(ENOMEM, "luod has no room for one more kernel session");
  const std::uint32_t number = free_.back();
  PartRecord& record = *part(number);
  const std::uint64_t birth = root_->next_serial++;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  record = {.group = 0,
            .serial = birth,
            .fd = -1,
            .marked = 1,
            .full = 0,
            .late = late ? 1U : 0U,
            .birth = birth,
            .next_token = birth << kBirthShift | 1,
            .files = 0,
            .in_kernel = 0};
  mark(number);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  record.group = group;  // from here on it is in use
  free_.pop_back();
  parts_of(group, late).push_back(number);
  if (auto created = create(record); !created) {
    end_part(number);
    return std::unexpected(std::move(created).error());
  }
  return number;
}

/// The kernel gives no more sessions: some that is there takes in what comes, whosesoever it is.
Result<std::uint32_t> Kernel::share_a_part() {
  if (const PartRecord* now = part(shared_);
      now != nullptr && now->group == kShared && now->full == 0 && now->fd >= 0 && has_tokens(*now))
    return shared_;
  for (std::uint32_t number = 1; number <= parts_.size(); ++number) {
    PartRecord& record = *part(number);
    if (record.group == 0 || record.full != 0 || record.fd < 0 || record.late != 0 || !has_tokens(record)) continue;
    std::erase(parts_of(record.group, false), number);
    record.group = kShared;
    parts_of(kShared, false).push_back(number);
    shared_ = number;
    return number;
  }
  return fail(ENOMEM, "the kernel gives no more sessions, and those that there are are full");
}

Result<std::uint32_t> Kernel::part_with_room(std::uint64_t group, bool late) {
  const auto& mine = parts_of(group, late);
  if (!mine.empty()) {
    const PartRecord& last = *part(mine.back());
    if (last.full == 0 && last.files < kFilesPerPart && last.fd >= 0 && has_tokens(last)) return mine.back();
  }
  auto made = begin_part(group, late);
  if (made || !is_full(made.error().code) || late) return made;
  auto shared = share_a_part();
  return shared ? shared : made;
}

Result<Place> Kernel::put(std::uint32_t number, int fd) {
  PartRecord& record = *part(number);
  mark(number);
  const Place place{number, record.next_token++};
  LUO_TRY(device_->preserve(FdRef::borrow(record.fd), fd, place.token));
  ++record.in_kernel;
  save_files(number);
  ++record.files;
  return place;
}

Result<Place> Kernel::preserve(std::uint64_t group, int fd, When when) {
  const bool late = when == When::Late;
  bool asked_again = false;
  for (;;) {
    const auto number = part_with_room(group, late);
    if (!number) return std::unexpected(explained(Error{number.error()}));
    auto done = put(*number, fd);
    if (done) return done;
    const int code = done.error().code;
    PartRecord& record = *part(*number);
    if (code == EEXIST) {  // of which no record says anything: it is one too many, and settle() makes the part again
      ++record.in_kernel;
      continue;
    }
    if (is_full(code) && record.in_kernel != 0) {  // another one has room, or it is not for lack of it
      record.full = 1;
      continue;
    }
    // What this transaction has given up may be in the kernel still.
    if (code == EBUSY && !asked_again) {
      drop_given_up();
      asked_again = true;
      continue;
    }
    return std::unexpected(explained(std::move(done).error()));
  }
}

void Kernel::unpreserve(const Place& place) noexcept {
  if (!holds(place)) return;
  PartRecord* record = part(place.part);
  mark(place.part);
  save_files(place.part);
  if (record->files != 0) --record->files;  // else the counter was damaged: recover() finds out
}

bool Kernel::holds(const Place& place) const noexcept {
  const PartRecord* record = part(place.part);
  return record != nullptr && record->group != 0 && place.token >> kBirthShift == record->birth;
}

bool Kernel::is_late(const Place& place) const noexcept { return holds(place) && part(place.part)->late != 0; }

// --- making the kernel agree ---------------------------------------------------------------------------

void Kernel::drop_session(PartRecord& record) noexcept {
  if (record.fd >= 0 && before_close_) before_close_();
  const int fd = record.fd;
  record.fd = -1;
  record.in_kernel = 0;
  if (fd >= 0) close_number(fd);  // the last close: the kernel unpreserves all that is in it
}

void Kernel::end_part(std::uint32_t number) noexcept {
  PartRecord& record = *part(number);
  drop_session(record);
  auto& mine = by_group_[record.late != 0 ? 1 : 0];
  if (const auto found = mine.find(record.group); found != mine.end()) {
    std::erase(found->second, number);
    if (found->second.empty()) mine.erase(found);
  }
  record.marked = 0;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  record.group = 0;
  if (shared_ == number) shared_ = 0;
  std::erase(touched_, number);
  free_.push_back(number);
}

/// What the engine has in it and the kernel has not.
Result<> Kernel::fill(std::uint32_t number) {
  PartRecord& record = *part(number);
  mark(number);
  if (record.fd < 0) LUO_TRY(create(record));
  record.in_kernel = 0;
  Result<> all{};
  files_(record.group, [&](const Place& place, int fd) {
    if (place.part != number || !holds(place) || !all) return;
    auto done = device_->preserve(FdRef::borrow(record.fd), fd, place.token);
    if (done || done.error().code == EEXIST) ++record.in_kernel;
    else all = std::unexpected(explained(std::move(done).error()));
  });
  return all;
}

/// As fill(). A part is whole in the kernel or not there: how many files it has says then which they are.
Result<> Kernel::make_whole(std::uint32_t number) {
  auto filled = fill(number);
  if (!filled) drop_session(*part(number));
  return filled;
}

/// Sessions in which the kernel has more than the engine. Nothing is put into them before settle(), so that it does not
/// matter whether the transaction that is open, if one is, is taken back.
void Kernel::drop_given_up() noexcept {
  for (const std::uint32_t number : touched_) {
    PartRecord& record = *part(number);
    if (record.group == 0 || record.in_kernel <= record.files) continue;
    drop_session(record);
    record.full = 0;
  }
}

void Kernel::settle() {
  // All of them first: a file may have left one for the other.
  drop_given_up();
  const std::vector<std::uint32_t> touched = std::exchange(touched_, {});
  for (const std::uint32_t number : touched)
    if (part(number)->group != 0 && part(number)->files == 0) end_part(number);
  for (const std::uint32_t number : touched) {
    PartRecord& record = *part(number);
    if (record.group == 0) continue;
    if (record.in_kernel < record.files) {
      if (auto made = make_whole(number); !made)
        log(Level::Warning,
            "kernel session {} could not be made again after a file was given up: {}; luod keeps its {} files, "
            "and tries again before a kexec",
            number, made.error(), record.files);
    }
    if (record.group == kShared && record.full == 0 && record.fd >= 0) shared_ = number;
    record.marked = 0;
  }
  touched_.clear();
  root_->some_marked = 0;
  if (saved_.size() > 4096) saved_.clear();
}

Result<> Kernel::complete() {
  settle();
  for (std::uint32_t number = 1; number <= parts_.size(); ++number) {
    PartRecord& record = *part(number);
    if (record.group == 0 || record.in_kernel == record.files) continue;
    auto made = make_whole(number);
    record.marked = 0;
    touched_.clear();
    root_->some_marked = 0;
    if (!made) return std::unexpected(std::move(made).error().during("preserve what the kernel lacks"));
    if (record.in_kernel != record.files)
      return fail(EIO, "kernel session {} has {} files and should have {}", number, record.in_kernel, record.files);
  }
  return {};
}

Kernel::Counts Kernel::counts() const noexcept {
  Counts counts{};
  for (const PartRecord* record : parts_) {
    if (record->group == 0) continue;
    counts.sessions += record->fd >= 0 ? 1 : 0;
    counts.files += record->in_kernel;
    counts.lacking += record->files > record->in_kernel ? record->files - record->in_kernel : 0;
  }
  return counts;
}

void Kernel::append_fds(std::vector<int>& out) const {
  for (const PartRecord* record : parts_)
    if (record->group != 0 && record->fd >= 0) out.push_back(record->fd);
  if (own_.valid()) out.push_back(own_.raw());
}

}  // namespace luo::medium
