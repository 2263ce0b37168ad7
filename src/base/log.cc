#include "base/log.h"

#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace luo {
namespace {

std::string_view g_who = "luo";
Level g_limit = std::getenv("LUO_DEBUG") != nullptr ? Level::Debug : Level::Info;
const bool g_journal = std::getenv("JOURNAL_STREAM") != nullptr;

std::string prefix(Level level) {
  if (g_journal) return fmt::format("<{}>", static_cast<int>(level));
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z {}[{}]: ", parts.tm_year + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, now.tv_nsec / 1000000, g_who, getpid());
}

}  // namespace

void log_as(std::string_view who) noexcept { g_who = who; }
void log_up_to(Level level) noexcept { g_limit = level; }
bool log_wants(Level level) noexcept { return level <= g_limit; }

void log_line(Level level, std::string_view text) noexcept {
  const std::string line = fmt::format("{}{}\n", prefix(level), text);
  // A log that cannot be written is not worth dying for, and there is nobody to tell.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace luo
