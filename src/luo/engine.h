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
  void close_later(int fd) { close_.push_back(fd); }
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
};

struct FileView {
  Token token;
  std::string_view handler;
  int fd;
  int retrieve_status;  ///< 0 not tried, 1 given out, negative errno: failed and remembered
  std::uint64_t inode, device;
  HandlerData data;
};

struct FreezeFailure {  ///< who stood in the way
  std::string session;
  Token token;
  std::string handler;
  Error error;
};

class Engine {
 public:
  /// Called before an answer that the existence of another session's holder causes (EEXIST, EBUSY,
  /// EINVAL "retrieved already"): has that holder's descriptor been closed everywhere? If it says
  /// yes, the engine carries the close out inside the same Change and goes on. O(1).
  using IsClosed = std::function<bool(int write_fd)>;

  static constexpr kho::Layout kLayout{"luod", 1};

  /// In a fresh arena (root slot 0 empty) makes the tables, else checks everything that it will rely on
  /// (bounds, links, counts, handler names) and takes over. Errors: EBADMSG damaged, says what and where;
  /// ENOTSUP a file's handler is not registered (names it); ENOMEM; ENOSPC over 64 handlers in one arena's life.
  /// All handlers are registered before.
  static Result<Engine> open(kho::Arena& arena, const HandlerRegistry& handlers, IsClosed is_closed);
  Engine(Engine&&) noexcept;
  ~Engine();

  // --- sessions -------------------------------------------------------------------------------------
  /// Checks in order: name (EINVAL: empty or no NUL in 64), memory (ENOMEM), EEXIST in the outgoing name space.
  /// `raw_name` is the 64 bytes of the uAPI struct.
  Result<SessionId> create_session(Change& change, std::span<const char, 64> raw_name, const Holder& holder,
                                   OwnerInfo owner, std::uint64_t now_ms);
  /// ENOENT none incoming of that name; EINVAL retrieved already.
  Result<SessionId> retrieve_session(Change& change, std::span<const char, 64> raw_name, const Holder& holder,
                                     OwnerInfo owner);
  /// The read end was sent: from now on the session's life is the receiver's.
  void sent(Change& change, SessionId id, Role role) noexcept;  ///< forgets read_fd, closes it after commit
  /// ENOENT no such session. Idempotent.
  Result<> accept(Change& change, SessionId id, Role role);
  /// Last close of a capability. Owner: not accepted: put away (created) or back (retrieved); outgoing:
  /// unpreserve LIFO; retrieved: finish LIFO, then gone; can_finish false: put back, so that the next
  /// owner can retry (differs from the kernel, D8). If a successor holds the session, it lives on as the
  /// successor's. Successor: as abandon_successor.
  void holder_closed(Change& change, SessionId id, Role role);

  std::optional<SessionView> find(SessionId id) const;
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
  std::uint64_t session_count() const noexcept;
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
    int fd = -1;                 ///< becomes the engine's on success; stays the caller's on error
    int client_errno = 0;        ///< != 0: the client could not send it (EBADF)
    const Look* look = nullptr;  ///< of `fd`, if the caller has it already
  };
  /// Order of checks: EINVAL incoming; EBUSY frozen; EEXIST token; ENOMEM; client_errno; EBADF (O_PATH);
  /// ENOENT no handler; EBUSY same file preserved (after IsClosed of its session); the handler's errno.
  /// EINPROGRESS: the handler needs time, nothing changed, ask again when it wakes.
  Result<> preserve(Change& change, SessionId id, const PreserveRequest& request);
  /// EINVAL incoming; EBUSY frozen; ENOENT.
  Result<> unpreserve(Change& change, SessionId id, Token token);
  /// The engine's own descriptor of the file, to be sent, not to be closed. EINVAL outgoing (unless
  /// Role::Successor); ENOENT; the remembered errno of an earlier failure.
  Result<int> retrieve(Change& change, SessionId id, Role role, Token token);
  /// EINVAL outgoing; EBUSY some handler's can_finish (nothing finished). Idempotent.
  Result<> finish(Change& change, SessionId id);
  /// A retrieved session becomes an outgoing one; of a successor (after freeze_one): the handover.
  /// EINVAL neither; EEXIST an outgoing one of that name. The old holder's write end closes with the commit.
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
  /// Freezes all outgoing sessions, FIFO; on failure unfreezes the failing one's FIFO, then the others LIFO.
  /// Uses transactions of its own (its work is O(n), a Change is bounded).
  std::expected<void, FreezeFailure> freeze_all();
  /// After freeze_all, before cross: takes it all back, sessions LIFO.
  void unfreeze_all();
  /// The point of no return of a simulated update, in one bounded transaction: outgoing becomes incoming,
  /// what was incoming is dropped (as the kernel does), the generation advances. All holders are gone.
  /// A crash after it finds the dropped ones still to be swept; open() goes on with that. Until then append_fds()
  /// names their descriptors and the crossed holders', which no view shows. Errors: EBUSY not all are frozen.
  Result<> cross(Change& change);
  void sweep();  ///< frees what cross dropped, in bounded steps. Called by open(), and after cross.

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
