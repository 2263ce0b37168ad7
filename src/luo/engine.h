// The engine: sessions, files, tokens and the lifecycle table, all of it in an arena, so that the next
// worker goes on where this one was killed. Knows no socket, no process and no clock.
//
// Every operation that changes something takes a Change: one transaction, plus the descriptors to close
// once it is committed. An operation that fails has changed nothing (it goes back to where the Change was),
// except that a failed retrieve is remembered and that the close of a dead holder, once carried out, stays:
// commit after an error, too. An operation on a session that is not there gives EBADF.
// The caller adds what belongs to the same atomic step (the nonce, the answer) and commits.
//
// Cost: O(1) expected per operation in the number of sessions and files; whole updates O(n).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/strong.h"
#include "kho/arena.h"
#include "luo/handler.h"

namespace luo {

/// One atomic step. Commit closes what the step gave up; leaving scope without it undoes the step and
/// closes nothing of that.
class Change {
 public:
  explicit Change(kho::Arena& arena) noexcept : tx{arena} {}
  ~Change() = default;
  /// Closes `fd` after the commit (its number is no longer named by the arena then).
  void close_later(int fd) {
    if (fd >= 0) close_.push_back(fd);  // a file that was lost on its way here has none
  }
  /// For the engine: what is to be done once the step is committed, in transactions of its own.
  void after_commit(void (*run)(void*), void* context) noexcept {
    after_ = run;
    context_ = context;
  }
  void commit() noexcept;

  struct Mark {
    kho::Tx::Mark tx;
    std::size_t closes;
  };
  Mark mark() const noexcept { return {tx.mark(), close_.size()}; }
  void back_to(const Mark& mark) noexcept;

  kho::Tx tx;

 private:
  std::vector<int> close_;
  void (*after_)(void*) = nullptr;
  void* context_ = nullptr;
};

/// All there are; what may follow what stands in kEdges (lifecycle.h).
enum class SessionState : std::uint32_t {
  Outgoing = 1,   ///< made here; files come and go
  Preparing = 2,  ///< its owner was told that an update is coming; files still come and go
  Frozen = 3,     ///< ready to cross, or to be taken over: changes get EBUSY
  Incoming = 4,   ///< left by the side before, nobody has it
  Retrieved = 5,  ///< somebody has it
  Finished = 6,   ///< nothing is kept for it any more; exists until its descriptor closes
};
std::string_view to_string(SessionState state) noexcept;

/// What becomes of an outgoing session whose last descriptor closes.
enum class Hold : std::uint32_t {
  Off = 0,         ///< it is unpreserved, as in the kernel
  User = 1,        ///< it stays; a process of the same uid gets it back
  Executable = 2,  ///< likewise, if it also runs the same executable
  Unit = 3,        ///< likewise, if it is also in the same unit (control group)
};
std::string_view to_string(Hold hold) noexcept;

/// How far its owner has taken an outgoing session by itself, without an update: the per-session interface of
/// early versions of the kernel's LUO.
enum class OwnerEvent : std::uint32_t { None = 0, Prepared = 1, Frozen = 2 };

/// How a session crosses to another kernel; bits, none of them set is as the kernel has it. They stay with the session
/// over every update.
enum Carry : std::uint16_t {
  kCarryTransient = 1U << 0,  ///< files that only an exec can carry are taken; an update of the kernel drops them
  kCarryGrow = 1U << 1,       ///< files are given to the kernel only when an update of it is under way
  kCarryAll = kCarryTransient | kCarryGrow,
};

/// A session can have two capabilities while it passes from a service to its successor.
enum class Role : std::uint32_t { Owner = 1, Successor = 2 };

/// The pipe behind a session fd: luod's write end, whose POLLERR is the last close, and, until the
/// receiver has accepted, the read end that is being handed out.
struct Holder {
  int write_fd = -1;        ///< -1: nobody holds it
  int read_fd = -1;         ///< >= 0: handed out, but not yet sent off (kept to be sent again after a crash)
  std::uint64_t inode = 0;  ///< of the pipe, suggests which session a presented fd is
  bool accepted = false;
  PeerId peer{};  ///< to whom it was handed out
};

struct OwnerInfo {
  std::uint32_t uid = 0;
  std::int32_t pid = 0;
};

struct SessionView {  ///< a copy, for showing and deciding
  SessionId id;
  std::string name;
  SessionState state;
  OwnerInfo owner;
  Holder holder[2];  ///< by Role: [0] owner, [1] successor
  std::uint64_t files;
  std::uint64_t created_ms;  ///< CLOCK_REALTIME, as given at creation
  Hold hold = Hold::Off;
  OwnerEvent event = OwnerEvent::None;  ///< of outgoing sessions
  std::string held_for;                 ///< Hold::Executable, Unit: which
  std::uint16_t carry = 0;              ///< Carry
};

struct FileView {
  Token token;
  std::string_view handler;
  int fd;
  int retrieve_status;  ///< 0 not tried, 1 given out, negative errno: failed and remembered
  std::uint64_t inode, device;
  HandlerData data;
  std::uint64_t charge_bytes;  ///< memory or blocks that it had when it was preserved, in steps of 1 KiB
  std::uint32_t preserved_s;   ///< CLOCK_REALTIME, seconds; 0: not known
};

struct FreezeFailure {  ///< who stood in the way
  std::string session;
  Token token;
  std::string handler;
  Error error;
};

class Engine final : public FlbAccess {
 public:
  /// Called before an answer that the existence of another session's holder causes (EEXIST, EBUSY,
  /// EINVAL "retrieved already"): has that holder's descriptor been closed everywhere? If it says
  /// yes, the engine carries the close out inside the same Change and goes on. O(1).
  using IsClosed = std::function<bool(int write_fd)>;

