// The engine's records in the arena: fixed width, no pointers, host byte order. A change here is a new
// version of the root record: version N reads N-1, and can be turned into it (version.cc). So that neither
// costs more than a new root record, what a version adds to sessions and files lies in tables of its own.
//
//   root slot 0 → RootRecord ── outgoing: names, list of sessions
//                            ├─ incoming: names, list of sessions
//                            ├─ dropped:  list of sessions whose second crossing nobody claimed
//                            ├─ doomed → session → ... whose files are to be swept
//                            ├─ ids, inodes, tokens, identities, trees (hash tables)
//                            ├─ handlers (their names)
//                            └─ since version 2: options (of sessions), relations (of files), flbs
//   session: list of its files.  tree: files of one inode, in kcmp(2) order
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/hash.h"
#include "kho/arena.h"
#include "luo/handler.h"

namespace luo {

using kho::Ref;

inline constexpr std::uint64_t kRootMagic1 = 0x746f6f722d6f756c;     // "luo-root": version 1
inline constexpr std::uint64_t kRootMagic = 0x3274722d6f756c;        // "luo-rt2"
inline constexpr std::uint64_t kSessionMagic = 0x7373656d6f756c31;   // "1luomess"
inline constexpr std::uint64_t kFileMagic = 0x656c69662d6f756c;      // "luo-file"
inline constexpr std::uint64_t kTreeMagic = 0x656572742d6f756c;      // "luo-tree"
inline constexpr std::uint64_t kHandlersMagic = 0x646e61682d6f756c;  // "luo-hand"
inline constexpr std::uint64_t kOptionsMagic = 0x7374706f2d6f756c;   // "luo-opts"
inline constexpr std::uint64_t kFlbsMagic = 0x73626c662d6f756c;      // "luo-flbs"
inline constexpr std::uint64_t kRelationMagic = 0x7370656420756f6c;  // "lou deps"

/// A place in a doubly linked list.
template <class T>
struct Links {
  Ref<T> prev, next;
};
template <class T>
struct ListRecord {
  Ref<T> first, last;
  std::uint64_t count;
};

struct TableSlot {
  std::uint64_t hash;
  std::uint64_t ref;  ///< 0: empty
};
struct TableRecord {
  Ref<TableSlot> slots;    ///< TableSlot[capacity]
  std::uint64_t capacity;  ///< 0 or a power of two
  std::uint64_t count;     ///< occupied, at most half of the capacity
};

struct SessionRecord;
struct TreeRecord;

struct FileRecord {
  std::uint64_t magic;
  std::uint64_t token;
  Links<FileRecord> links;  ///< order of preservation
  Ref<SessionRecord> session;
  std::int32_t fd;          ///< luod's own
  std::int32_t status;      ///< of retrieve, see FileView; holds only while status_of is current
  std::uint64_t status_of;  ///< generation << 32 | epoch of the session in which it was tried
  std::uint32_t handler;    ///< index in HandlersRecord
  std::uint32_t indexed;    ///< 1: is in identities or in a tree
  HandlerData data;
  std::uint64_t group, object;  ///< Identity
  Ref<TreeRecord> tree;         ///< kinds that are told apart by kcmp(2); else none
  Ref<FileRecord> left, right, up;
  std::uint64_t priority;  ///< in the tree (a treap)
  // Since version 2, in what used to be the block's slack.
  std::uint32_t charge_kib;   ///< memory or blocks that the file had when it was preserved; the highest: or more
  std::uint32_t preserved_s;  ///< CLOCK_REALTIME, seconds; 0: not known
};
static_assert(sizeof(FileRecord) == 160, "a block of version 1 holds it as well");

/// The files of one (group, object), ordered by kcmp(2).
struct TreeRecord {
  std::uint64_t magic;
  std::uint64_t group, object;
  Ref<FileRecord> root;
  std::uint64_t count;
};

struct HolderRecord {
  std::int32_t write_fd, read_fd;  ///< -1: none
  std::uint64_t inode;
  std::uint64_t peer;
  std::uint64_t generation;  ///< of the engine when it was given out; an older one's holder is gone
  std::uint32_t accepted;
  std::uint32_t uid;
  std::int32_t pid;
  std::uint32_t reserved;
};

struct SessionRecord {
  std::uint64_t magic;
  std::uint64_t id;
  std::uint64_t generation;  ///< of the engine: this one outgoing, the one before incoming, older dropped
  Links<SessionRecord> links;
  Ref<SessionRecord> next_doomed;
  std::uint32_t state;   ///< SessionState, or kGone. Of what has crossed: as it was before
  std::uint32_t epoch;   ///< advances when earlier retrieves no longer count
  std::uint32_t doomed;  ///< 1: in the list of those whose files are to be swept
  std::uint32_t called;  ///< 1: its handlers have been told (unpreserve or finish)
  ListRecord<FileRecord> files;
  std::uint64_t created_ms;
  HolderRecord holder[2];
  char name[64];  ///< NUL-padded
};

static_assert(sizeof(SessionRecord) == 256);

/// Of a session that is not as the kernel's are; all others have none.
struct OptionsRecord {
  std::uint64_t magic;
  Ref<SessionRecord> session;
  std::uint32_t hold;   ///< Hold
  std::uint16_t event;  ///< OwnerEvent
  std::uint16_t carry;  ///< Carry; in what used to be the upper half of `event`, which was 0
  char held_for[232];   ///< NUL-padded
};
static_assert(sizeof(OptionsRecord) == 256);

inline constexpr std::uint32_t kMaxDependencies = 16;
/// Of a file that depends on others, or on which others depend; all others have none.
struct RelationRecord {
  std::uint64_t magic;
  Ref<FileRecord> file;
  std::uint64_t dependents;  ///< files that name this one
  std::uint64_t count;       ///< of `on`
  Ref<FileRecord> on[kMaxDependencies];
};

struct SideRecord {
  TableRecord names;
  ListRecord<SessionRecord> sessions;
  std::uint64_t files;
};

inline constexpr std::uint32_t kMaxHandlers = 64;
struct HandlersRecord {
  std::uint64_t magic;
  std::uint64_t count;
  char name[kMaxHandlers][48];  ///< NUL-padded
};

/// An FLB on one side.
struct FlbSideRecord {
  std::uint64_t files;  ///< that hold it, over all sessions
  std::uint64_t data;
  std::uint32_t state;  ///< FlbPhase
  std::int32_t error;   ///< of retrieve, remembered
};
enum class FlbPhase : std::uint32_t {
  None = 0,
  Kept = 1,       ///< preserved here, or came in
  Retrieved = 2,  ///< retrieve() was called; `error` says how it went
  Finished = 3,
};
struct FlbRecord {
  char name[48];  ///< NUL-padded
  FlbSideRecord outgoing, incoming, dropped;
};
inline constexpr std::uint32_t kMaxFlbs = 63;
struct FlbsRecord {
  std::uint64_t magic;
  std::uint64_t count;
  /// Bit i: the files under this index of HandlersRecord hold flb[i]. A handler that was tied to others later has
  /// another index since then.
  std::uint64_t held[kMaxHandlers];
  FlbRecord flb[kMaxFlbs];
};

struct RootRecord {
  std::uint64_t magic;
  std::uint64_t generation;
  std::uint64_t next_session;
  HashKey key;
  SideRecord outgoing, incoming;
  ListRecord<SessionRecord> dropped;
  Ref<SessionRecord> doomed;
  std::uint64_t frozen;         ///< outgoing sessions in state Frozen
  std::uint64_t stale_holders;  ///< 1: incoming sessions may still name descriptors of the side before
  TableRecord ids, inodes, tokens, identities, trees;
  Ref<HandlersRecord> handlers;
  // Since version 2.
  TableRecord options;    ///< OptionsRecord, by the session's place
  TableRecord relations;  ///< RelationRecord, by the file's place
  Ref<FlbsRecord> flbs;   ///< none: no handler was ever tied to an FLB
};
inline constexpr std::size_t kRootBytes1 = offsetof(RootRecord, options);

}  // namespace luo
