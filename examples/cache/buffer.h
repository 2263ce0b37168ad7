// A connection's bytes in the arena. The kernel receives into them and sends out of them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "cache/records.h"

namespace luo::cache {

inline constexpr std::size_t kFirstBuffer = 16 * 1024;

/// A view of one BufferRecord. What changes block or moves bytes is a transaction; outside of one only
/// `end` moves after a receive and `begin` after a send, each with one store, so that the record is
/// right at every instruction.
class Buffer {
 public:
  Buffer(kho::Arena& arena, BufferRecord& record) noexcept : arena_{&arena}, record_{&record} {}

  std::size_t size() const noexcept { return record_->end - record_->begin; }
  bool empty() const noexcept { return record_->end == record_->begin; }
  std::size_t room() const noexcept { return record_->room; }
  std::string_view bytes() const noexcept { return {data() + record_->begin, size()}; }
  std::span<char> space() const noexcept { return {data() + record_->end, record_->room - record_->end}; }

  /// `n` bytes have been written into space(), respectively taken from the front of bytes().
  void filled(std::size_t n) noexcept { record_->end += n; }
  void taken(std::size_t n) noexcept { record_->begin += n; }
  /// Places in the connection's stream: of the first byte here, and behind the last one.
  std::uint64_t position() const noexcept { return record_->base + record_->begin; }
  std::uint64_t end_position() const noexcept { return record_->base + record_->end; }
  /// An empty one starts at the front of its block again. In a transaction that has saved the record.
  void rewind() noexcept {
    record_->base += record_->begin;
    record_->begin = record_->end = 0;
  }

  /// For a transaction that will write into the buffer: from here on the record may be changed at
  /// will, and an abort brings it back. An empty buffer starts at the front of its block again.
  void begin_changes(kho::Tx& tx) noexcept;
  /// A block with at least `n` bytes of space(), within changes that have begun. ENOMEM.
  Result<> grow(kho::Tx& tx, std::size_t n);
  /// Makes space() at least `n` long, at the same place or in a larger block. Own transaction. ENOMEM.
  Result<> make_space(std::size_t n);
  /// Gives the block of an empty buffer back.
  void drop(kho::Tx& tx) noexcept;

 private:
  char* data() const noexcept { return arena_->get(kho::Ref<char>{record_->block}); }
  kho::Arena* arena_;
  BufferRecord* record_;
};

}  // namespace luo::cache
