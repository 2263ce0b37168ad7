// What travels between a client and luod: SOCK_SEQPACKET, one message per datagram, host byte order
// (both ends are on one machine, under one kernel). docs/protocol.md tells the story; this file is
// the reference.
//
//   client                                 luod
//     HELLO  {capabilities, name, ticket} →
//                                         ← {capabilities of both, instance}
//     CREATE_SESSION {name}               →
//                                         ← {..} + session fd, header.session = handle
//     ACCEPT (handle)                     →     until here the session is only handed out
//                                         ←
//     PRESERVE_FD {token} + fd            →
//                                         ←
//                                         ← event, nonce 0, whenever luod has something to say
//
// A connection has one request in work at a time; requests queue in the socket and are answered in
// order. A client numbers its requests (nonce, strictly increasing from 1); luod may, after a crash,
// send an answer a second time: a client drops answers whose nonce is not the one it waits for (and
// closes what came with them).
#pragma once
#include <cstddef>
#include <cstdint>

namespace luo::wire {

inline constexpr std::size_t kMaxMessage = 64 * 1024;  ///< bytes, header included
inline constexpr std::size_t kMaxFds = 253;            ///< SCM_MAX_FD of Linux
inline constexpr std::size_t kNameBytes = 64;          ///< a session's name with its NUL

struct Header {
  std::uint32_t length;   ///<  0  of the whole message; must equal the datagram's
  std::uint32_t command;  ///<  4  Command, also in the answer; in an event: Event
  std::uint64_t nonce;    ///<  8  request and answer: the client's number; event: 0
  std::uint64_t session;  ///< 16  handle of the session it is about, 0 if none
  std::uint32_t fds;      ///< 24  descriptors that travel with it
  std::int32_t error;     ///< 28  answer: 0 or a positive errno. Request: what the client itself met where the
                          ///<     kernel would look at an argument (EBADF for a bad fd), so that luod can
                          ///<     report it in the kernel's order of checks
};
static_assert(sizeof(Header) == 32);

/// 0xBA00.. and 0xBA40.. are the kernel's ioctls, with its structs; the rest are extensions.
enum class Command : std::uint32_t {
  CreateSession = 0xBA00,    ///< NameArg → NameArg + fd; header.session = handle. Then Accept.
  RetrieveSession = 0xBA01,  ///< likewise
  PreserveFd = 0xBA40,       ///< TokenArg + 1 fd (or header.error) → TokenArg
  RetrieveFd = 0xBA41,       ///< TokenArg → TokenArg + 1 fd
  Finish = 0xBA42,           ///< PlainArg → PlainArg
  GetName = 0xBA43,          ///< GetNameArg → GetNameArg

  Hello = 0xBA80,    ///< HelloArg → HelloArg; must be the first request
  Accept = 0xBA81,   ///< PlainArg: the session fd has arrived. → PlainArg
  Present = 0xBA82,  ///< PlainArg + a dup of a session fd → PlainArg, header.session = handle. EBADF: not a session
  UnpreserveFd = 0xBA83,  ///< TokenArg → TokenArg. ENOENT: no such token
  Renew = 0xBA84,         ///< PlainArg: a retrieved session becomes an outgoing one, with all its files
  PreserveMany = 0xBA85,  ///< ManyArg + ManyEntry[count] + fds → ManyArg + ManyResult[count]
  RetrieveMany = 0xBA86,  ///< ManyArg + ManyEntry[count] → ManyArg + ManyResult[count] + fds
  RetrieveWait = 0xBA87,  ///< WaitArg: as RetrieveSession, but waits until there is one. ETIMEDOUT
  Subscribe = 0xBA88,     ///< PlainArg, reserved = 1 on, 0 off: wants events
  Prepared = 0xBA89,      ///< VerdictArg: the answer to Event::Prepare
  TakeOver = 0xBA8A,  ///< WaitArg (name unused), successor's handle: I am warm; answered when the old one has quiesced
  ListTokens = 0xBA8B,     ///< PlainArg → ManyArg + memfd with ManyEntry[count], in order of preservation
  Hold = 0xBA8C,           ///< HoldArg → HoldArg: what becomes of the session at its last close
  Drop = 0xBA8D,           ///< NameArg → NameArg: gives up a session that nobody has. EBUSY: somebody has it
  SetEvent = 0xBA8E,       ///< EventArg → EventArg: the owner's own prepare, freeze, finish, cancel
  GetState = 0xBA8F,       ///< StateArg → StateArg
  PreserveAfter = 0xBA90,  ///< AfterArg + uint64_t[count] + 1 fd (or header.error) → TokenArg
  SetOption = 0xBA91,      ///< OptionArg → PlainArg: how the session crosses to another kernel. EINVAL: key or value