  static constexpr kho::Layout kLayout{"luod", 1};
  /// Of the root record: what is written. The version before is read, see take_over() and write_version_before().
  static constexpr std::uint32_t kVersion = 2;

  /// Whether open() may already change what it finds.
  enum class Take { Now, Later };
  /// Whose word open() takes for it that what it finds is whole. Predecessor: an engine of this version served from
  /// it, well and to the end, a moment ago: bounds and a part of the records are looked at, not each (ADR 0015). If
  /// it is of another version, or needs a handler that is not there, everything is.
  enum class Trust { Nobody, Predecessor };

  /// In a fresh arena (root slot 0 empty) makes the tables, else checks everything that it will rely on
  /// (bounds, links, counts, handler names) and takes over. Errors: EBADMSG damaged, says what and where;
  /// ENOTSUP a file's handler, or an FLB that it holds, is not registered (names it); ENOMEM; ENOSPC over 64 handlers
  /// in one arena's life. All handlers are registered before. With Take::Later nothing has been written into an arena
  /// that was left (its owner may still take it back), and nothing but views may be asked before take_over().
  static Result<Engine> open(kho::Arena& arena, const HandlerRegistry& handlers, IsClosed is_closed,
                             Take take = Take::Now, Trust trust = Trust::Nobody);
  /// What open() put off: a root record of the version before becomes one of this version, new handlers get their
  /// names, what a predecessor left to be swept is swept. Errors: ENOMEM, ENOSPC as open(); may be tried again.
  Result<> take_over();
  /// Makes the arena one that the version before can open. Errors: ENOTSUP what is kept cannot be expressed there
  /// (names the session), ENOMEM. Nothing but views may be asked of this engine afterwards; opening the arena
  /// again undoes it.
  Result<> write_version_before(Change& change) const;
  Engine(Engine&&) noexcept;  ///< Not after somebody has it as FlbAccess.
  ~Engine();

  // --- sessions -------------------------------------------------------------------------------------
  /// Checks in order: name (EINVAL: empty or no NUL in 64), memory (ENOMEM), EEXIST in the outgoing name space.
  /// `raw_name` is the 64 bytes of the uAPI struct.
  Result<SessionId> create_session(Change& change, std::span<const char, 64> raw_name, const Holder& holder,
                                   OwnerInfo owner, std::uint64_t now_ms);
  /// An incoming session, or one that is held (Hold) while nobody has it: that one stays outgoing.
  /// ENOENT none of that name; EINVAL retrieved already.
  Result<SessionId> retrieve_session(Change& change, std::span<const char, 64> raw_name, const Holder& holder,
                                     OwnerInfo owner);
  /// The read end was sent: from now on the session's life is the receiver's.
  void sent(Change& change, SessionId id, Role role) noexcept;  ///< forgets read_fd, closes it after commit
  /// ENOENT no such session. Idempotent.
  Result<> accept(Change& change, SessionId id, Role role);
  /// Last close of a capability. Owner: not accepted: put away (created) or back (retrieved); held (Hold): stays,
  /// outgoing or incoming, for the next owner; outgoing: unpreserve LIFO; retrieved: finish LIFO, then gone; can_finish
  /// false: put back, so that the next owner can retry (differs from the kernel, D8). If a successor holds the session,
  /// it lives on as the successor's. Successor: as abandon_successor.
  void holder_closed(Change& change, SessionId id, Role role);

