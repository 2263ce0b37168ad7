// The worker's server: connections, requests, holders of sessions, updates. One thread, one event loop.
//
// A request is peeked, executed and answered in one transaction, the answer is sent, and only then is the
// request consumed. Killed in between, the next worker finds it still queued: a committed nonce is
// answered again, anything else is executed for the first time.
//
// A request that has to wait (for a session to appear, for an owner to get ready) is *parked*: it stays
// in its queue, nothing is remembered of it, and it is executed again from the start when something
// has changed. So waiting survives a crash without any state of its own.
#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "daemon/control.h"
#include "daemon/holder_watch.h"
#include "daemon/keeper.h"
#include "daemon/loop.h"
#include "daemon/own_objects.h"
#include "daemon/probe.h"
#include "daemon/state.h"
#include "handlers/carried.h"
#include "handlers/handlers.h"
#include "luo/engine.h"
#include "medium/kernel.h"
#include "sys/packet_socket.h"
#include "sys/pipe.h"
#include "wire/message.h"

namespace luo::daemon {

/// What a command left to be done with its request.
enum class Next {
  Answer,  ///< commit, send, consume
  Park,    ///< leave it queued; it is executed again when something has changed
};

/// The message under work.
struct Request {
  PeerRec& peer;
  wire::Header header;
  std::span<const std::byte> payload;
  std::vector<Fd>& fds;
  std::uint64_t parked_until_ns;  ///< when it was first parked + its timeout; 0: this is the first time
  bool stepped = false;           ///< the command has committed a step of its own and is to be parked
};

/// A peer that does not read, or a kernel that has no memory for a message right now.
constexpr bool is_for_later(int code) noexcept {
  return code == EAGAIN || code == ENOBUFS || code == ENOMEM || code == ETOOMANYREFS;
}

/// What goes back. Descriptors are borrowed (the engine's, or a session's read end) unless `owned`.
struct Reply {
  std::uint64_t session = 0;
  std::vector<std::byte> body;
  std::vector<int> fds;
  bool owned = false;
  std::optional<Error> error;  ///< the answer is this error, but the change is committed with it
  SessionId hand_session{};
  Role hand_role = Role::Owner;

  template <class T>
  void put(const T& value) {
    const auto bytes = std::as_bytes(std::span{&value, 1});
    body.insert(body.end(), bytes.begin(), bytes.end());
  }
};

class Server {
 public:
  Server(Control& control, kho::Arena arena, std::unique_ptr<HandlerSet> handlers, WorkerMain worker_main);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Populate: takes over what is in the arena. After an error nothing has been changed there.
  Result<> restore(WorkerKind kind);
  /// After an error: files were asked for that came from the kernel before.
  bool has_begun_to_arrive() const noexcept { return kernel_ && kernel_->arriving(); }
  /// Serves until luod stops; returns the exit status.
  int run();

 private:
  // server.cc: start, loop, keeper
  Result<> close_unnamed();
  std::int64_t strays(std::uint64_t preserved) const;
  std::int64_t lost_files() const;
  Result<> build_loop();
  void on_keeper_died();
  void watch_keeper();
  void notify_ready();

  // connections.cc
  struct Peer {  ///< what is not in the arena: how a connection is watched
    std::uint64_t id = 0;
    Source io;
    bool blocked = false;  ///< the peer does not read: an answer or events wait
    bool parked = false;
    std::uint64_t parked_nonce = 0, parked_until_ns = 0;
    std::vector<std::vector<std::byte>> events;  ///< to be sent when it reads again
  };
  void on_accept();
  Result<> take_in(Fd& connection);
  void accept_later(const Error& why);
  Result<> adopt_connection(int fd);
  Result<> watch_peer(PeerRec& peer);
  void on_peer(std::uint64_t id, std::uint32_t revents);
  void wait_to_send(Peer& peer, int code);  ///< after an error that is_for_later
  void wait_for_memory(Peer& peer);         ///< its request cannot be received at the moment
  bool retry_soon(int code);
  void retry();
  void settle_answers();
  void drop_peer(std::uint64_t id, std::string_view why);

  // holders.cc
  std::uint64_t expect_holders();
  void watch_soon();
  bool watch_some_holders(std::size_t count);  ///< false: some cannot be watched now; will be tried again
  void rest_holders();
  bool reap_closed();  ///< whether it gave anything back
  void on_holder_closed(int write_fd);
  /// After the commit: grants (but not of the one who has it now), updates, waiting requests.
  void holder_is_gone(SessionId session, Role role, std::uint64_t has_it_now = 0);
  void settle_closed();

