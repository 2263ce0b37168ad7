// What is behind Engine: used by its .cc files only.
#pragma once
#include <array>

#include "luo/engine.h"
#include "luo/identity.h"
#include "luo/lifecycle.h"
#include "luo/list.h"
#include "luo/records.h"
#include "luo/table.h"

namespace luo {

/// Takes the Change back to where it was, unless kept.
class Step {
 public:
  explicit Step(Change& change) noexcept : change_{&change}, mark_{change.mark()} {}
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  ~Step() {
    if (change_ != nullptr) change_->back_to(mark_);
  }
  void keep() noexcept { change_ = nullptr; }

 private:
  Change* change_;
  Change::Mark mark_;
};

constexpr unsigned index(Role role) noexcept { return role == Role::Owner ? 0 : 1; }
inline constexpr HolderRecord kNobody{-1, -1, 0, 0, 0, 0, 0, 0, 0};

/// A session's name for people: what is not printable as \xNN.
std::string shown(std::string_view name);

enum class Side { Outgoing, Incoming, Dropped };
/// What becomes of a session's files.
enum class Ending { Unpreserve, Finish };

struct Engine::Impl {
  Impl(kho::Arena& a, const HandlerRegistry& r, IsClosed c) : arena{a}, registry{r}, is_closed{std::move(c)} {}

  kho::Arena& arena;
  const HandlerRegistry& registry;
  IsClosed is_closed;
  RootRecord* root = nullptr;
  std::vector<Handler*> handlers;  ///< by index in HandlersRecord; nullptr: not registered now

  // --- opening (engine.cc)
  Result<> make_root();
  Result<> read_root(Trust trust);
  Result<> upgrade();  ///< version.cc
  Result<> take_over();
  Result<> name_handlers(kho::Tx& tx);

  // --- records
  template <class T>
  T* at(Ref<T> ref) const noexcept {
    return arena.get(ref);
  }
  Table table(TableRecord& record) const noexcept { return {arena, record}; }
  Identities identities() const noexcept { return {arena, *root}; }
  template <class Key>
  std::uint64_t hash(const Key& key) const noexcept {
    return siphash13(root->key, std::as_bytes(std::span{&key, 1}));
  }
  std::uint64_t hash_name(std::string_view name) const noexcept {
    return siphash13(root->key, std::as_bytes(std::span{name.data(), name.size()}));
  }
  template <class T>
  std::uint64_t hash_place(Ref<T> ref) const noexcept {
    return hash(ref.at);
  }
  std::uint64_t hash_token(const SessionRecord& session, std::uint64_t token) const noexcept {
    return hash(std::array<std::uint64_t, 2>{session.id, token});
  }

  // --- sessions (session_state.cc)
  Side side_of(const SessionRecord& session) const noexcept;
  SideRecord& side(const SessionRecord& session) const noexcept;  ///< not of a dropped one
  SessionState state_of(const SessionRecord& session) const noexcept;
  bool is_dead(const SessionRecord& session) const noexcept;  ///< its files are nobody's any more
  static std::string_view name_of(const SessionRecord& session) noexcept;
  SessionRecord* find(SessionId id) const noexcept;
  Result<SessionRecord*> need(SessionId id, std::string_view what) const;
  SessionRecord* find_name(SideRecord& side, std::string_view name) const noexcept;
  bool holds(const SessionRecord& session, Role role) const noexcept;
  SessionView view(const SessionRecord& session) const;

  void move(kho::Tx& tx, SessionRecord& session, SessionEvent on) noexcept;
  Result<> reserve_holder(kho::Tx& tx) { return table(root->inodes).reserve(tx); }
  void set_holder(Change& change, SessionRecord& session, Role role, const Holder& holder, OwnerInfo owner) noexcept;
  void clear_holder(Change& change, SessionRecord& session, Role role) noexcept;
  /// Carries out the closes that nobody has noticed yet. True: something changed.
  bool close_if_dead(Change& change, Ref<SessionRecord> session);
  void holder_closed(Change& change, SessionRecord& session, Role role);
  void abandon_successor(Change& change, SessionRecord& session);
  void put_back(Change& change, SessionRecord& session) noexcept;
  /// Takes the session and its files away.
  void end(Change& change, SessionRecord& session, Ending ending);

