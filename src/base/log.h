// One line per event, to stderr: with a syslog level prefix under systemd (it parses "<6>"), with the
// time and the program's name elsewhere. Log once, where an error stops travelling.
#pragma once
#include <fmt/format.h>

#include <string_view>

namespace luo {

enum class Level { Error = 3, Warning = 4, Notice = 5, Info = 6, Debug = 7 };

/// Who speaks ("luod worker"). Kept by reference: a string literal. Not thread-safe: call first in main.
void log_as(std::string_view who) noexcept;
/// Messages above this level are dropped. Default: Info, or Debug if the environment has LUO_DEBUG.
void log_up_to(Level level) noexcept;
bool log_wants(Level level) noexcept;
/// Writes one line with one write(2). Any thread.
void log_line(Level level, std::string_view text) noexcept;

template <class... Args>
void log(Level level, fmt::format_string<Args...> text, Args&&... args) {
  if (log_wants(level)) log_line(level, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace luo
