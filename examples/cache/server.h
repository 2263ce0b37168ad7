// The loop: accepts, receives, executes, answers; one thread, epoll.
#pragma once
#include <csignal>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "cache/connection.h"
#include "cache/custodian.h"

namespace luo::cache {

struct Listeners {
  Fd tcp;
  Fd unix_socket;  ///< may be empty
};

class Server {
 public:
  struct Parts {
    std::unique_ptr<Store> store;
    Listeners listeners;
    Facts facts;
  };
  static Result<std::unique_ptr<Server>> create(Parts parts);
  ~Server();

  /// Begins to serve a connection that nobody has served yet.
  void welcome(Fd socket);
  /// Puts a connection that another process served back to work. Before run().
  Result<> adopt(Fd socket, ConnectionRecord& record);
  /// From here on connections are kept in the session. nullptr: they are not.
  Result<> keep_with(std::unique_ptr<Custodian> custodian);

  enum class Ending { Stopped, HandedOver };
  const Facts& facts() const noexcept { return facts_; }
  /// What another process needs that takes our descriptor table over.
  FdRef arena() const noexcept { return store_->arena().fd(); }
  const Listeners& listeners() const noexcept { return listeners_; }
  /// Serves until SIGTERM or SIGINT (blocked by the caller, all threads), or until a successor serves.
  Result<Ending> run();

 private:
  explicit Server(Parts parts);
  Result<> watch(FdRef file, void* tag, std::uint32_t events, int operation);
  void serve(Connection& connection, std::uint32_t events);
  void after_work(Connection& connection, Connection::State state);
  void rewatch(Connection& connection);
  void accept_from(FdRef listener);
  void pause_accepting(bool pause);
  void drop(Connection& connection);
  void on_tick();
  void on_notices();
  void quiesce(const Notice& prepare);
  void resume();
  void work_on_all();
  Result<> wait_quiesced();
  int poll_timeout_ms() const noexcept;

  std::unique_ptr<Store> store_;
  Listeners listeners_;
  Facts facts_;
  ConnectionLimits limits_;
  Interpreter interpreter_;
  std::unique_ptr<Custodian> custodian_;
  Fd epoll_;
  Fd signals_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Connection>> connections_;  // by token
  std::vector<std::unique_ptr<Connection>> gone_;  // freed when no event of this round can name them
  std::int64_t now_ms_ = 0;
  std::int64_t last_tick_ms_ = 0;
  unsigned ticks_ = 0;
  bool quiesced_ = false;
  Fd image_;  ///< instead of the arena in the session: the kernel is being updated
  bool accepting_ = true;
  std::optional<Ending> ending_;
};

}  // namespace luo::cache
