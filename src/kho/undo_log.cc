#include "kho/undo_log.h"

#include <algorithm>

namespace luo::kho {

void UndoLog::format(std::byte* base) noexcept {
  const LogHeader head{.magic = kLogMagic, .tail = tail_word(0), .zero = {}};
  std::memcpy(base + kLogAt, &head, sizeof head);
}

std::uint64_t UndoLog::copy_and_mix(std::byte* to, const std::byte* from, std::uint64_t n, std::uint64_t padded,
                                    std::uint64_t hash) noexcept {
  std::uint64_t done = 0;
  for (; done + 8 <= n; done += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, from + done, 8);
    std::memcpy(to + done, &word, 8);
    hash = mix(hash, word);
  }
  if (done < padded) {
    std::uint64_t word = 0;
    std::memcpy(&word, from + done, n - done);
    std::memcpy(to + done, &word, 8);
    hash = mix(hash, word);
  }
  return hash;
}

std::uint64_t UndoLog::checksum_at(std::uint64_t place, const LogEntry& entry) const noexcept {
  std::uint64_t hash = seed(entry.offset, entry.length, place);
  const std::byte* old = entries_ + place + sizeof(LogEntry);
  for (std::uint64_t done = 0; done < entry.length; done += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, old + done, 8);
    hash = mix(hash, word);
  }
  return hash;
}

Result<> UndoLog::adopt(const MayWrite& may_write) {
  if (head_->magic != kLogMagic) return fail(EBADMSG, "undo log: magic is {:#x}", head_->magic);
  if (std::ranges::any_of(head_->zero, [](std::uint64_t word) { return word != 0; }))
    return fail(EBADMSG, "undo log: reserved words of its header are used");
  if (!is_tail_word(head_->tail)) return fail(EBADMSG, "undo log: tail is {:#x}, which does not check", head_->tail);
  const std::uint64_t tail = tail_of(head_->tail);
  if (tail > kLogCapacity || tail % 8 != 0) return fail(EBADMSG, "undo log: tail {} of {}", tail, kLogCapacity);
  std::uint64_t place = 0, last = 0;
  while (place < tail) {
    LogEntry entry;
    if (tail - place < sizeof entry) return fail(EBADMSG, "undo log: entry at {} is cut off", place);
    std::memcpy(&entry, entries_ + place, sizeof entry);
    const std::uint64_t left = tail - place - sizeof entry;
    if (entry.length == 0 || entry.length > left)
      return fail(EBADMSG, "undo log: entry at {} has {} bytes, {} are left", place, entry.length, left);
    if (entry.previous != place - last)
      return fail(EBADMSG, "undo log: entry at {} points {} back, not {}", place, entry.previous, place - last);
    if (checksum_at(place, entry) != entry.checksum)
      return fail(EBADMSG, "undo log: checksum of entry at {} differs", place);
    if (!may_write(entry.offset, entry.length))
      return fail(EBADMSG, "undo log: entry at {} would write {} bytes at {}", place, entry.length, entry.offset);
    last = place;
    place += sizeof entry + ((entry.length + std::uint64_t{7}) & ~std::uint64_t{7});
  }
  tail_ = tail;
  last_ = last;
  return {};
}

void UndoLog::roll_back_to(std::uint64_t tail) noexcept {
  LUO_CHECK(tail <= tail_);
  std::uint64_t place = last_;
  bool more = tail < tail_;
  while (more) {
    LogEntry entry;
    std::memcpy(&entry, entries_ + place, sizeof entry);
    // Our own writes cannot have done this; going on would write the wrong bytes somewhere.
    LUO_CHECK(checksum_at(place, entry) == entry.checksum && entry.previous <= place);
    if (entry.offset < limit_) std::memcpy(base_ + entry.offset, entries_ + place + sizeof entry, entry.length);
    more = place > tail;
    place -= entry.previous;
  }
  last_ = place;
  tail_ = tail;
  store_tail();
}

}  // namespace luo::kho
