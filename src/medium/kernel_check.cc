// What another worker has left in the arena, which may be damaged: what is trusted, refused, and put right.
#include <algorithm>
#include <unordered_set>

#include "base/log.h"
#include "medium/kernel.h"

namespace luo::medium {
namespace {

constexpr bool is_flag(std::uint32_t word) noexcept { return word <= 1; }

/// What it says by itself.
bool is_sound(const PartRecord& part, const KernelRoot& root) noexcept {
  if (part.group == 0) return part.fd == -1;  // a worker may have been killed while it wrote the rest
  if (part.fd < -1 || part.serial >= root.next_serial || part.birth > part.serial) return false;
  if (!is_flag(part.marked) || !is_flag(part.full) || !is_flag(part.late)) return false;
  return part.birth != 0 && part.next_token >> kBirthShift == part.birth && part.next_token >= first_token(part);
}

}  // namespace

Result<> Kernel::index() {
  const kho::Ref<KernelRoot> ref{arena_->root(kRootSlot).raw()};
  root_ = arena_->checked(ref);
  if (root_ == nullptr || root_->magic != kKernelMagic || root_->next_serial == 0 ||
      root_->next_serial >= kMostSerials || root_->some_marked > 1 ||
      (root_->arriving != 0 && root_->arriving != kArriving))
    return fail(EBADMSG, "no root record at {:#x}", ref.at);
  std::unordered_set<std::uint64_t> chunks, serials;
  for (kho::Ref<PartsChunk> at = root_->chunks; at;) {
    PartsChunk* chunk = arena_->checked(at);
    if (chunk == nullptr || !chunks.insert(at.at).second ||
        std::ranges::any_of(chunk->reserved, [](std::uint64_t word) { return word != 0; }))
      return fail(EBADMSG, "no list of kernel sessions at {:#x}", at.at);
    for (PartRecord& part : chunk->part) {
      parts_.push_back(&part);
      const auto number = static_cast<std::uint32_t>(parts_.size());
      if (!is_sound(part, *root_) || (part.group != 0 && !serials.insert(part.serial).second))
        return fail(EBADMSG, "kernel session {}: damaged record", number);
      if (part.group == 0) {
        free_.push_back(number);
        continue;
      }
      by_group_[part.late != 0 ? 1 : 0][part.group].push_back(number);
      if (part.group == kShared && part.full == 0) shared_ = number;
    }
    at = chunk->next;
  }
  return {};
}

/// By number, of all files that the engine says are there; [0] is not used.
std::vector<std::uint64_t> Kernel::count_files() const {
  std::vector<std::uint64_t> counts(parts_.size() + 1);
  files_(kShared, [&](const Place& place, int) { counts[place.part] += holds(place) ? 1U : 0U; });
  return counts;
}

Result<> Kernel::check() {
  for (std::uint32_t number = 1; number <= parts_.size(); ++number) {
    const PartRecord& record = *part(number);
    // A wrong one would be closed sooner or later, and be somebody's.
    if (record.fd >= 0 && !device_->is_session(FdRef::borrow(record.fd), name_of(record.serial)))
      return fail(EBADMSG, "kernel session {}: descriptor {} is not {}", number, record.fd, name_of(record.serial));
  }
  if (arriving()) return {};
  Result<> sound{};
  files_(kShared, [&](const Place& place, int) {
    if (place.part > parts_.size())
      sound = fail(EBADMSG, "a file is in kernel session {} of {}", place.part, parts_.size());
    else if (holds(place) && place.token >= part(place.part)->next_token)
      sound = fail(EBADMSG, "a file has token {:#x} in kernel session {}", place.token, place.part);
  });
  LUO_TRY(std::move(sound));
  std::vector<std::uint64_t> of_others = count_files();
  std::unordered_set<std::uint64_t> groups;
  for (const PartRecord* record : parts_)
    if (record->group != 0 && record->group != kShared) groups.insert(record->group);
  for (const std::uint64_t group : groups)
    files_(group, [&](const Place& place, int) {
      of_others[place.part] -= holds(place) && part(place.part)->group == group ? 1U : 0U;
    });
  for (std::uint32_t number = 1; number <= parts_.size(); ++number)
    if (const std::uint64_t group = part(number)->group; group != 0 && group != kShared && of_others[number] != 0)
      return fail(EBADMSG, "kernel session {} is for the files of {:#x}, and has {} of others", number, group,
                  of_others[number]);
  return {};
}

/// Files are what the engine says, the kernel has them all, or none and no session, and a part is there for something.
void Kernel::recover() {
  const std::vector<std::uint64_t> counts = count_files();
  for (std::uint32_t number = 1; number <= parts_.size(); ++number) {
    PartRecord& record = *part(number);
    if (record.group == 0) continue;
    const bool agrees =
        record.files != 0 && record.files == counts[number] && record.in_kernel == (record.fd >= 0 ? record.files : 0);
    if (record.marked == 0 && agrees) continue;
    if (record.marked == 0)
      log(Level::Warning,
          "kernel session {} has {} files by its record, of which {} in the kernel; luod has {}: put right", number,
          record.files, record.in_kernel, counts[number]);
    std::unordered_set<std::uint64_t> wanted;
    files_(record.group, [&](const Place& place, int) {
      if (place.part == number && holds(place)) wanted.insert(place.token);
    });
    record.files = wanted.size();
    record.in_kernel = 0;
    // A token that is there is refused as such, whatever the descriptor is; one that is not, for the descriptor.
    bool given_up = record.next_token - first_token(record) > kTokensPerPart;
    for (std::uint64_t token = first_token(record); record.fd >= 0 && !given_up && token < record.next_token; ++token) {
      const auto asked = device_->preserve(FdRef::borrow(record.fd), -1, token);
      if (asked || asked.error().code != EEXIST) continue;
      ++record.in_kernel;
      given_up = !wanted.contains(token);
    }
    mark(number);
    if (given_up) drop_session(record);
  }
  settle();
}

}  // namespace luo::medium
