#include "cache/handover.h"

#include <time.h>

#include <unordered_map>
#include <utility>

#include "base/log.h"
#include "cache/listen.h"
#include "cache/recovery.h"
#include "luo/luo.h"

namespace luo::cache {
namespace {

constexpr int kTakeOverMs = 30'000;

Result<Listeners> listen_anew(const Options& options) {
  Listeners listeners;
  listeners.tcp = LUO_TRY_DURING("start serving", listen_tcp(options.bind, options.port));
  if (!options.unix_socket.empty())
    listeners.unix_socket = LUO_TRY_DURING("start serving", listen_unix(options.unix_socket));
  return listeners;
}

// A libluo call that returns a descriptor or 0.
Result<int> checked(int result, std::string_view what) {
  if (result >= 0) return result;
  return std::unexpected(Error{-result, fmt::format("{} ({})", what, luo_last_error())});
}

/// A session while it changes hands: its files as they have been retrieved so far.
class Incoming {
 public:
  Incoming(luo_connection* luod, Fd session) : luod_{luod}, session_{std::move(session)} {}

  /// Retrieves what is in the session and has not been retrieved yet; drops what is no longer there.
  Result<> refresh();
  FdRef peek(std::uint64_t token) const noexcept;
  /// Gives one file out; empty if it is not there.
  Fd take(std::uint64_t token);
  std::unordered_map<std::uint64_t, Fd>& files() noexcept { return files_; }
  const Fd& session() const noexcept { return session_; }
  Fd take_session() noexcept { return std::move(session_); }

