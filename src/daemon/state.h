// What the daemon itself keeps in the arena beside the engine's tables: connections, what each of them may
// use, the last answer given to each, and updates. Root slot 1. All of it is found again by the next worker.
#pragma once
#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "base/strong.h"
#include "kho/arena.h"
#include "luo/engine.h"
#include "wire/protocol.h"

namespace luo::daemon {

template <class T>
struct List {
  kho::Ref<T> first, last;
  std::uint64_t count;
};

/// An answer, kept until its request is consumed, so that it can be given again after a crash.
struct AnswerRec {
  static constexpr std::size_t kMaxBytes = 1536;
  std::uint64_t nonce;         ///< of the request it answers
  std::uint64_t hand_session;  ///< 0, or the session whose fd it hands out
  std::uint32_t hand_role;     ///< Role
  std::uint32_t length;
  std::uint32_t fds;
  std::uint32_t owned;  ///< the descriptors are the answer's own: closed once sent
  std::uint32_t sent;   ///< nothing may be sent again: what was handed out is the receiver's
  std::uint32_t reserved;
  std::int32_t fd[wire::kMaxFds];
  std::byte bytes[kMaxBytes];
};

struct PeerRec {
  kho::Ref<PeerRec> next, prev;
  std::uint64_t id;
  std::int32_t fd;
  std::uint32_t uid;
  std::int32_t pid;
  std::uint32_t hello;       ///< said hello
  std::uint32_t subscribed;  ///< wants events
  std::uint32_t active;      ///< which of the two answers is the last one given
  std::uint64_t capabilities;
  std::uint64_t update;    ///< it is the successor of this one, 0 if none
  std::uint64_t prepared;  ///< the last update for which it said ready
  kho::Ref<AnswerRec> answer[2];
  // Outside transactions: how often a request was begun, so that one that kills workers is not tried for ever.
  std::uint64_t tried_nonce;
  std::uint32_t tries;
  std::uint32_t out_of_memory;  ///< a worker had no memory for the first request in the queue: it is to be refused
  char name[32];
};

/// A grant's role can also be this: the session went to a successor, and the peer is still to be told.
inline constexpr std::uint32_t kFormerOwner = 3;

/// This peer may use this session.
struct GrantRec {
  kho::Ref<GrantRec> next, prev;
  std::uint64_t peer, session;
  std::uint32_t role;  ///< Role, or kFormerOwner
  std::uint32_t reserved;
};

enum class Phase : std::uint32_t {
  Offered = 1,    ///< waiting for the successor to come with its ticket
  Warming = 2,    ///< the successor has the session and starts up; the old one serves
  Preparing = 3,  ///< the old one was told (simulated: all were)
  Quiesced = 4,   ///< nobody serves: the successor may take over
  Done = 5,
  Failed = 6,
};
std::string_view to_string(Phase phase) noexcept;

struct UpdateRec {
  kho::Ref<UpdateRec> next, prev;
  std::uint64_t id;
  std::uint32_t kind;   ///< wire::UpdateKind
  std::uint32_t phase;  ///< Phase
  std::uint64_t session, ticket;
  std::uint64_t requester, successor;                                             ///< PeerId, 0 if none
  std::uint64_t begin_ns, warm_ns, prepare_ns, quiesced_ns, end_ns, deadline_ns;  ///< CLOCK_MONOTONIC, 0: not yet
  std::int32_t error;                                                             ///< with Failed
  std::uint32_t notified;  ///< those concerned were told how it ended
  std::int32_t owner_pid, successor_pid;
  std::uint64_t sessions, files;  ///< how much crossed
  char name[wire::kNameBytes];
  char text[192];
  // Of UpdateKind::Kernel, in what used to be the block's slack. The times are CLOCK_MONOTONIC of the kernel before,
  // and go on beyond its end.
  std::uint32_t flags;  ///< wire::UpdateKernelFlag
  std::uint32_t clock;  ///< how well the clocks of both kernels could be joined: daemon/crossing_clock.h
  std::uint64_t preserved_ns, image_ns, frozen_ns;  ///< with quiesced_ns before and end_ns after
  std::uint64_t booted_ns;                          ///< the next kernel began
  std::uint64_t image_bytes;
  bool over() const noexcept { return phase >= static_cast<std::uint32_t>(Phase::Done); }
};
static_assert(sizeof(UpdateRec) <= 448, "a block of an earlier luod's holds it as well");

class State {
 public:
  static constexpr unsigned kRootSlot = 1;
  struct Root {
    List<PeerRec> peers;
    List<GrantRec> grants;
    List<UpdateRec> updates;
    std::uint64_t next_peer, next_update;
  };
  static constexpr std::size_t kGrantsPerStep = 1000;  ///< some 200 bytes of log each
  static constexpr std::uint64_t kHistory = 32;        ///< ended updates that are remembered

  /// Makes or checks and takes over. Errors: EBADMSG, says what and where; ENOMEM.
  static Result<State> open(kho::Arena& arena);

  // Peers. The pointers are into the arena and stay valid until remove_peer.
  Result<PeerRec*> add_peer(Change& change, int fd, std::uint32_t uid, std::int32_t pid);
  /// With its answers; closes what the answers own and the connection. Its grants are gone already.
  void remove_peer(Change& change, PeerRec& peer);
  /// Of a Change that is taken back: nothing may find it any more.
  void forget_unborn(const PeerRec& peer) { peers_.erase(peer.id); }
  PeerRec* find_peer(std::uint64_t id) const;
  void for_each_peer(const std::function<void(PeerRec&)>& visit) const;
  std::uint64_t peer_count() const noexcept;
  AnswerRec& last_answer(const PeerRec& peer) const noexcept;
  AnswerRec& next_answer(const PeerRec& peer) const noexcept;

  // Grants.
  Result<> add_grant(Change& change, std::uint64_t peer, SessionId session, Role role);  ///< replaces the role
  GrantRec* find_grant(std::uint64_t peer, std::uint64_t session) const;
  /// At most kGrantsPerStep of those that `drop` picks, so that a Change stays bounded; false: none were left.
  /// Repeat in a fresh Change until it says so.
  bool drop_some_grants_of_peer(Change& change, std::uint64_t peer);
  bool drop_some_grants_of_session(Change& change, SessionId session, const std::function<bool(const GrantRec&)>& drop);
  void for_each_grant(SessionId session, const std::function<void(GrantRec&)>& visit) const;
  void drop_grant(Change& change, GrantRec& grant);

  // Updates.
  Result<UpdateRec*> add_update(Change& change);  ///< numbered; forgets the oldest ended one over kHistory
  UpdateRec* find_update(std::uint64_t id) const;
  UpdateRec* running_update_of(SessionId session) const;
  UpdateRec* update_by_ticket(std::uint64_t ticket) const;
  void for_each_update(const std::function<void(UpdateRec&)>& visit) const;

  void append_fds(std::vector<int>& out) const;
  /// The records come from another system: no connection in them is one here.
  void arrive();

 private:
  State(kho::Arena& arena, Root& root) : arena_{&arena}, root_{&root} {}
  Result<> index();

  kho::Arena* arena_;
  Root* root_;
  // Indexes, made again by each worker.
  std::unordered_map<std::uint64_t, PeerRec*> peers_;
  std::unordered_map<std::uint64_t, std::vector<GrantRec*>> grants_by_session_;
  std::unordered_map<std::uint64_t, std::unordered_map<std::uint64_t, GrantRec*>> grants_by_peer_;
};

}  // namespace luo::daemon
