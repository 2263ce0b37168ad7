// luoctl's conversation with luod: one request at a time, with something on the terminal if it takes long.
#pragma once
#include <chrono>
#include <span>
#include <string>

#include "client/connection.h"
#include "nlohmann/json.hpp"

namespace luo::cli {

/// "update luod: 3 s ...", on a terminal at stderr only, from the second second on. Gone at the end.
class Progress {
 public:
  explicit Progress(std::string what);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// How long poll() may wait before tick() is due; -1: for ever.
  int poll_timeout_ms() const;
  void tick();

 private:
  std::string what_;
  std::chrono::steady_clock::time_point begin_;
  bool on_terminal_, shown_ = false;
};

/// What a wait ended with.
struct Woken {
  std::optional<client::Answer> answer;
  std::size_t other = 0;  ///< without an answer: which of the others polls readable
};

/// Waits until the request that was posted is answered, or one of `others` polls readable.
Result<Woken> wait_for(client::Connection& connection, std::span<const int> others, Progress& progress);

/// Posts and waits. Errors: those of the connection. luod's own are in the answer.
Result<client::Answer> ask(client::Connection& connection, wire::Builder& request, Progress& progress);

/// The JSON that an answer brought in a memfd. EBADMSG: it brought none.
Result<nlohmann::json> report_in(const client::Answer& answer);

}  // namespace luo::cli