 private:
  luo_connection* luod_;
  Fd session_;
  std::unordered_map<std::uint64_t, Fd> files_;
};

Result<> Incoming::refresh() {
  const std::vector<std::uint64_t> tokens = LUO_TRY(tokens_of(luod_, session_.raw()));
  std::vector<std::uint64_t> fresh;
  std::unordered_map<std::uint64_t, Fd> now;
  now.reserve(tokens.size());
  for (const std::uint64_t token : tokens) {
    const auto known = files_.find(token);
    if (known != files_.end()) now.emplace(token, std::move(known->second));
    else fresh.push_back(token);
  }
  files_ = std::move(now);
  if (fresh.empty()) return {};
  std::vector<int> fds(fresh.size(), -1);
  LUO_TRY(checked(luo_retrieve_many(luod_, session_.raw(), fresh.data(), fds.data(), fresh.size()),
                  "retrieve the session's files"));
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    if (fds[i] >= 0) files_.emplace(fresh[i], Fd::adopt(fds[i]));
    else log(Level::Warning, "token {} cannot be retrieved: {}", fresh[i], errno_text(-fds[i]));
  }
  return {};
}

FdRef Incoming::peek(std::uint64_t token) const noexcept {
  const auto found = files_.find(token);
  return found == files_.end() ? FdRef::borrow(-1) : FdRef{found->second};
}

Fd Incoming::take(std::uint64_t token) {
  const auto found = files_.find(token);
  return found == files_.end() ? Fd{} : std::move(found->second);
}

Result<std::unique_ptr<Server>> create(const Options& options, Facts facts, std::unique_ptr<Custodian> custodian,
                                       Fd session) {
  auto store = LUO_TRY(Store::create(options.maxmemory));
  let_cross_kernels(custodian->luod(), session.raw());
  Listeners listeners = LUO_TRY(listen_anew(options));
  LUO_TRY(note_addresses(facts, listeners));
  std::vector<KeptFile> kept{{store->arena().fd().raw, kArenaToken}, {listeners.tcp.raw(), kTcpToken}};
  if (listeners.unix_socket.valid()) kept.push_back({listeners.unix_socket.raw(), kUnixToken});
  for (const KeptFile& file : kept)
    LUO_TRY(
        checked(luo_preserve_fd(custodian->luod(), session.raw(), file.fd, file.token), "preserve the cache's files"));
  auto server = LUO_TRY(
      Server::create({.store = std::move(store), .listeners = std::move(listeners), .facts = std::move(facts)}));
  hold_for_the_next(custodian->luod(), session.raw());
  Custodian& keeper = *custodian;
  LUO_TRY(keeper.start(std::move(session), kept));
  LUO_TRY(server->keep_with(std::move(custodian)));
  keeper.begin();
  return server;
}

// The retrieved files become a server. Until luo_session_renew() has returned, nothing of it is written
// to: if we fail before, the one that served before us goes on.
Result<std::unique_ptr<Server>> restore(const Options& options, Facts facts, std::unique_ptr<Custodian> custodian,
                                        Incoming incoming, std::optional<kho::WarmArena> warm) {
  Fd memfd = incoming.take(kArenaToken);
  const FdRef image = incoming.peek(kImageToken);
  const bool from_image = !memfd.valid();  // if both are there, the arena is the one that is served from
  if (from_image && image.raw < 0)
    return fail(ENOENT, "session '{}' holds no arena of a luo-cache (token {}), nor an image of one (token {})",
                options.session, kArenaToken, kImageToken);
  auto store = LUO_TRY(from_image ? Store::from_image(image) : Store::open(std::move(memfd), std::move(warm)));
  std::vector<KeptFile> kept{{store->arena().fd().raw, kArenaToken}};
  Listeners listeners{.tcp = incoming.take(kTcpToken), .unix_socket = incoming.take(kUnixToken)};
  std::vector<KeptFile> fresh;  // not in the session yet
  std::vector<KeptFile>& tcp_is = listeners.tcp.valid() ? kept : fresh;
  if (!listeners.tcp.valid()) listeners.tcp = LUO_TRY(listen_tcp(options.bind, options.port));
  tcp_is.push_back({listeners.tcp.raw(), kTcpToken});
  std::vector<KeptFile>& unix_is = listeners.unix_socket.valid() ? kept : fresh;
  if (!listeners.unix_socket.valid() && !options.unix_socket.empty())
    listeners.unix_socket = LUO_TRY(listen_unix(options.unix_socket));
  if (listeners.unix_socket.valid()) unix_is.push_back({listeners.unix_socket.raw(), kUnixToken});
  LUO_TRY(note_addresses(facts, listeners));

  Store& data = *store;
  auto server = LUO_TRY(
      Server::create({.store = std::move(store), .listeners = std::move(listeners), .facts = std::move(facts)}));
  // An owner that died instead of stopping may have sent or received what its records do not tell. The data is whole
  // all the same, it changes by transactions.
  const bool stopped = data.counters().quiesced_ns != 0;
  std::vector<ConnectionRecord*> orphans;
  std::size_t without = 0;  // sockets: another kernel has none of ours
  for (ConnectionRecord* record = data.first_connection(); record != nullptr; record = data.next_connection(*record)) {
    const FdRef found = incoming.peek(record->token);
    if (found.raw < 0) {
      ++without;
      orphans.push_back(record);
      continue;
    }
    if (auto whole = stopped ? Result<>{} : catch_up(*record, found); !whole) {
      log(Level::Notice, "closed: {}", whole.error());
      orphans.push_back(record);
      continue;
    }
    Fd socket = incoming.take(record->token);
    kept.push_back({socket.raw(), record->token});
    LUO_TRY(server->adopt(std::move(socket), *record));
  }
  const std::size_t carried = kept.size();
  for (const auto& [token, file] : incoming.files())
    if (file.valid()) kept.push_back({file.raw(), token});  // nobody's any more: it can be given up
  // All that can fail comes before the point of no return.
  Custodian& keeper = *custodian;
  const int session = incoming.session().raw();
  LUO_TRY(keeper.start(incoming.take_session(), kept));
  LUO_TRY(server->keep_with(std::move(custodian)));
  LUO_TRY(checked(luo_session_renew(keeper.luod(), session), "take the session over"));
  let_cross_kernels(keeper.luod(), session);  // if the one before us did not know how
  hold_for_the_next(keeper.luod(), session);
  if (from_image)  // fails: the image is still in the session, for the next attempt
    LUO_TRY(checked(luo_preserve_fd(keeper.luod(), session, data.arena().fd().raw, kArenaToken),
                    "preserve the cache's memory"));
  keeper.begin();

  ++(stopped ? data.counters().generation : data.counters().recoveries);
  for (ConnectionRecord* record : orphans) data.remove_connection(*record);
  if (!orphans.empty())
    log(Level::Notice, "{} connections did not come across, {} of them for want of their sockets", orphans.size(),
        without);
  for (const KeptFile& file : fresh) keeper.preserve(FdRef::borrow(file.fd), file.token);
  for (auto& [token, file] : incoming.files())
    if (file.valid()) keeper.give_up(std::move(file), token);
  log(Level::Notice, "took over session '{}'{}: {} keys, {} files", options.session,
      from_image ? " with an image of the memory" : "", data.table().size(), carried);
  return server;
}

}  // namespace

