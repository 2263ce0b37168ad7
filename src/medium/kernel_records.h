// The kernel medium's records in the arena, root slot 2. Fixed width, host byte order.
//
// The engine's records are the truth; what the kernel has is a copy of part of it, which cannot take part in a
// transaction. Two counters for each kernel session say whether they agree: `files`, changed in the engine's own
// transactions, and `in_kernel`, written at once, outside of all transactions. A session is marked before anything is
// asked of the kernel, so that after a SIGKILL at any instruction only marked ones are looked at.
#pragma once
#include <cstdint>

#include "base/hash.h"
#include "kho/arena.h"

namespace luo::medium {

inline constexpr std::uint64_t kKernelMagic = 0x6c656e72656b756c;  // "lukernel"
inline constexpr std::uint64_t kShared = UINT64_MAX;               ///< PartRecord::group: files of several groups

/// One kernel session: what the kernel has of a group's files. All outside of transactions, but `files`.
struct PartRecord {
  std::uint64_t group;   ///< 0: the record is free
  std::uint64_t serial;  ///< makes the kernel session's name; never used twice
  std::int32_t fd;       ///< -1: there is none (yet)
  std::uint32_t marked;  ///< 1: `in_kernel` may be wrong, or differ from `files`
  std::uint32_t full;    ///< 1: the kernel takes no more files into it
  std::uint32_t late;    ///< 1: made for the update that is under way; not kept if that is off
  std::uint64_t birth;   ///< the first serial it had: the upper part of every token in it, so that none means another
  std::uint64_t next_token;  ///< all that were ever tried in it are below
  std::uint64_t files;       ///< that the engine has in it (logged)
  std::uint64_t in_kernel;   ///< that the kernel has
};
static_assert(sizeof(PartRecord) == 64);

inline constexpr unsigned kBirthShift = 24;
constexpr std::uint64_t first_token(const PartRecord& part) noexcept { return part.birth << kBirthShift | 1; }
inline constexpr std::uint64_t kMostSerials = std::uint64_t{1} << (64 - kBirthShift);
/// Tried in one part, whatever became of them: bounds what asking the kernel about a part costs. Then it counts as
/// full.
inline constexpr std::uint64_t kTokensPerPart = std::uint64_t{1} << 15;
constexpr bool has_tokens(const PartRecord& part) noexcept {
  return part.next_token - first_token(part) < kTokensPerPart;
}

inline constexpr std::uint64_t kArriving = 0x676e697669727261;  // "arriving": not to be had by a single wrong bit

inline constexpr std::uint64_t kPartsPerChunk = 63;
struct PartsChunk {
  kho::Ref<PartsChunk> next;
  std::uint64_t reserved[7];
  PartRecord part[kPartsPerChunk];
};
static_assert(sizeof(PartsChunk) == 4096);

struct KernelRoot {
  std::uint64_t magic;
  HashKey key;  ///< of the names
  kho::Ref<PartsChunk> chunks;
  std::uint64_t next_serial;  ///< outside of transactions
  std::uint64_t some_marked;  ///< outside of transactions; 1: some part may be marked
  std::uint64_t arriving;     ///< outside of transactions; kArriving: the parts came in, and have not been given back
  std::uint64_t clock[4];     ///< the moment of the crossing, for whoever has clocks
};

}  // namespace luo::medium