  // --- what few sessions have (options.cc)
  OptionsRecord* options_of(const SessionRecord& session) const noexcept;  ///< nullptr: it is as the kernel's are
  struct Options {
    Hold hold = Hold::Off;
    OwnerEvent event = OwnerEvent::None;
    std::uint16_t carry = 0;
    std::string held_for;
  };
  Options get_options(const SessionRecord& session) const;
  Result<> set_options(kho::Tx& tx, SessionRecord& session, const Options& wanted);
  void set_event(kho::Tx& tx, SessionRecord& session, OwnerEvent event) noexcept;  ///< of what has options
  void drop_options(kho::Tx& tx, SessionRecord& session) noexcept;
  Hold hold_of(const SessionRecord& session) const noexcept;
  OwnerEvent event_of(const SessionRecord& session) const noexcept;
  /// Nobody has it any more; it stays for the next owner.
  void let_go(Change& change, SessionRecord& session) noexcept;
  /// Whether held sessions that were incoming can stay when all others cross.
  std::optional<FreezeFailure> in_the_way_of_held() const;

  // --- FLBs (flbs.cc)
  struct FlbObject {  ///< this process's view of one side
    void* object = nullptr;
    bool attached = false;  ///< `object` is what the FLB gave, even if that was nothing
    std::uint64_t gets = 0;
    std::uint64_t data = 0;  ///< of `attached`
    int error = 0;           ///< of retrieve()
  };
  enum class FlbSide { Outgoing, Incoming, Dropped };
  std::vector<Flb*> flbs;  ///< by index in FlbsRecord; nullptr: not registered now
  std::vector<std::array<FlbObject, 2>> objects;
  bool flbs_due = false;  ///< a put, or an abandoned step, has left something to settle_flbs()
  FlbsRecord* flb_records() const noexcept { return root->magic == kRootMagic1 ? nullptr : at(root->flbs); }
  static FlbSideRecord& flb_side(FlbRecord& record, FlbSide side) noexcept {
    return side == FlbSide::Outgoing ? record.outgoing : side == FlbSide::Incoming ? record.incoming : record.dropped;
  }
  std::uint64_t held_by(std::uint32_t handler) const noexcept {  ///< FLBs, by index in FlbsRecord
    const FlbsRecord* records = flb_records();
    return records != nullptr ? records->held[handler] : 0;
  }
  std::uint64_t tied_to(const Handler& handler) const noexcept;  ///< those that a new file of it will hold
  Result<> read_flbs();
  Result<> name_flbs(kho::Tx& tx);
  Result<std::uint64_t> take_flbs(kho::Tx& tx, std::uint64_t which);  ///< → those that began with it
  Result<bool> take_flb(kho::Tx& tx, std::size_t i, std::uint64_t files);
  void undo_flbs(std::uint64_t begun) noexcept;
  /// Files give up what they hold, one after the other; what changes is logged once, however many they are.
  class FlbRelease {
   public:
    FlbRelease(Impl& impl, kho::Tx& tx, FlbSide side);
    ~FlbRelease();
    void file(const FileRecord& file) noexcept;

   private:
    Impl& impl_;
    kho::Tx& tx_;
    FlbSide side_;
    std::vector<std::uint64_t> gone_;
  };
  /// A renewed session's files hold what is outgoing, not any more what came in.
  Result<> renew_flbs(kho::Tx& tx, const SessionRecord& session);
  void attach_incoming(std::size_t i, FlbSide side) noexcept;
  void end_flb(kho::Tx& tx, std::size_t i, FlbSide side) noexcept;
  void cross_flbs(kho::Tx& tx) noexcept;
  std::optional<std::size_t> index_of(const Flb& flb) const noexcept;

