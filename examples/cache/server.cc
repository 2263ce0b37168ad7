#include "cache/server.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>

#include "base/log.h"
#include "cache/listen.h"

namespace luo::cache {
namespace {

constexpr std::int64_t kTickMs = 100;
constexpr unsigned kTicksPerTrim = 10;
constexpr std::size_t kSweptBuckets = 20'000;  // per tick; about a millisecond
constexpr std::size_t kBuriedEntries = 500;    // per round
constexpr int kAcceptsPerRound = 128;

std::int64_t now_ms() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

std::uint64_t monotonic_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t unix_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

/// Tells this boot of the machine from every other; 0: not known.
std::uint64_t this_boot() noexcept {
  char text[37] = {};
  const Fd file = Fd::adopt(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  if (!file.valid() || ::read(file.raw(), text, sizeof text) < 18) return 0;
  std::uint64_t id = 0;  // of the form 01234567-89ab-...: 16 digits are enough
  for (const char c : std::string_view{text, 18})
    if (c != '-') id = id << 4 | static_cast<std::uint64_t>(c <= '9' ? c - '0' : c - 'a' + 10);
  return id;
}

/// From when the owner before us stopped until now. The monotonic clock begins anew with each boot.
std::uint64_t pause_us(const Counters& counters) noexcept {
  if (counters.quiesced_boot == 0 || counters.quiesced_boot == this_boot())
    return (monotonic_ns() - counters.quiesced_ns) / 1000;
  const std::uint64_t now = unix_ns();
  return now < counters.quiesced_unix_ns ? 0 : (now - counters.quiesced_unix_ns) / 1000;
}

}  // namespace

Server::Server(Parts parts)
    : store_{std::move(parts.store)},
      listeners_{std::move(parts.listeners)},
      facts_{std::move(parts.facts)},
      limits_{ConnectionLimits::within(facts_.maxmemory)},
      interpreter_{store_->arena(), store_->table(), store_->counters(), facts_} {
  facts_.started_ms = last_tick_ms_ = now_ms_ = now_ms();
}

Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::create(Parts parts) {
  std::unique_ptr<Server> server{new Server{std::move(parts)}};
  server->epoll_ = Fd::adopt(::epoll_create1(EPOLL_CLOEXEC));
  if (!server->epoll_.valid()) return sys_fail("epoll_create1");
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  server->signals_ = Fd::adopt(::signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!server->signals_.valid()) return sys_fail("signalfd");
  LUO_TRY(server->watch(server->signals_, &server->signals_, EPOLLIN, EPOLL_CTL_ADD));
  for (Fd* listener : {&server->listeners_.tcp, &server->listeners_.unix_socket})
    if (listener->valid()) LUO_TRY(server->watch(*listener, listener, EPOLLIN, EPOLL_CTL_ADD));
  return server;
}

Result<> Server::watch(FdRef file, void* tag, std::uint32_t events, int operation) {
  epoll_event event{.events = events, .data = {.ptr = tag}};
  if (::epoll_ctl(epoll_.raw(), operation, file.raw, &event) == 0) return {};
  return sys_fail("epoll_ctl(operation {}, fd {})", operation, file.raw);
}

Result<> Server::adopt(Fd socket, ConnectionRecord& record) {
  auto connection = std::make_unique<Connection>(std::move(socket), record, limits_);
  connection->watched = EPOLLIN;
  LUO_TRY(watch(connection->socket(), connection.get(), EPOLLIN, EPOLL_CTL_ADD));
  connections_.emplace(record.token, std::move(connection));
  facts_.clients = connections_.size();
  return {};
}

Result<> Server::keep_with(std::unique_ptr<Custodian> custodian) {
  custodian_ = std::move(custodian);
  facts_.luod_connected = custodian_ != nullptr && custodian_->luod() != nullptr;
  if (custodian_ == nullptr) return {};
  return watch(custodian_->wakeup(), custodian_.get(), EPOLLIN, EPOLL_CTL_ADD);
}

Result<Server::Ending> Server::run() {
  if (Counters& counters = store_->counters(); counters.quiesced_ns != 0) {
    counters.last_pause_us = pause_us(counters);
    counters.quiesced_ns = 0;
  }
  now_ms_ = now_ms();
  work_on_all();
  std::array<epoll_event, 512> events;
  while (!ending_) {
    if (quiesced_) {
      LUO_TRY(wait_quiesced());
      continue;
    }
    const int n = ::epoll_wait(epoll_.raw(), events.data(), static_cast<int>(events.size()), poll_timeout_ms());
    if (n < 0 && errno != EINTR) return sys_fail("epoll_wait");
    now_ms_ = now_ms();
    bool notified = false;  // looked at last: an update stops everything else
    for (int i = 0; i < n; ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      if (event.data.ptr == &listeners_.tcp || event.data.ptr == &listeners_.unix_socket) {
        accept_from(*static_cast<Fd*>(event.data.ptr));
      } else if (event.data.ptr == &signals_) {
        ending_ = Ending::Stopped;
      } else if (event.data.ptr == custodian_.get()) {
        notified = true;
      } else {
        serve(*static_cast<Connection*>(event.data.ptr), event.events);
      }
    }
    gone_.clear();
    on_tick();
    if (notified) on_notices();
  }
  if (*ending_ == Ending::Stopped) {
    for (auto& [token, connection] : connections_) ::shutdown(connection->socket().raw, SHUT_RDWR);
    // Stopped because the kernel is being replaced: the session is on its way to the next luo-cache.
    if (custodian_ != nullptr && !image_.valid()) custodian_->let_go();
  }
  return *ending_;
}

// Nothing is received, executed or sent until the update has ended one way or the other.
Result<> Server::wait_quiesced() {
  std::array<pollfd, 2> files{{{custodian_->wakeup().raw, POLLIN, 0}, {signals_.raw(), POLLIN, 0}}};
  if (::poll(files.data(), files.size(), -1) < 0 && errno != EINTR) return sys_fail("poll");
  if (files[1].revents != 0) ending_ = Ending::Stopped;
  if (files[0].revents != 0) on_notices();
  return {};
}

int Server::poll_timeout_ms() const noexcept { return store_->table().has_dead() ? 0 : static_cast<int>(kTickMs); }

void Server::serve(Connection& connection, std::uint32_t events) {
  if (connection.socket().raw < 0) return;  // dropped earlier in this round
  auto state = Connection::State::Open;
  if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0 && (connection.watched & EPOLLIN) != 0)
    state = connection.receive(*store_);
  else if ((events & (EPOLLERR | EPOLLHUP)) != 0) state = Connection::State::Closed;
  if (state == Connection::State::Open) state = connection.work(*store_, interpreter_, now_ms_);
  after_work(connection, state);
}

void Server::after_work(Connection& connection, Connection::State state) {
  if (state == Connection::State::Closed) {
    drop(connection);
  } else {
    rewatch(connection);
  }
}

void Server::rewatch(Connection& connection) {
  const std::uint32_t wanted = (connection.wants_to_receive() ? std::uint32_t{EPOLLIN} : 0U) |
                               (connection.wants_to_send() ? std::uint32_t{EPOLLOUT} : 0U);
  if (wanted == connection.watched) return;
  connection.watched = wanted;
  if (auto watched = watch(connection.socket(), &connection, wanted, EPOLL_CTL_MOD); !watched) drop(connection);
}

void Server::accept_from(FdRef listener) {
  for (int i = 0; i < kAcceptsPerRound; ++i) {
    Fd socket = Fd::adopt(::accept4(listener.raw, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket.valid()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        log(Level::Warning, "accept with {} connections: {}; trying again", connections_.size(), errno_text(errno));
        pause_accepting(true);
      }
      return;
    }
    welcome(std::move(socket));
  }
}

void Server::welcome(Fd socket) {
  const int one = 1;
  ::setsockopt(socket.raw(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  // fails on a Unix socket, harmlessly
  auto record = store_->add_connection(cookie_of(socket));
  if (!record) return log(Level::Warning, "refused a connection: {}", record.error());
  const int raw = socket.raw();
  if (auto adopted = adopt(std::move(socket), **record); !adopted) {
    log(Level::Warning, "refused a connection: {}", adopted.error());
    return store_->remove_connection(**record);
  }
  if (custodian_ != nullptr) custodian_->preserve(FdRef::borrow(raw), (*record)->token);
}

// Out of descriptors or memory: the listeners would stay readable, so they are left alone for a tick.
void Server::pause_accepting(bool pause) {
  if (accepting_ != pause) return;
  accepting_ = !pause;
  for (Fd* listener : {&listeners_.tcp, &listeners_.unix_socket}) {
    if (!listener->valid()) continue;
    if (auto changed = watch(*listener, listener, pause ? 0U : std::uint32_t{EPOLLIN}, EPOLL_CTL_MOD); !changed)
      log(Level::Error, "{}", changed.error());
  }
}

void Server::drop(Connection& connection) {
  const std::uint64_t token = connection.token();
  Fd socket = connection.take_socket();
  ::epoll_ctl(epoll_.raw(), EPOLL_CTL_DEL, socket.raw(), nullptr);
  // luod holds the socket too: without this the peer would not see the end before luod lets go of it.
  ::shutdown(socket.raw(), SHUT_RDWR);
  store_->remove_connection(connection.record());
  if (custodian_ != nullptr) custodian_->give_up(std::move(socket), token);
  const auto found = connections_.find(token);
  gone_.push_back(std::move(found->second));
  connections_.erase(found);
  facts_.clients = connections_.size();
}

void Server::on_tick() {
  if (store_->table().has_dead()) {
    kho::Tx tx{store_->arena()};
    store_->table().bury(tx, kBuriedEntries);
    tx.commit();
  }
  if (now_ms_ - last_tick_ms_ < kTickMs && now_ms_ >= last_tick_ms_) return;
  last_tick_ms_ = now_ms_;
  pause_accepting(false);
  if (store_->table().expiring() > 0) {
    kho::Tx tx{store_->arena()};
    store_->counters().expired += store_->table().sweep(tx, now_ms_, kSweptBuckets);
    tx.commit();
  }
  if (++ticks_ % kTicksPerTrim == 0)
    for (auto& [token, connection] : connections_) connection->trim(*store_);
}

void Server::on_notices() {
  for (const Notice& notice : custodian_->take_notices()) {
    switch (notice.kind) {
      case Notice::Prepare: quiesce(notice); break;
      case Notice::Resumed:
        log(Level::Notice, "update called off: {}; serving on", notice.text);
        resume();
        break;
      case Notice::HandedOver: ending_ = Ending::HandedOver; break;
      case Notice::Connected: facts_.luod_connected = true; break;
      case Notice::Disconnected:
        facts_.luod_connected = false;
        if (quiesced_) resume();
        break;
    }
  }
}

// Every request that was executed is in the arena with its answer, and so is what has been received of
// the next ones: there is nothing to finish, only to stop.
void Server::quiesce(const Notice& prepare) {
  Counters& counters = store_->counters();
  if (!quiesced_) {
    quiesced_ = true;
    counters.quiesced_ns = monotonic_ns();
    counters.quiesced_boot = this_boot();
    counters.quiesced_unix_ns = unix_ns();
  }
  if (prepare.of_the_kernel && !image_.valid()) {
    if (auto image = store_->image()) {
      image_ = *std::move(image);
    } else {
      log(Level::Error, "no update of the kernel: {}", image.error());
      custodian_->unable(prepare.update, to_string(image.error()));
      return resume();
    }
    // Not closed, not touched: the arena is what we serve from if the update is called off.
    custodian_->replace(image_, kImageToken, Fd{}, kArenaToken);
  }
  custodian_->quiesced(prepare.update);
}

void Server::resume() {
  if (!quiesced_) return;
  quiesced_ = false;
  store_->counters().quiesced_ns = 0;
  if (image_.valid()) custodian_->replace(store_->arena().fd(), kArenaToken, std::move(image_), kImageToken);
  work_on_all();
}

void Server::work_on_all() {
  std::vector<Connection*> waiting;
  for (auto& [token, connection] : connections_)
    if (connection->has_input() || connection->wants_to_send() || connection->record().closing != 0)
      waiting.push_back(connection.get());
  // A request that its process has done in part comes before all others.
  std::ranges::stable_partition(waiting, [](Connection* one) { return one->record().resume_at != 0; });
  for (Connection* connection : waiting) {
    connection->restart();
    after_work(*connection, connection->work(*store_, interpreter_, now_ms_));
  }
}

}  // namespace luo::cache
