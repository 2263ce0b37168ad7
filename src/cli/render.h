// luod's JSON as text for people. Pure functions; EBADMSG: it is not what this luoctl understands.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"

namespace luo::cli {

struct Style {
  bool colours = false;
};

/// The text of a report. EBADMSG.
Result<nlohmann::json> parse_report(std::string_view text);

Result<std::string> render_status(const nlohmann::json& status, Style style);
/// `now_ms`: CLOCK_REALTIME, for the column of ages.
Result<std::string> render_list(const nlohmann::json& list, std::int64_t now_ms, Style style);
Result<std::string> render_files(const nlohmann::json& files, Style style);
Result<std::string> render_show(const nlohmann::json& session, std::int64_t now_ms, Style style);

/// One line about an update that worked.
Result<std::string> render_update(const nlohmann::json& report);

/// What an update of the kernel came to, as luod reports it before the reboot. `release`: of the new kernel; may be
/// empty.
Result<std::string> render_kernel_update(const nlohmann::json& report, std::string_view release);

/// "3 h 12 min", "41 s", "12 ms".
std::string render_duration(std::int64_t ms);
/// "1.2 MiB".
std::string render_bytes(std::uint64_t bytes);
/// Text from elsewhere, with what would command a terminal replaced.
std::string printable(std::string_view text);
/// The last lines of a program, each behind "  | ".
std::string render_last_words(std::string_view words);

}  // namespace luo::cli