  /// What becomes of the session at its last close. `held_for`, of Executable and Unit, is for the caller to
  /// compare: 1 to 231 bytes. EINVAL incoming and not retrieved, or finished, or `held_for`; EBUSY frozen; ENOMEM.
  Result<> set_hold(Change& change, SessionId id, Hold hold, std::string_view held_for);
  /// Sets and clears bits of Carry. What is in the session stays there. EINVAL incoming and not retrieved, or finished,
  /// or a bit that is none; EBUSY frozen; ENOMEM.
  Result<> set_carry(Change& change, SessionId id, std::uint16_t set, std::uint16_t clear);
  /// Gives up a session that nobody has: held, or incoming. EBUSY somebody has it, or an update has frozen it,
  /// or a handler's can_finish.
  Result<> drop(Change& change, SessionId id);
  /// What its owner does with an outgoing session by itself. EINVAL: not the next step; EBUSY: an update is doing
  /// it; ENOMEM. `FreezeFailure` is for Frozen: who stood in the way.
  Result<> owner_prepare(Change& change, SessionId id);
  std::expected<void, FreezeFailure> owner_freeze(Change& change, SessionId id);
  Result<> owner_cancel(Change& change, SessionId id);

  std::optional<SessionView> find(SessionId id) const;
  unsigned carry_of(SessionId id) const noexcept;  ///< SessionView::carry; 0: no such session
  std::optional<SessionId> find_outgoing(std::string_view name) const;
  std::optional<SessionId> find_incoming(std::string_view name) const;
  struct InodeHit {
    SessionId id;
    Role role;
  };
  /// Which capability has this pipe inode. A hint: prove it with the pipe itself.
  std::optional<InodeHit> find_by_inode(std::uint64_t inode) const;
  void for_each_session(const std::function<void(const SessionView&)>& visit) const;          ///< creation order
  void for_each_file(SessionId id, const std::function<void(const FileView&)>& visit) const;  ///< preservation order
  /// Who holds them, nothing else looked at: for a worker that has just come and is to serve soon. Creation order.
  void for_each_holder(const std::function<void(SessionId, Role, int write_fd, int read_fd)>& visit) const;
  std::uint64_t session_count() const noexcept;
  std::uint64_t frozen_count() const noexcept;    ///< of the outgoing ones
  std::uint64_t incoming_count() const noexcept;  ///< retrieved or not
  std::uint64_t file_count() const noexcept;
  std::uint64_t generation() const noexcept;  ///< how many times everything crossed (live-update number)

  // --- files ----------------------------------------------------------------------------------------
  // Role::Successor may retrieve from an outgoing session that it is about to take over.
  struct Look {  ///< what is known of a descriptor before it is preserved
    FileInfo file;
    int error = 0;         ///< != 0: could not be looked at
    bool checked = false;  ///< is known to be open, or (EBADF) O_PATH
  };
  /// Looks at all descriptors of a batch: fewer system calls than one preserve() after the other makes.
  /// `looks` is valid for preserve() while the descriptors are open. Changes nothing.
  void look_at(std::span<const int> fds, std::vector<Look>& looks) const;
  struct PreserveRequest {
    Token token;
    int fd = -1;                                ///< becomes the engine's on success; stays the caller's on error
    int client_errno = 0;                       ///< != 0: the client could not send it (EBADF)
    const Look* look = nullptr;                 ///< of `fd`, if the caller has it already
    std::span<const std::uint64_t> after = {};  ///< tokens that this file depends on, at most 16, none twice
    std::uint64_t now_ms = 0;                   ///< CLOCK_REALTIME, to be shown
  };
  /// Order of checks: EINVAL incoming; EBUSY frozen; EEXIST token; ENOMEM; client_errno; EBADF (O_PATH);
  /// ENOENT no handler; EBUSY same file preserved (after IsClosed of its session); the handler's errno.
  /// Of `after`: EINVAL over 16 or one twice, first of all; ENOLINK one is not preserved, after EEXIST.
  /// EINPROGRESS: the handler needs time, nothing changed, ask again when it wakes.
  Result<> preserve(Change& change, SessionId id, const PreserveRequest& request);
  /// EINVAL incoming; EBUSY frozen; ENOENT; EBUSY another file depends on it.
  Result<> unpreserve(Change& change, SessionId id, Token token);
  /// The tokens that a file depends on, in the order in which they were named.
  std::vector<Token> depends_on(SessionId id, Token token) const;
  /// What the file's handler remembers, changed from outside: ENOENT no such token.
  Result<> set_data(Change& change, SessionId id, Token token, const HandlerData& data);
  /// The engine's own descriptor of the file, to be sent, not to be closed. EINVAL outgoing (unless it is held, or
  /// Role::Successor); ENOENT; the remembered errno of an earlier failure.
  Result<int> retrieve(Change& change, SessionId id, Role role, Token token);
  /// EINVAL outgoing; EBUSY some handler's can_finish (nothing finished). Idempotent.
  Result<> finish(Change& change, SessionId id);
  /// A retrieved session becomes an outgoing one; of a successor (after freeze_one): the handover.
  /// Of a held one that is outgoing already: nothing to be done.
  /// EINVAL none of these; EEXIST an outgoing one of that name. The old holder's write end closes with the commit.
  Result<> renew(Change& change, SessionId id, Role role);

