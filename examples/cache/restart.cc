// start_again(): the descriptor table of a dead server, sorted.
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <unordered_map>
#include <unordered_set>

#include "base/log.h"
#include "cache/handover.h"
#include "cache/listen.h"
#include "cache/recovery.h"
#include "luo/tcp.h"

namespace luo::cache {
namespace {

/// The numbers in our table that nobody has claimed yet. Whatever is left at the end is closed.
class Leftovers {
 public:
  explicit Leftovers(const std::vector<int>& numbers) : numbers_{numbers.begin(), numbers.end()} {}
  ~Leftovers() {
    for (const int number : numbers_) close_number(number);
  }
  Leftovers(const Leftovers&) = delete;
  Leftovers& operator=(const Leftovers&) = delete;

  void leave(int number) { numbers_.erase(number); }
  Fd take(int number) { return numbers_.erase(number) != 0 ? Fd::adopt(number) : Fd{}; }
  std::vector<int> numbers() const { return {numbers_.begin(), numbers_.end()}; }

 private:
  std::unordered_set<int> numbers_;
};

/// Accepted from our listener, and then its server died before it had a record: nothing has come or gone.
bool is_untouched(FdRef socket, int port) {
  const auto local = port_of(socket);
  luo_tcp_position is{};
  return local && *local == port && luo_tcp_get_position(socket.raw, LUO_TCP_ACCEPTED, &is) == 0 && is.received == 0 &&
         is.sent == 0;
}

/// The session as it is, or as much of it as there is.
struct Kept {
  std::unique_ptr<Custodian> custodian;
  Fd session;
  std::vector<std::uint64_t> tokens;
};

Result<Kept> find_session(const Options& options, Heritage& heritage, Fd session) {
  if (session.valid()) {
    auto custodian = Custodian::connect(options.luod, options.session, &heritage.session);
    auto tokens = custodian ? tokens_of((*custodian)->luod(), session.raw())
                            : Result<std::vector<std::uint64_t>>{std::unexpected(custodian.error())};
    if (tokens) return Kept{*std::move(custodian), std::move(session), *std::move(tokens)};
    log(Level::Warning, "serving on without luod for now: {}", tokens.error());
  }
  heritage.session = -1;
  return Kept{LUO_TRY(Custodian::unconnected(options.luod, options.session, &heritage.session)), {}, {}};
}

}  // namespace

Result<std::unique_ptr<Server>> start_again(const Options& options, Facts facts, Heritage& heritage,
                                            const std::vector<int>& inherited) {
  ::unsetenv("LUO_TICKET");  // was for the first one
  Leftovers left{LUO_TRY(open_descriptors())};
  auto store = LUO_TRY(Store::open(left.take(heritage.arena)));
  Listeners listeners{.tcp = left.take(heritage.tcp), .unix_socket = left.take(heritage.unix_socket)};
  Fd session = left.take(heritage.session);
  LUO_TRY(note_addresses(facts, listeners));
  const int port = facts.port;
  std::unordered_map<std::uint64_t, int> files{{kArenaToken, store->arena().fd().raw},
                                               {kTcpToken, listeners.tcp.raw()}};
  if (listeners.unix_socket.valid()) files.emplace(kUnixToken, listeners.unix_socket.raw());
  Store& data = *store;
  auto server = LUO_TRY(
      Server::create({.store = std::move(store), .listeners = std::move(listeners), .facts = std::move(facts)}));

  std::unordered_map<std::uint64_t, int> sockets;  // by cookie
  for (const int number : left.numbers())
    if (const std::uint64_t cookie = cookie_of(FdRef::borrow(number)); cookie != 0) sockets.emplace(cookie, number);
  std::vector<ConnectionRecord*> orphans;
  for (ConnectionRecord* record = data.first_connection(); record != nullptr; record = data.next_connection(*record)) {
    const auto found = sockets.find(record->cookie);
    if (found == sockets.end()) {
      orphans.push_back(record);
      continue;
    }
    Fd socket = left.take(found->second);
    if (auto whole = catch_up(*record, socket); !whole) {
      log(Level::Notice, "closed: {}", whole.error());
      ::shutdown(socket.raw(), SHUT_RDWR);  // luod may hold it as well
      orphans.push_back(record);
      continue;
    }
    files.emplace(record->token, socket.raw());
    LUO_TRY(server->adopt(std::move(socket), *record));
  }
  for (ConnectionRecord* record : orphans) data.remove_connection(*record);
  std::vector<Fd> fresh;
  for (const int number : left.numbers()) {
    if (std::ranges::find(inherited, number) != inherited.end() && number != heritage.spare) left.leave(number);
    else if (is_untouched(FdRef::borrow(number), port)) fresh.push_back(left.take(number));
  }

  ++data.counters().recoveries;
  if (options.use_luod) {
    Kept kept = LUO_TRY(find_session(options, heritage, std::move(session)));
    std::vector<KeptFile> known;
    for (const std::uint64_t token : kept.tokens) known.push_back({files.contains(token) ? files[token] : -1, token});
    Custodian& keeper = *kept.custodian;
    LUO_TRY(keeper.start(std::move(kept.session), known));
    LUO_TRY(server->keep_with(std::move(kept.custodian)));
    keeper.begin();
    for (const KeptFile& file : known)
      if (file.fd < 0) keeper.give_up(Fd{}, file.token);
    const std::unordered_set<std::uint64_t> there{kept.tokens.begin(), kept.tokens.end()};
    for (const auto& [token, number] : files)
      if (!there.contains(token)) keeper.preserve(FdRef::borrow(number), token);
  }
  for (Fd& socket : fresh) server->welcome(std::move(socket));
  log(Level::Notice, "went on after a crash: {} keys, {} connections", data.table().size(), server->facts().clients);
  return server;
}

}  // namespace luo::cache
