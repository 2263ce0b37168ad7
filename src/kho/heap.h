// The heap of an arena: blocks below 32 KiB are cut from 64 KiB chunks, one size class to a chunk; larger
// ones are whole chunks from a buddy allocator. Nothing about a block lies inside the block: which are
// allocated says a bitmap beside each chunk, lists run through the chunk table. So a fresh block's content
// needs no logging, a stray write into a freed block breaks nothing, and every address can be checked.
//
// Every metadata write goes through the undo log, except the backed bits: a set bit says that the chunk has
// memory, which stays true when a transaction is taken back.
#pragma once
#include <optional>
#include <vector>

#include "base/fd.h"
#include "kho/format.h"
#include "kho/undo_log.h"

namespace luo::kho {

/// Released blocks from this size on give their memory back to the kernel.
inline constexpr std::uint64_t kPunchFrom = 1 << 20;
/// Memory of free chunks that is kept in any case, and beside it half as much as is in use.
inline constexpr std::uint64_t kKeepFree = 64 << 20;

class Heap {
 public:
  Heap() noexcept = default;
  /// Owns none of them; `log` and the mapping outlive it.
  Heap(std::byte* base, const Geometry& geometry, UndoLog& log, FdRef fd) noexcept;

  /// A block's address. ENOMEM; on error everything is as before.
  Result<std::uint64_t> allocate(std::uint64_t bytes);

  /// Joining free neighbours, which can wait, leaves that much of the log to what cannot.
  void keep_log_room(std::uint64_t bytes) noexcept { keep_log_room_ = bytes; }

  /// Chunks whose memory can go back to the kernel once the transaction has been committed.
  struct Hole {
    std::uint32_t first, count;
  };
  /// Frees the block that starts at `at`; aborts if none does.
  std::optional<Hole> release(std::uint64_t at) noexcept;
  /// After the commit. What the kernel refuses stays with us.
  void punch(Hole hole) noexcept;
  /// After the commit: if much more memory is free than used, that of the large free block which the last
  /// releases made goes back too. Small blocks come in many sizes; their chunks go this way.
  void trim() noexcept;

  /// Of an arena of Pages::Huge: asks for the huge pages that lie in part in these chunks, as far as all of
  /// their chunks have memory.
  void join(std::uint32_t first, std::uint32_t count) noexcept;

  bool is_allocated(std::uint64_t at, std::uint64_t bytes) const noexcept;
  bool is_block_start(std::uint64_t at) const noexcept;
  std::size_t usable_size(std::uint64_t at) const noexcept;  ///< 0: no block starts there
  std::uint64_t backed_bytes() const noexcept;

  /// The table and the lists: every record's fields, the tiling, every link in both directions. O(chunks).
  Result<> check_table() const;
  /// Also every bitmap. O(heap).
  Result<> check_blocks() const;

 private:
  struct Place {  // of an address: the block that it lies in
    std::uint32_t chunk;
    std::uint32_t block;  // number in a Small chunk
    std::uint64_t at, bytes;
  };
  std::optional<Place> locate(std::uint64_t at) const noexcept;

  Result<std::uint64_t> allocate_small(unsigned size_class);
  Result<std::uint32_t> open_chunk(unsigned size_class);
  Result<std::uint32_t> take_chunks(unsigned order, std::uint32_t units);
  Result<> grow(unsigned order);
  Result<> back(std::uint32_t first, std::uint32_t units, std::uint32_t available);
  Result<> give_chunks(std::uint32_t first, std::uint32_t count);
  Hole whole_huge_pages(Hole hole) const noexcept;
  bool reclaim_empty() noexcept;
  void free_chunks(std::uint32_t index, unsigned order) noexcept;
  void push_free(std::uint32_t index, unsigned order) noexcept;
  void link(std::uint32_t& head, std::uint32_t index) noexcept;
  void unlink(std::uint32_t& head, std::uint32_t index) noexcept;

  Result<> check_record(std::uint32_t index, const Chunk& chunk) const;
  Result<> check_links(std::uint32_t index, const Chunk& chunk) const;
  Result<> check_lists() const;
  Result<> check_bitmap(std::uint32_t index, const Chunk& chunk) const;

  bool backed(std::uint32_t index) const noexcept { return (backed_[index / 64] >> (index % 64) & 1U) != 0; }
  std::uint64_t* bitmap(std::uint32_t index) const noexcept { return bitmaps_ + index * kBitmapWords; }
  std::uint64_t address(std::uint32_t index) const noexcept { return geometry_.heap_at + index * kChunkBytes; }
  template <class T>
  std::uint64_t offset(const T& field) const noexcept {
    return static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(&field) - base_);
  }
  template <class T>
  void set(T& field, T value) noexcept {
    log_->save(offset(field), sizeof field);
    field = value;
  }
  void count(std::int64_t bytes, std::int64_t blocks) noexcept;

  std::byte* base_ = nullptr;
  Geometry geometry_{};
  HeaderState* state_ = nullptr;
  Chunk* table_ = nullptr;
  std::uint64_t* bitmaps_ = nullptr;
  std::uint64_t* backed_ = nullptr;
  UndoLog* log_ = nullptr;
  int fd_ = -1;
  Pages pages_ = Pages::Normal;
  std::uint64_t keep_log_room_ = 0;
  std::uint32_t grown_free_ = 0;  ///< index + 1 of the last free block that became large; a hint for trim()
};

}  // namespace luo::kho