  // requests.cc: one request
  void serve(Peer& peer, PeerRec& record);
  void answer(Peer& peer, PeerRec& record, const Request& request, Change& change, Reply& reply, const Error* error);
  bool send_answer(Peer& peer, PeerRec& record);  ///< false: blocked or dropped
  void park(Peer& peer, Request& request);
  void wake_parked();
  void no_longer_pending(std::uint64_t peer, std::uint64_t nonce);  ///< nonce 0: any
  bool has_begun(const PeerRec& peer, const wire::Header& header) const;
  Result<Next> dispatch(Request& request, Reply& reply, Change& change);
  Result<Next> hello(Request& request, Reply& reply, Change& change);

  // session_requests.cc
  struct Handle {
    SessionId id;
    Role role;
    SessionView session;
  };
  Result<Handle> handle_of(const Request& request) const;
  Result<Next> create_session(Request& request, Reply& reply, Change& change);
  Result<Next> retrieve_session(Request& request, Reply& reply, Change& change);
  Result<Next> retrieve_wait(Request& request, Reply& reply, Change& change);
  Result<Next> take_incoming(Request& request, Reply& reply, Change& change, std::span<const char, 64> name);
  Result<Next> hand_out(Request& request, Reply& reply, Change& change, SessionId id, Role role,
                        const struct HandedPipe& pipe);
  Result<Next> accept_session(Request& request, Reply& reply, Change& change);
  Result<Next> present(Request& request, Reply& reply, Change& change);
  Result<Next> get_name(Request& request, Reply& reply, Change& change);
  Result<Next> finish(Request& request, Reply& reply, Change& change);
  Result<Next> renew(Request& request, Reply& reply, Change& change);

  // option_requests.cc
  Result<> may_get_back(const SessionView& session, const PeerRec& peer) const;
  Result<Next> hold(Request& request, Reply& reply, Change& change);
  Result<Next> drop(Request& request, Reply& reply, Change& change);
  Result<Next> set_option(Request& request, Reply& reply, Change& change);
  Result<Next> set_event(Request& request, Reply& reply, Change& change);
  Result<Next> get_state(Request& request, Reply& reply, Change& change);

  // file_requests.cc
  Result<Next> preserve(Request& request, Reply& reply, Change& change);
  Result<Next> preserve_after(Request& request, Reply& reply, Change& change);
  Result<Next> preserve_many(Request& request, Reply& reply, Change& change);
  Result<Next> unpreserve(Request& request, Reply& reply, Change& change);
  Result<Next> retrieve(Request& request, Reply& reply, Change& change);
  Result<Next> retrieve_many(Request& request, Reply& reply, Change& change);
  Result<Next> list_tokens(Request& request, Reply& reply, Change& change);

  // update_requests.cc: barrier and deadlines
  Result<> may_administer(const Request& request) const;
  Result<Next> subscribe(Request& request, Reply& reply, Change& change);
  Result<Next> prepared(Request& request, Reply& reply, Change& change);
  Result<Next> update_wait(Request& request, Reply& reply, Change& change);
  Result<Next> update_cancel(Request& request, Reply& reply, Change& change);
  Result<Next> stop(Request& request, Reply& reply, Change& change);
  bool concerns(const UpdateRec& update, const PeerRec& peer) const;  ///< is it told to prepare?
  bool all_ready(const UpdateRec& update) const;
  void fail_update(Change& change, UpdateRec& update, const Error& error);
  void tell_prepare(const UpdateRec& update, std::uint64_t only_peer = 0);
  void tell_outcomes();
  /// false: queued, because the peer does not read
  bool send_event(std::uint64_t peer, wire::Event event, std::span<const std::byte> body, std::uint64_t session);
  void events_drained();
  void recheck_preparing();
  void unfreeze_leftovers();
  void after_commit();  ///< what a committed change makes due: events, wake-ups, the crossing
  void update_lost_peer(std::uint64_t peer);
  void update_lost_holder(SessionId session, Role role);
  void drop_stale_grants();
  void arm_deadlines();
  void add_deadline_source(std::uint64_t at_us);
  void on_deadline();
  static std::string update_report(const UpdateRec& update);
  static std::string kernel_update_report(const UpdateRec& update);

