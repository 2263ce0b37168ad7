#include "trace.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

namespace demo {
namespace {
constexpr std::size_t kBufferedRecords = 8192;
}

std::uint64_t now_ns() noexcept {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

luo::Result<TraceWriter> TraceWriter::open(const std::string& path) {
  TraceWriter writer;
  if (path.empty()) return writer;
  writer.file_ = luo::Fd::adopt(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!writer.file_.valid()) return luo::sys_fail("open {}", path);
  writer.buffer_.reserve(kBufferedRecords);
  return writer;
}

luo::Result<> TraceWriter::add(const TraceRecord& record) {
  if (!file_.valid()) return {};
  buffer_.push_back(record);
  if (buffer_.size() < kBufferedRecords) return {};
  return flush();
}

luo::Result<> TraceWriter::flush() {
  if (!file_.valid() || buffer_.empty()) return {};
  const std::size_t bytes = buffer_.size() * sizeof(TraceRecord);
  const ssize_t written = ::write(file_.raw(), buffer_.data(), bytes);
  if (written < 0) return luo::sys_fail("write trace");
  if (static_cast<std::size_t>(written) != bytes)
    return luo::fail(ENOSPC, "write trace: only {} of {} bytes", written, bytes);
  buffer_.clear();
  return {};
}

}  // namespace demo
