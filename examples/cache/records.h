// What luo-cache keeps in its arena. Fixed width, no pointers: an address is an offset, so that the
// next process, which may be a newer program, maps it wherever it likes. A change here is a new
// Layout version.
//
//   root 0 → CacheRecord ─ table ──→ directory → segments of 8192 buckets → chains of Entry
//                        └ connections ⇄ ConnectionRecord ⇄ …  each with an input and an output block
//   control page         Counters, outside transactions
#pragma once
#include <cstdint>
#include <string_view>

#include "base/hash.h"
#include "kho/arena.h"

namespace luo::cache {

inline constexpr kho::Layout kLayout{"luo-cache", 2};
inline constexpr unsigned kRootSlot = 0;

/// One key and its value, in one block: this header, the key's bytes, the value's bytes, slack.
struct Entry {
  std::uint64_t next;      ///< Entry of the same bucket, 0 at the end
  std::uint64_t hash;      ///< kept, so that splitting a bucket reads no keys
  std::int64_t expire_ms;  ///< CLOCK_REALTIME, 0 = never
  std::uint32_t key_bytes;
  std::uint32_t value_bytes;

  char* key_at() noexcept { return reinterpret_cast<char*>(this + 1); }
  char* value_at() noexcept { return key_at() + key_bytes; }
  std::string_view key() noexcept { return {key_at(), key_bytes}; }
  std::string_view value() noexcept { return {value_at(), value_bytes}; }
};
static_assert(sizeof(Entry) == 32);

/// A table that FLUSHALL has cut off; its entries are released a few at a time.
struct DeadTable {
  std::uint64_t next;
  std::uint64_t directory;
  std::uint64_t buckets;  ///< those at and above are empty already
};

/// Linear hashing: grows and shrinks by one bucket at a time, so that no single command pays for it.
struct TableRecord {
  HashKey key;
  std::uint64_t directory;       ///< block of u64: segments
  std::uint64_t directory_room;  ///< how many fit
  std::uint64_t buckets;         ///< in use, at least one segment's
  std::uint64_t entries;
  std::uint64_t expiring;  ///< entries with an expire time
  std::uint64_t dead;      ///< DeadTable list
};

/// A stretch of bytes in a block: [begin, end) is full, [end, room) is free. Moving `end` or `begin` says that
/// something came or went, with one store; base + begin and base + end are places in the whole stream of the
/// connection, which TCP counts too: that is how a crash between the call and the store is made good.
struct BufferRecord {
  std::uint64_t block;
  std::uint64_t room;
  std::uint64_t begin;
  std::uint64_t end;
  std::uint64_t base;  ///< how much of the stream went through before the block's first byte
};

struct ConnectionRecord {
  std::uint64_t next;  ///< in the list of all
  std::uint64_t previous;
  std::uint64_t token;        ///< of its socket in the session
  std::uint64_t cookie;       ///< the kernel's name of the socket (SO_COOKIE)
  BufferRecord input;         ///< received, not executed
  BufferRecord output;        ///< answered, not sent
  std::uint64_t resume_at;    ///< the first request in `input` is done up to this argument; 0: it is not begun
  std::int64_t resume_count;  ///< and its answer has come to this
  std::uint32_t closing;      ///< close when the output is sent
  std::uint32_t name_bytes;
  char name[64];  ///< CLIENT SETNAME
};

struct CacheRecord {
  TableRecord table;
  std::uint64_t connections;  ///< ConnectionRecord list
  std::uint64_t next_token;   ///< never reused
};

/// Session tokens.
inline constexpr std::uint64_t kArenaToken = 1;
inline constexpr std::uint64_t kTcpToken = 2;
inline constexpr std::uint64_t kUnixToken = 3;
/// Instead of the arena while the kernel is updated: the arena's image (kho/image.h), which has the size of what is in
/// use. The arena itself has that of its addresses, and the kernel would give all of it memory.
inline constexpr std::uint64_t kImageToken = 4;
inline constexpr std::uint64_t kFirstConnectionToken = 16;

/// In the arena's control page: plain stores, one writer at a time, outlives the process.
struct Counters {
  std::uint64_t commands;
  std::uint64_t connections;
  std::uint64_t generation;     ///< handovers so far
  std::uint64_t quiesced_ns;    ///< CLOCK_MONOTONIC when the last owner stopped, 0 = none did
  std::uint64_t last_pause_us;  ///< from there to the first moment the next one served
  std::uint64_t created_unix_s;
  std::uint64_t expired;
  std::uint64_t refused_writes;  ///< for maxmemory
  std::uint64_t recoveries;      ///< owners that died and were succeeded
  std::uint64_t quiesced_boot;   ///< which boot quiesced_ns counts from; of another one, quiesced_unix_ns is right
  std::uint64_t quiesced_unix_ns;
};
static_assert(sizeof(Counters) <= kho::Arena::kControlBytes);

}  // namespace luo::cache
