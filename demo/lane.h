// One client of the cache, with a model of what it must see: it owns some keys and a counter, and
// nobody else writes those.
#pragma once
#include <atomic>
#include <cstdint>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "dataset.h"
#include "resp_client.h"
#include "trace.h"

namespace demo {

struct Totals {
  std::uint64_t requests = 0;
  std::uint64_t failed = 0;             ///< requests without the right answer, whatever the reason
  std::uint64_t wrong = 0;              ///< of these: answered with a wrong value
  std::uint64_t lost = 0;               ///< of these: a key that was missing
  std::uint64_t resets = 0;             ///< connections that ended before their client did
  std::uint64_t shared_incr = 0;        ///< acknowledged INCRs of the counter that all lanes share
  std::uint64_t shared_maybe = 0;       ///< unacknowledged ones
  std::vector<std::string> complaints;  ///< the first few, for people

  void complain(std::string text);
  void add(const Totals& other);
};

struct LaneOptions {
  std::uint16_t port;
  Role role;
  std::uint16_t number;  ///< of this lane; it owns keys number, number + lanes, number + 2 * lanes, …
  std::uint16_t lanes;
  unsigned depth;     ///< requests in a batch; 1 = wait for each answer
  unsigned pause_us;  ///< between two batches, 0 = none
};

/// Sets, gets and increments until told to stop. Used by one thread.
class Lane {
 public:
  /// `versions` has one entry for each key of `data`; a lane touches only its own keys' entries.
  Lane(const LaneOptions& options, const DataSet& data, std::vector<std::uint32_t>& versions, TraceWriter trace);

  /// Runs until `stop`. Fails only for reasons of our own (the trace cannot be written).
  luo::Result<> run(const std::atomic<bool>& stop);

  /// Reads every key that this lane owns, and its counter, and compares.
  luo::Result<> check_all();

  const Totals& totals() const noexcept { return totals_; }

  static constexpr std::string_view kSharedCounter = "demo:count:all";

 private:
  enum class Op { Set, Get, Incr, SharedIncr };
  struct Request {
    Op op;
    std::uint32_t key;
    std::uint32_t version;  ///< that it writes, or that must be read
  };

  luo::Result<> ensure_connected();
  void plan(unsigned count);
  void encode(const Request& request);
  /// Whether the answer is what the model says; updates the model.
  bool judge(const Request& request, const Reply& reply, TraceRecord& record);
  bool judge_value(std::uint32_t key, const Reply& reply, TraceRecord& record);
  void forget(const Request& request);  ///< no answer came: it may have happened or not
  luo::Result<> batch();

  LaneOptions options_;
  DataSet data_;
  std::vector<std::uint32_t>& versions_;
  TraceWriter trace_;
  Totals totals_;
  std::minstd_rand random_;
  std::uint32_t own_keys_;
  std::string counter_key_;
  std::int64_t counter_ = 0;
  std::int64_t counter_maybe_ = 0;                          ///< increments whose answer was lost
  std::unordered_map<std::uint32_t, std::uint32_t> maybe_;  ///< key → version of a SET whose answer was lost
  std::vector<Request> requests_;
  RespClient client_;
  bool connected_ = false;
  std::string output_, key_text_, value_text_;
  Reply reply_;
};

}  // namespace demo