Result<> note_addresses(Facts& facts, const Listeners& listeners) {
  facts.port = LUO_TRY(port_of(listeners.tcp));
  facts.bind = address_of(listeners.tcp);
  facts.unix_socket = listeners.unix_socket.valid() ? address_of(listeners.unix_socket) : std::string{};
  return {};
}

Result<std::vector<std::uint64_t>> tokens_of(luo_connection* luod, int session) {
  std::vector<std::uint64_t> tokens(256);
  for (;;) {
    const int count =
        LUO_TRY(checked(luo_session_tokens(luod, session, tokens.data(), tokens.size()), "list the session's files"));
    const bool all = static_cast<std::size_t>(count) <= tokens.size();
    tokens.resize(static_cast<std::size_t>(count));
    if (all) return tokens;
  }
}

Result<std::unique_ptr<Server>> start_alone(const Options& options, Facts facts) {
  Listeners listeners = LUO_TRY(listen_anew(options));
  LUO_TRY(note_addresses(facts, listeners));
  return Server::create({.store = LUO_TRY(Store::create(options.maxmemory)),
                         .listeners = std::move(listeners),
                         .facts = std::move(facts)});
}

Result<std::unique_ptr<Server>> start_with_luod(const Options& options, Facts facts, std::atomic<int>* shown) {
  auto custodian = LUO_TRY(Custodian::connect(options.luod, options.session, shown));
  luo_connection* luod = custodian->luod();
  const int retrieved = luo_session_retrieve(luod, options.session.c_str());
  if (retrieved >= 0) {
    Incoming incoming{luod, Fd::adopt(retrieved)};
    LUO_TRY(incoming.refresh());
    std::optional<kho::WarmArena> warm;
    if (luo_is_successor(luod) != 0) {
      // The running one serves while our mapping of its memory fills; only then it is asked to stop.
      if (const FdRef memfd = incoming.peek(kArenaToken); memfd.raw >= 0)
        warm = LUO_TRY(kho::Arena::warm(memfd, kLayout));
      LUO_TRY(checked(luo_session_take_over(luod, retrieved, kTakeOverMs), "wait for the running luo-cache"));
      LUO_TRY(incoming.refresh());  // what has come and gone since
    }
    return restore(options, std::move(facts), std::move(custodian), std::move(incoming), std::move(warm));
  }
  if (luo_is_successor(luod) != 0 || (retrieved != -ENOENT && retrieved != -EINVAL))
    return fail(-retrieved, "retrieve session '{}' ({})", options.session, luo_last_error());
  // EINVAL: it is held, and somebody has it.
  const int created = retrieved == -EINVAL ? -EEXIST : luo_session_create(luod, options.session.c_str());
  if (created == -EEXIST)
    return fail(EEXIST,
                "session '{0}' is another process's. To replace that one: luoctl update service {0} -- luo-cache …; "
                "to run beside it: --session NAME --port PORT",
                options.session);
  LUO_TRY(checked(created, fmt::format("create session '{}'", options.session)));
  return create(options, std::move(facts), std::move(custodian), Fd::adopt(created));
}

}  // namespace luo::cache
