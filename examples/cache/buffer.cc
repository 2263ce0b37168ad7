#include "cache/buffer.h"

#include <algorithm>
#include <cstring>

namespace luo::cache {
namespace {

constexpr std::size_t kLargestStep = 64 << 20;  // beyond this a buffer no longer doubles

}  // namespace

void Buffer::begin_changes(kho::Tx& tx) noexcept {
  tx.save(record_, sizeof *record_);
  if (empty()) rewind();
}

Result<> Buffer::grow(kho::Tx& tx, std::size_t n) {
  const BufferRecord old = *record_;
  const std::size_t full = size();
  const std::size_t step = std::clamp<std::size_t>(old.room, kFirstBuffer, kLargestStep);
  const PhysAddr block = LUO_TRY(tx.allocate(full + std::max(n, step)));
  if (full > 0) std::memcpy(arena_->get(kho::Ref<char>{block.raw()}), data() + old.begin, full);
  *record_ = {
      .block = block.raw(), .room = arena_->usable_size(block), .begin = 0, .end = full, .base = old.base + old.begin};
  if (old.block != 0) tx.release(PhysAddr{old.block});
  return {};
}

Result<> Buffer::make_space(std::size_t n) {
  if (space().size() >= n) return {};
  kho::Tx tx{*arena_};
  begin_changes(tx);
  const std::size_t full = size();
  const std::size_t begin = record_->begin;
  if (record_->room - full >= n && begin >= full) {  // the old place stays whole until the commit
    if (full > 0) std::memcpy(data(), data() + begin, full);
    record_->base += begin;
    record_->begin = 0;
    record_->end = full;
  } else if (auto grown = grow(tx, n); !grown) {
    return grown;
  }
  tx.commit();
  return {};
}

void Buffer::drop(kho::Tx& tx) noexcept {
  if (record_->block == 0) return;
  const std::uint64_t block = record_->block;
  tx.set(*record_, BufferRecord{.block = 0, .room = 0, .begin = 0, .end = 0, .base = position()});
  tx.release(PhysAddr{block});
}

}  // namespace luo::cache
