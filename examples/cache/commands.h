// What a request does. One Interpreter serves all connections of the one loop thread.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "cache/reply.h"
#include "cache/table.h"

namespace luo::cache {

/// What INFO, CONFIG GET and HELLO tell about the process; the server keeps it up to date.
struct Facts {
  std::string version;
  std::string session;  ///< empty: --no-luo
  std::string bind;
  std::string unix_socket;
  int port = 0;
  std::uint64_t maxmemory = 0;  ///< 0 = no limit
  std::uint64_t clients = 0;
  std::int64_t started_ms = 0;  ///< CLOCK_REALTIME, of this process
  bool luod_connected = false;
};

/// The transaction of a run of requests. A request that touches many keys may renew() it between two of them: the part
/// before stays done if we are killed after, and whoever comes then goes on from there before anybody else's turn.
class Batch {
 public:
  Batch(kho::Arena& arena, ConnectionRecord& record) : arena_{arena}, record_{record} { open(); }
  kho::Tx& tx() noexcept { return *tx_; }
  bool has_room() const noexcept { return tx_->room() > 2 * Table::kLogPerCall; }
  void renew() {
    commit();
    open();
  }
  /// Arguments before `at` are done, the answer has come to `count`.
  void renew(std::size_t at, std::int64_t count) {
    tx_->set(record_.resume_at, at);
    tx_->set(record_.resume_count, count);
    renew();
  }
  /// Where a request that may be renewed begins: at its first key, or where it was when its process died.
  std::size_t begin_at(std::int64_t& count) const noexcept {
    count = record_.resume_at != 0 ? record_.resume_count : 0;
    return record_.resume_at != 0 ? record_.resume_at : 1;
  }
  void request_done() noexcept {
    if (record_.resume_at != 0) tx_->set(record_.resume_at, 0);
  }
  void commit() noexcept { tx_->commit(); }

 private:
  void open() {
    tx_.emplace(arena_);
    Buffer{arena_, record_.input}.begin_changes(*tx_);
    Buffer{arena_, record_.output}.begin_changes(*tx_);
  }
  kho::Arena& arena_;
  ConnectionRecord& record_;
  std::optional<kho::Tx> tx_;
};

/// One request while it is executed.
struct Call {
  std::span<const std::string_view> arguments;  ///< the command's name first
  Batch& batch;
  Reply& reply;
  ConnectionRecord& connection;
  std::int64_t now_ms;
  std::string_view name;  ///< as in the error texts: lower case

  kho::Tx& tx() const noexcept { return batch.tx(); }
  std::string_view operator[](std::size_t i) const noexcept { return arguments[i]; }
  std::size_t size() const noexcept { return arguments.size(); }
};

class Interpreter {
 public:
  Interpreter(kho::Arena& arena, Table& table, Counters& counters, const Facts& facts) noexcept
      : arena_{arena}, table_{table}, counters_{counters}, facts_{facts} {}

  /// Executes one request and appends its answer. `arguments` is not empty and does not lie in what
  /// the request may move (the table and the output).
  void run(std::span<const std::string_view> arguments, Batch& batch, Reply& reply, ConnectionRecord& connection,
           std::int64_t now_ms);

  struct Command;

 private:
  using Action = void (Interpreter::*)(Call&);
  static std::span<const Command> commands() noexcept;
  static const Command* find(std::string_view name) noexcept;
  bool over_memory(Call& call);
  void execute(Call& call, const Command& command);

  // commands_string.cc
  void get(Call& call);
  void set(Call& call);
  void setnx(Call& call);
  void setex(Call& call);
  void psetex(Call& call);
  void getset(Call& call);
  void getdel(Call& call);
  void mget(Call& call);
  void mset(Call& call);
  void append(Call& call);
  void strlen(Call& call);
  void incr(Call& call);
  void decr(Call& call);
  void incrby(Call& call);
  void decrby(Call& call);
  void set_expiring(Call& call, std::int64_t unit_ms);
  void add(Call& call, std::int64_t delta);
  bool put(Call& call, Table::Place place, std::string_view key, std::string_view value, std::int64_t expire_ms);

  // commands_key.cc
  void del(Call& call);
  void exists(Call& call);
  void type(Call& call);
  void expire(Call& call);
  void pexpire(Call& call);
  void expireat(Call& call);
  void pexpireat(Call& call);
  void ttl(Call& call);
  void pttl(Call& call);
  void persist(Call& call);
  void dbsize(Call& call);
  void flush(Call& call);
  void expire_at(Call& call, std::int64_t base_ms, std::int64_t unit_ms);
  void time_left(Call& call, std::int64_t unit_ms);

  // commands_server.cc
  void ping(Call& call);
  void echo(Call& call);
  void quit(Call& call);
  void select(Call& call);
  void auth(Call& call);
  void hello(Call& call);
  void client(Call& call);
  void config(Call& call);
  void command(Call& call);
  void info(Call& call);

  kho::Arena& arena_;
  Table& table_;
  Counters& counters_;
  const Facts& facts_;
};

struct Interpreter::Command {
  std::string_view name;
  int arity;  ///< with the name; negative: at least
  enum Flag : unsigned { Read = 0, Write = 1, Grows = 2, Fast = 4, Admin = 8 };
  unsigned flags;
  int first_key, last_key, step;
  Action action;
};

// Texts that several commands use.
inline constexpr std::string_view kNotAnInteger = "ERR value is not an integer or out of range";
inline constexpr std::string_view kSyntaxError = "ERR syntax error";
inline constexpr std::string_view kOutOfMemory = "OOM command not allowed when used memory > 'maxmemory'.";
void wrong_arity(Call& call, std::string_view name);
void invalid_expire(Call& call);
/// Whether `text` is `lower`, which is in lower case, in any case.
bool is_word(std::string_view text, std::string_view lower) noexcept;
std::string lower_case(std::string_view text);
/// value * unit + base in milliseconds, as an expire time; false if it overflows.
bool to_expire_ms(std::int64_t value, std::int64_t unit_ms, std::int64_t base_ms, std::int64_t& at) noexcept;

}  // namespace luo::cache
