// The undo log: old bytes first, then the change, so that a group of writes can be taken back after
// SIGKILL at any instruction. An entry counts once the tail, stored last, lies behind it; tail 0 is the
// commit. The memory outlives the process, so only the compiler has to be kept from reordering.
#pragma once
#include <atomic>
#include <cstring>
#include <functional>

#include "kho/format.h"

namespace luo::kho {

/// The entries of one mapping of an arena. Does not own it; used by one thread at a time.
class UndoLog {
 public:
  /// Whether a rollback may write [at, at + length).
  using MayWrite = std::function<bool(std::uint64_t at, std::uint64_t length)>;

  UndoLog() noexcept = default;
  /// `limit`: what lies from there on is not mapped; a rollback leaves it out.
  explicit UndoLog(std::byte* base, std::uint64_t limit = ~std::uint64_t{0}) noexcept
      : base_{base},
        head_{reinterpret_cast<LogHeader*>(base + kLogAt)},
        entries_{base + kLogAt + sizeof(LogHeader)},
        limit_{limit} {}

  static void format(std::byte* base) noexcept;

  /// Reads what another process left: every entry's place, size, range and checksum. Writes nothing.
  /// EBADMSG says which entry.
  Result<> adopt(const MayWrite& may_write);

  /// Logs [at, at + n); the caller may write it then. n > 0. Aborts when the log is full.
  void save(std::uint64_t at, std::uint64_t n) noexcept {
    const std::uint64_t padded = (n + 7) & ~std::uint64_t{7};
    const std::uint64_t tail = tail_;
    LUO_CHECK(n - 1 < kLogCapacity && tail + sizeof(LogEntry) + padded <= kLogCapacity);
    std::byte* const to = entries_ + tail;
    std::uint64_t hash = seed(at, n, tail);
    std::byte* const old = to + sizeof(LogEntry);
    if (n == 8) [[likely]] {
      std::uint64_t word = 0;
      std::memcpy(&word, base_ + at, 8);
      std::memcpy(old, &word, 8);
      hash = mix(hash, word);
    } else {
      hash = copy_and_mix(old, base_ + at, n, padded, hash);
    }
    const LogEntry entry{at, static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(tail - last_), hash};
    std::memcpy(to, &entry, sizeof entry);
    last_ = tail;
    tail_ = tail + sizeof(LogEntry) + padded;
    store_tail();
  }

  /// Puts old bytes back, newest first, down to `tail` bytes of entries. Doing it again, from any point in
  /// the middle, leads to the same end.
  void roll_back_to(std::uint64_t tail) noexcept;

  /// Everything since the tail was 0 holds from here on.
  void commit() noexcept {
    tail_ = last_ = 0;
    store_tail();
  }

  std::uint64_t tail() const noexcept { return tail_; }
  std::uint64_t room() const noexcept { return kLogCapacity - tail_; }

 private:
  // Each step is a bijection of the word mixed in, so one damaged word always shows.
  static std::uint64_t mix(std::uint64_t hash, std::uint64_t word) noexcept {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    return hash ^ (hash >> 32);
  }
  static std::uint64_t seed(std::uint64_t at, std::uint64_t n, std::uint64_t place) noexcept {
    return mix(at * 0xff51afd7ed558ccd, (place << 32) | n);
  }
  static std::uint64_t copy_and_mix(std::byte* to, const std::byte* from, std::uint64_t n, std::uint64_t padded,
                                    std::uint64_t hash) noexcept;
  std::uint64_t checksum_at(std::uint64_t place, const LogEntry& entry) const noexcept;

  void store_tail() noexcept {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    std::atomic_ref{head_->tail}.store(tail_word(tail_), std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }

  std::byte* base_ = nullptr;
  LogHeader* head_ = nullptr;
  std::byte* entries_ = nullptr;
  std::uint64_t limit_ = 0;
  std::uint64_t tail_ = 0;  ///< as in head_, which is written but not trusted again
  std::uint64_t last_ = 0;  ///< place of the newest entry
};

}  // namespace luo::kho