  // service_update.cc, simulated_update.cc, luod_update.cc
  Result<Next> update_service(Request& request, Reply& reply, Change& change);
  Result<Next> take_over(Request& request, Reply& reply, Change& change);
  void quiesce(Change& change, UpdateRec& update);
  void complete_handover(Change& change, UpdateRec& update, const SessionView& before);
  Result<Next> update_simulated(Request& request, Reply& reply, Change& change);
  Next begin_crossing(Request& request, Change& change, UpdateRec& update, std::uint32_t timeout_ms);
  void cross_everything(UpdateRec& update);
  // kernel_update.cc, kernel_arrival.cc, preflight.cc
  Result<> open_medium();
  void wait_for_copies();
  Result<> arrive();
  void end_arrival();
  handlers::CarriedHandler* carried(std::string_view handler) const;
  bool crosses_kernels(const SessionView& session) const;
  void settle_medium();
  Result<Next> update_kernel(Request& request, Reply& reply, Change& change);
  void cross_kernel(UpdateRec& update);
  Result<> expect_room_for_files() const;
  Result<> leave_kernel(UpdateRec& update);
  bool is_kernel_update_running() const;
  Result<> place_late_files(UpdateRec& update);
  static std::uint64_t available_memory();                   ///< of the machine, in bytes; 0: not known
  static std::uint64_t holes_to_fill(const FileView& file);  ///< bytes, if it is given to the kernel
  void displace_late_files();
  Result<> write_state(FdRef image) const;
  Result<> ask_systemd(UpdateRec& update);
  bool still_leaving(UpdateRec& update);
  struct Check {
    std::string name, level, text, fix;
  };
  std::vector<Check> preflight_checks(std::uint32_t flags) const;
  std::string preflight_json() const;
  Result<Next> update_luod(Request& request, Reply& reply, Change& change);
  struct TrialParts {
    Fd image, words;
    Pipe report;
    Fd keeper;  ///< pidfd
  };
  [[noreturn]] void begin_trial(TrialParts parts, const PeerRec& requester, std::uint64_t nonce,
                                std::uint32_t timeout_ms, const std::string& to_version);
  Result<> start_probe(Request& request, std::uint32_t timeout_ms);
  void settle_trial();

  // query.cc
  Result<Next> inspect(Request& request, Reply& reply, Change& change);
  Result<Next> query(Request& request, Reply& reply, Change& change);
  std::string status_json() const;
  std::string list_json() const;
  Result<std::string> show_json(std::string_view name) const;
  std::string files_json(std::string_view handler) const;
  /// How something went that has happened: without a descriptor for it the answer goes without.
  void attach_report(Reply& reply, std::string_view text);
  Result<> attach_text(Reply& reply, std::string_view text);  ///< as a sealed memfd that the answer owns

  friend struct Callbacks;

  Control& control_;
  WorkerMain worker_main_;
  kho::Arena arena_;
  std::unique_ptr<HandlerSet> handler_set_;
  std::unique_ptr<OwnObjects> own_objects_;
  HandlerRegistry registry_;
  std::optional<medium::LuoDevice> device_;  ///< with kernel_ and carried_: the kernel medium, else none
  std::optional<medium::Kernel> kernel_;
  std::vector<std::unique_ptr<handlers::CarriedHandler>> carried_;
  std::optional<Engine> engine_;
  std::optional<State> state_;
  std::optional<HolderWatch> holders_;
  /// Sessions with a request that a handler works on (EINPROGRESS): {peer, nonce}. Others that want the session
  /// wait in their own queues, so that requests on a session take effect in order.
  std::unordered_map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> pending_;
  bool copies_gone_ = false;            ///< wait_for_copies() has seen the guard's end
  Fd not_taken_in_;                     ///< accepted, but there was no memory, or no watch, for it
  Fd wake_fd_;                          ///< eventfd: a handler, perhaps in a thread of its own, has something
  std::vector<int> closed_on_the_way_;  ///< write ends whose close an operation carried out (IsClosed)
  Loop loop_;
  Source accept_source_, accept_retry_, retry_, holder_source_, holder_retry_, watch_source_, watch_retry_,
      wake_source_, timer_keeper_, keeper_source_, term_source_, int_source_, deadline_source_, probe_source_;
  bool outcomes_due_ = false;        ///< an update has ended, or has moved on
  bool recheck_due_ = false;         ///< who is concerned by an update has changed
  bool unfreeze_due_ = false;        ///< a crossing is off
  std::vector<std::uint64_t> told_;  ///< updates whose outcome is queued for somebody, so not yet recorded as told
  std::uint64_t cross_due_ = 0;      ///< everybody is ready for this update
  std::unordered_map<std::uint64_t, Peer> peers_;
  std::unique_ptr<Probe> probe_;
  std::uint64_t probe_peer_ = 0, probe_nonce_ = 0;
  std::uint64_t requests_ = 0;
  std::uint64_t served_since_ns_ = 0;
  Received received_;
  std::vector<std::byte> buffer_;
};

}  // namespace luo::daemon