  // --- from a service to its successor --------------------------------------------------------------
  /// Gives a second capability of an outgoing session out. EBUSY it has one; EINVAL not outgoing.
  Result<> add_successor(Change& change, SessionId id, const Holder& holder, OwnerInfo owner);
  /// The session goes back to its owner (unfrozen); no owner left: last close.
  void abandon_successor(Change& change, SessionId id);

  // --- everything at once ---------------------------------------------------------------------------
  Result<> begin_prepare(Change& change, SessionId id);        ///< Outgoing → Preparing. EINVAL
  void cancel_prepare(Change& change, SessionId id) noexcept;  ///< Preparing or Frozen (unfreezes, FIFO) → Outgoing
  /// Freezes one session's files, FIFO. On failure those frozen before are unfrozen FIFO, the state is Preparing again.
  std::expected<void, FreezeFailure> freeze_one(Change& change, SessionId id);
  /// First sees to it that incoming sessions that are held can stay: EEXIST an outgoing one has the name.
  /// Freezes all outgoing sessions, FIFO; on failure unfreezes the failing one's FIFO, then the others LIFO.
  /// Uses transactions of its own (its work is O(n), a Change is bounded).
  std::expected<void, FreezeFailure> freeze_all();
  /// After freeze_all, before cross: takes it all back, sessions LIFO.
  void unfreeze_all();
  /// The point of no return of a simulated update, in one bounded transaction: outgoing becomes incoming,
  /// what was incoming is dropped (as the kernel does; but what is held stays incoming), the generation advances. All
  /// holders are gone. A crash after it finds the dropped ones still to be swept; open() goes on with that. Until then
  /// append_fds() names their descriptors and the crossed holders', which no view shows. Errors: EBUSY not all are
  /// frozen.
  Result<> cross(Change& change);
  void sweep();  ///< frees what cross dropped, in bounded steps. Called by open(), and after cross.

  /// What became of a file that another system had.
  struct Arrival {
    int fd = -1;         ///< the engine's from now on
    HandlerData data{};  ///< in place of what its handler remembered
    int error = 0;       ///< with fd -1: an errno, given to whoever retrieves the file
    bool gone = false;   ///< with fd -1: there is no such file on this side
    bool later = false;  ///< with fd -1 and an error: nothing arrives now, and all of it is to be tried again
  };
  using Bring = std::function<Arrival(const SessionView& session, const FileView& file)>;
  /// The records come from another system, after freeze_all(): no descriptor in them is one here. Calls `bring` for
  /// each file of a session that crosses, in order, forgets all holders, and then crosses and takes over. In place of
  /// take_over(); nothing but views may be asked before. In transactions of its own: if it is interrupted, the arena is
  /// to be made again from what it came from. Errors: EBUSY not all are frozen; ENOMEM, ENOSPC; that of an Arrival that
  /// is to come later.
  Result<> arrive(const Bring& bring);

  // --- FLBs -----------------------------------------------------------------------------------------
  Result<void*> get_outgoing(const Flb& flb) override;
  void put_outgoing(const Flb& flb) noexcept override;
  Result<void*> get_incoming(const Flb& flb) override;
  void put_incoming(const Flb& flb) noexcept override;
  void for_each_incoming(const Handler& handler,
                         const std::function<void(std::string_view, const KeptFile&)>& visit) const override;
  /// Ends what no file holds any more and the last put has let go of, in a transaction of its own. After each
  /// committed step. O(1) if there is nothing to do.
  void settle_flbs();
  struct FlbView {
    std::string_view name;
    std::uint64_t outgoing_files, incoming_files;
    bool outgoing, incoming;  ///< whether it exists there
  };
  void for_each_flb(const std::function<void(const FlbView&)>& visit) const;

  // --- for the one who owns the descriptor table -----------------------------------------------------
  /// Every descriptor that the sessions and files name.
  void append_fds(std::vector<int>& out) const;
  Result<> check() const;  ///< all invariants, O(n), for tests and `luod --check`

 private:
  friend class Checker;
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace luo
