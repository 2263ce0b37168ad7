// luo-scale's parts. A side is one luod and what is done to it; there are two, of which one gets a tenth of the other,
// and each step is taken at both in turns, so that what else the machine does meanwhile falls on both.
#pragma once
#include <sys/types.h>

#include <array>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client.h"

namespace bench {

struct ScaleOptions {
  std::string small, large;                ///< sockets
  std::string luoctl;                      ///< path of the program; luod lies beside it
  std::size_t sessions = 9000, files = 1;  ///< at the large side; files in each session
  std::size_t rounds = 5;                  ///< of `update luod`
  std::size_t one_by_one = 2;              ///< the files of each so-manieth session are not handled in batches
  std::size_t timeout = 60;                ///< of each update, in seconds
  int processor = -1;                      ///< calls are measured on this one alone; -1: wherever
};

/// What one operation cost: one entry for each call, or for each session's worth of calls.
struct Samples {
  std::vector<double> us;         ///< of one item
  std::vector<std::size_t> held;  ///< items that were there (or are gone) before it
  void add(double each, std::size_t at) {
    us.push_back(each);
    held.push_back(at);
  }
  /// Mean, median, 99th percentile, and medians along the way.
  nlohmann::json json() const;
};

struct Side {
  std::string socket;
  std::size_t sessions, files;  ///< files in each session
  std::size_t one_by_one = 2;   ///< see ScaleOptions
  std::optional<Connection> connection = std::nullopt;
  std::vector<luo::Fd> held = {};  ///< session descriptors
  std::map<std::string, Samples> samples = {};
  nlohmann::json report = nlohmann::json::object();
  std::size_t all_files() const { return sessions * files; }
};

using Sides = std::array<Side, 2>;  ///< small, large

/// `step(side, i)` for each of the side's sessions, in turns: some hundreds at the large side, a tenth at the small.
luo::Result<> alternate(Sides& sides, const std::function<luo::Result<>(Side&, std::size_t)>& step);

// calls.cc: creates and fills the sessions; takes what has come in and finishes it. The files of some sessions
// are preserved and retrieved one by one, those of the rest in batches.
luo::Result<> fill(Sides& sides);
luo::Result<> empty(Sides& sides);

// events.cc
/// `luoctl ARGS… --json` at that luod, parsed.
luo::Result<nlohmann::json> luoctl(const ScaleOptions& options, const Side& side, std::vector<std::string> args);
/// Keeps both luods and this process on options.processor (if there is one), or lets them go again.
luo::Result<> pin(const ScaleOptions& options, Sides& sides, bool together);
/// Memory of luod's processes, and what the arena uses.
luo::Result<nlohmann::json> memory_of(const ScaleOptions& options, const Side& side);
/// `luoctl update luod`, options.rounds times at each side, each time beside fork and exec of a process with as
/// many descriptors.
luo::Result<> update_luod(const ScaleOptions& options, Sides& sides);
luo::Result<> update_simulated(const ScaleOptions& options, Sides& sides);

// bare.cc
/// A process that holds `files` memfds, none of them closed by exec.
class BareProcess {
 public:
  static luo::Result<BareProcess> start(std::size_t files);
  BareProcess(BareProcess&& from) noexcept : socket_{std::move(from.socket_)}, pid_{std::exchange(from.pid_, -1)} {}
  BareProcess& operator=(BareProcess&&) = delete;
  ~BareProcess();
  struct Times {
    double running_ms;  ///< from before the fork until main() of what was executed runs
    double ended_ms;    ///< until that has ended, and its descriptors are closed
  };
  luo::Result<Times> fork_and_exec();

 private:
  BareProcess(luo::Fd socket, pid_t pid) : socket_{std::move(socket)}, pid_{pid} {}
  luo::Fd socket_;
  pid_t pid_;
};
/// What such a process executes: says that it runs, and ends. To be called first of all by main().
void be_the_executed(std::span<char*> args);

}  // namespace bench
