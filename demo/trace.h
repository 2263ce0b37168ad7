// What the clients saw, one record for each request (or pipelined batch), as a file of fixed
// records that run.py reads: start and duration on CLOCK_MONOTONIC, and what went wrong.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace demo {

enum class Role : std::uint8_t { Closed = 0, Pipelined = 1, Fresh = 2, Idle = 3, Probe = 4 };

struct TraceRecord {
  std::uint64_t start_ns;     ///<  0  CLOCK_MONOTONIC, when the first byte was written
  std::uint64_t duration_ns;  ///<  8  until the last answer was read
  std::uint16_t lane;         ///< 16  which client
  std::uint16_t requests;     ///< 18  in this batch, 1 if not pipelined
  std::uint16_t failed;       ///< 20  of these: connection lost, error answers, wrong values
  Role role;                  ///< 22
  std::uint8_t lost;          ///< 23  keys that were missing (at most 255 are counted)
};
static_assert(sizeof(TraceRecord) == 24);

std::uint64_t now_ns() noexcept;

/// Appends records to a file. One writer for each thread; all may share one file (O_APPEND, whole
/// records). Records are written when the buffer is full, and by flush().
class TraceWriter {
 public:
  /// An empty path: records go nowhere.
  static luo::Result<TraceWriter> open(const std::string& path);
  luo::Result<> add(const TraceRecord& record);
  luo::Result<> flush();

 private:
  luo::Fd file_;
  std::vector<TraceRecord> buffer_;
};

}  // namespace demo