  // --- what few files have (relations.cc)
  RelationRecord* relation_of(Ref<FileRecord> file) const noexcept;
  Result<> relate(kho::Tx& tx, const SessionRecord& session, Ref<FileRecord> file,
                  std::span<const std::uint64_t> after);
  void unrelate(kho::Tx& tx, Ref<FileRecord> file) noexcept;

  // --- what is asked of sessions (sessions.cc)
  using InTheWay = Ref<SessionRecord>;
  Result<SessionId> create(Change& change, std::string_view name, const Holder& holder, OwnerInfo owner,
                           std::uint64_t now_ms, InTheWay& in_the_way);
  Result<SessionId> retrieve_session(Change& change, std::string_view name, const Holder& holder, OwnerInfo owner,
                                     InTheWay& in_the_way);
  Result<> renew(Change& change, SessionRecord& session, InTheWay& in_the_way);
  void take_over_session(Change& change, SessionRecord& session) noexcept;
  Result<> add_successor(Change& change, SessionRecord& session, const Holder& holder, OwnerInfo owner,
                         InTheWay& in_the_way);

  /// A negative answer that another session's holder causes is given only after asking whether that
  /// holder still lives; if not, it is closed first and everything is tried once more.
  template <class Try>
  auto despite_the_dead(Change& change, Try&& attempt) {
    InTheWay in_the_way;
    auto result = attempt(in_the_way);
    if (result || !in_the_way || !close_if_dead(change, in_the_way)) return result;
    in_the_way = {};
    return attempt(in_the_way);
  }

  // --- files (files.cc)
  Handler& handler_of(const FileRecord& file) const noexcept { return *handlers[file.handler]; }
  static KeptFile kept(const FileRecord& file) noexcept { return {file.fd, Token{file.token}, file.data}; }
  FileRecord* find_file(const SessionRecord& session, std::uint64_t token) const noexcept {
    return find_file(session, token, hash_token(session, token));
  }
  FileRecord* find_file(const SessionRecord& session, std::uint64_t token, std::uint64_t hash) const noexcept;
  std::uint64_t status_key(const SessionRecord& session) const noexcept;
  int status(const SessionRecord& session, const FileRecord& file) const noexcept;
  Result<> preserve(Change& change, SessionRecord& session, const PreserveRequest& request, InTheWay& in_the_way);
  Result<std::uint32_t> index_of(const Handler& handler) const;
  std::optional<Token> unfinishable(const SessionRecord& session) const noexcept;
  void call_ending(kho::Tx& tx, const SessionRecord& session, Ending ending) noexcept;
  /// Frees the records of the files, at once or, if they are many, in steps after the commit.
  void bury_files(Change& change, SessionRecord& session) noexcept;
  /// Takes at most `limit` files out, LIFO, and closes their descriptors with the commit.
  void remove_files(Change& change, SessionRecord& session, std::uint64_t limit) noexcept;
  void remove_file(Change& change, FileRecord& file) noexcept;

  // --- arrival (arrival.cc)
  Result<> forget_identities();
  Result<> forget_holders();
  Result<> bring_files(SessionRecord& session, const Bring& bring);
  Result<> bring_file(Change& change, SessionRecord& session, FileRecord& file, const Arrival& arrival);

  // --- updates (updates.cc)
  std::optional<FreezeFailure> freeze(Change& change, SessionRecord& session);
  void unfreeze(SessionRecord& session, Ref<FileRecord> until) noexcept;  ///< FIFO, up to but not including `until`
  void cancel(Change& change, SessionRecord& session) noexcept;
  void sweep();
  bool sweep_doomed();
  bool sweep_dropped();
  bool keep_held(SessionRecord& session);
  bool sweep_holders();
};

}  // namespace luo