  Query = 0xBAA0,            ///< QueryArg → PlainArg + memfd with JSON
  UpdateLuod = 0xBAA1,       ///< UpdateArg + image fd → PlainArg + memfd with JSON (a report; also on error)
  UpdateService = 0xBAA2,    ///< UpdateArg → UpdateArg with id and ticket; the caller then starts the successor
  UpdateWait = 0xBAA3,       ///< UpdateArg with id: answered when that update has ended → UpdateArg + memfd with JSON
  UpdateCancel = 0xBAA4,     ///< UpdateArg with id + text: the successor is dead, or the operator gave up
  UpdateSimulated = 0xBAA5,  ///< UpdateArg → PlainArg + memfd with JSON (also on error)
  Stop = 0xBAA6,             ///< PlainArg: end luod
  UpdateKernel = 0xBAA8,     ///< UpdateKernelArg → PlainArg + memfd with JSON (also on error); the kernel is loaded
  Inspect = 0xBAA7,          ///< PlainArg → PlainArg + memfd with an image of luod's arena (kho/image.h), sealed
};

enum class Event : std::uint32_t {
  Prepare = 0xBAC0,     ///< PrepareEvent: an update is coming; answer Prepared before the deadline
  Resumed = 0xBAC1,     ///< EndEvent: it was called off, why stands in `text`
  HandedOver = 0xBAC2,  ///< EndEvent: the successor owns the session now; this process has nothing left to do
};

enum Capability : std::uint64_t {
  kCapBatch = 1U << 0,     ///< PreserveMany, RetrieveMany
  kCapUpdates = 1U << 1,   ///< Subscribe and events
  kCapTakeOver = 1U << 2,  ///< TakeOver, Renew
  kCapQuery = 1U << 3,
  kCapHold = 1U << 4,    ///< Hold, Drop
  kCapEvents = 1U << 5,  ///< SetEvent, GetState
  kCapAfter = 1U << 6,   ///< PreserveAfter
  kCapKernel = 1U << 7,  ///< SetOption, UpdateKernel, QueryKind::Preflight
  kCapAll = kCapBatch | kCapUpdates | kCapTakeOver | kCapQuery | kCapHold | kCapEvents | kCapAfter | kCapKernel,
};

// The arguments. Each starts with its size; a larger one is accepted if what is beyond ours is zero
// (else E2BIG), a smaller one is EINVAL: the kernel's rule for extensible structs.

struct PlainArg {  ///< liveupdate_session_finish
  std::uint32_t size;
  std::uint32_t reserved;  ///< 0, unless the command says otherwise
};
static_assert(sizeof(PlainArg) == 8);

struct NameArg {  ///< liveupdate_ioctl_create_session, _retrieve_session
  std::uint32_t size;
  std::int32_t fd;  ///< ignored; a client library puts its own number here
  char name[kNameBytes];
};
static_assert(sizeof(NameArg) == 72);

struct GetNameArg {
  std::uint32_t size;
  std::uint32_t reserved;
  char name[kNameBytes];
};
static_assert(sizeof(GetNameArg) == 72);

struct TokenArg {  ///< liveupdate_session_preserve_fd, _retrieve_fd
  std::uint32_t size;
  std::int32_t fd;  ///< ignored
  std::uint64_t token;
};
static_assert(sizeof(TokenArg) == 16);

struct HelloArg {
  std::uint32_t size;
  std::uint32_t reserved;      ///< 0
  std::uint64_t capabilities;  ///< Capability bits; the answer has those of both
  std::uint64_t ticket;    ///< request: from LUO_TICKET, names the update this process is the successor of; 0 if none
  std::uint64_t instance;  ///< answer: random, one for each life of an arena
  char name[32];           ///< request: the program's name, for people; NUL-terminated
};
static_assert(sizeof(HelloArg) == 64);

struct ManyArg {
  std::uint32_t size;   ///< of this struct
  std::uint32_t count;  ///< 1..kMaxFds (ListTokens: any)
};
struct ManyEntry {
  std::uint64_t token;
  std::int32_t error;      ///< PreserveMany: errno met by the client with this fd (no fd is sent for it), else 0
  std::uint32_t reserved;  ///< 0
};
static_assert(sizeof(ManyEntry) == 16);
struct ManyResult {
  std::int32_t error;  ///< 0 or errno; RetrieveMany: the fds of those with 0 follow in this order
};

/// engine.h's Hold.
struct HoldArg {
  std::uint32_t size;
  std::uint32_t hold;  ///< 0 off, 1 for its user, 2 for its executable, 3 for its unit
};
static_assert(sizeof(HoldArg) == 8);

/// The numbers of early versions of the kernel's LUO.
enum class OwnEvent : std::uint32_t { Prepare = 0, Freeze = 1, Finish = 2, Cancel = 3 };
enum class OwnState : std::uint32_t { Undefined = 0, Normal = 1, Prepared = 2, Frozen = 3, Updated = 4 };
struct EventArg {
  std::uint32_t size;
  std::uint32_t event;  ///< OwnEvent
};
static_assert(sizeof(EventArg) == 8);
struct StateArg {
  std::uint32_t size;
  std::uint32_t state;  ///< answer: OwnState
};
static_assert(sizeof(StateArg) == 8);

/// Keys: "transient" = "refuse" (as every session begins) or "allow": files that only an exec can carry are taken, and
/// an update of the kernel drops them. "grow" = "refuse" or "allow": files are given to the kernel only when an update
/// of it is under way, so that they can grow until then.
struct OptionArg {
  std::uint32_t size;
  std::uint32_t reserved;  ///< 0
  char key[32], value[32];
};
static_assert(sizeof(OptionArg) == 72);

inline constexpr std::size_t kMaxAfter = 16;
struct AfterArg {
  std::uint32_t size;   ///< of this struct
  std::uint32_t count;  ///< of tokens that follow, 1..kMaxAfter
  std::uint64_t token;
};
static_assert(sizeof(AfterArg) == 16);

struct WaitArg {
  std::uint32_t size;
  std::uint32_t timeout_ms;  ///< 0 = do not wait, UINT32_MAX = for ever
  char name[kNameBytes];
};
static_assert(sizeof(WaitArg) == 72);

struct VerdictArg {
  std::uint32_t size;
  std::uint32_t refused;  ///< 0 ready, 1 refused
  std::uint64_t update;   ///< from the PrepareEvent
  char reason[112];       ///< for people, NUL-terminated
};
static_assert(sizeof(VerdictArg) == 128);

enum class QueryKind : std::uint32_t { Status = 1, List = 2, Show = 3, Files = 4, Preflight = 5 };
struct QueryArg {
  std::uint32_t size;
  std::uint32_t kind;     ///< QueryKind
  char name[kNameBytes];  ///< Show: the session; Files: the handler, empty: all
};
static_assert(sizeof(QueryArg) == 72);

struct UpdateArg {
  std::uint32_t size;
  std::uint32_t timeout_ms;  ///< for the whole update; 0 = luod's default
  std::uint64_t id;          ///< answer of UpdateService; request of UpdateWait and UpdateCancel
  std::uint64_t ticket;      ///< answer of UpdateService: goes to the successor as LUO_TICKET (hexadecimal)
  std::int64_t owner_pid;    ///< answer of UpdateService: the process that holds the session, 0 if unknown
  char name[kNameBytes];     ///< UpdateService: the session
  char text[128];            ///< UpdateCancel: why, for people
};
static_assert(sizeof(UpdateArg) == 224);

enum UpdateKernelFlag : std::uint32_t {
  kUpdateDryRun = 1U << 0,         ///< all but the reboot, and everything back
  kUpdateDropUnclaimed = 1U << 1,  ///< sessions that came in and that nobody has claimed may be lost
};
struct UpdateKernelArg {
  std::uint32_t size;
  std::uint32_t timeout_ms;  ///< until everybody is ready; 0 = luod's default
  std::uint32_t flags;       ///< UpdateKernelFlag
  std::uint32_t reserved;    ///< 0
};
static_assert(sizeof(UpdateKernelArg) == 16);

enum class UpdateKind : std::uint32_t { Luod = 1, Service = 2, Simulated = 3, Kernel = 4 };
/// Whether all cross in it, and nobody of the side before is left.
constexpr bool takes_everything(std::uint32_t kind) noexcept {
  return kind == static_cast<std::uint32_t>(UpdateKind::Simulated) ||
         kind == static_cast<std::uint32_t>(UpdateKind::Kernel);
}

struct PrepareEvent {
  std::uint32_t size;
  std::uint32_t kind;         ///< UpdateKind
  std::uint64_t update;       ///< its id; sent again with the same id after a crash of luod's worker
  std::uint32_t deadline_ms;  ///< from now
  std::uint32_t reserved;
};
static_assert(sizeof(PrepareEvent) == 24);

struct EndEvent {
  std::uint32_t size;
  std::int32_t error;  ///< an errno for machines, 0 for HandedOver
  std::uint64_t update;
  char text[112];
};
static_assert(sizeof(EndEvent) == 128);

}  // namespace luo::wire
