#include "cli/render.h"

#include <algorithm>
#include <array>

#include "cli/table.h"

namespace luo::cli {
namespace {

using nlohmann::json;

Colour colour_of_state(std::string_view state) {
  if (state == "outgoing" || state == "retrieved") return Colour::Green;
  return state == "finished" ? Colour::Plain : Colour::Yellow;
}

std::string text_of(const json& object, const char* key) { return printable(object.at(key).get<std::string>()); }

std::string number_of(const json& object, const char* key) {
  return std::to_string(object.at(key).get<std::uint64_t>());
}

std::string holder_of(const json& session) {
  std::string holder = text_of(session, "holder");
  if (holder == "none" && session.value("on_close", "") == "hold") holder = "none, kept for its owner";
  if (session.value("successor", false)) holder += ", successor";
  return holder;
}

std::string describe_hold(const json& held_for) {
  std::string whom = "its user";
  if (held_for.is_object())
    for (const auto& [kind, who] : held_for.items()) whom = fmt::format("{} {}", kind, who.get<std::string>());
  return printable("kept for " + whom);
}

std::string line(std::string_view label, std::string_view value) { return fmt::format("  {:<13}{}\n", label, value); }

std::string milliseconds(double ms) { return fmt::format("{:.{}f} ms", ms, ms < 1 ? 3 : 1); }

std::string pause_of(const json& update) { return "pause " + milliseconds(update.at("pause_ms").get<double>()); }

std::string count_of(const json& object, const char* key, std::string_view one, std::string_view many) {
  const std::string n = number_of(object, key);
  return fmt::format("{} {}", n, n == "1" ? one : many);
}

/// Of an update of the kernel: how long nobody was served, once the new kernel's luod knows it.
std::string describe_kernel_update(const json& update) {
  if (update.value("dry_run", false)) return "kernel: dry run, all was ready";
  if (const double ms = update.value("blackout_ms", 0.0); ms > 0) return "kernel: done, blackout " + milliseconds(ms);
  return "kernel: " + printable(update.value("phase", "done"));
}

std::string describe_update(const json& update) {
  const std::string kind = update.value("kind", "");
  const std::string what =
      kind == "service" ? fmt::format("of service '{}'", printable(update.value("session", "?"))) : kind;
  const bool ok = update.at("ok").get<bool>();
  if (ok && kind == "kernel") return describe_kernel_update(update);
  if (ok) return fmt::format("{}: done, {}", what, pause_of(update));
  const std::string error = update.value("error", "");
  if (!error.empty()) return fmt::format("{}: off: {}", what, printable(error));
  return fmt::format("{}: {}", what, printable(update.value("phase", "under way")));
}

/// Runs what reads the JSON: a missing or strange member is luod's fault, not a reason to die.
template <class Body>
Result<std::string> reading(Body&& body) {
  try {
    return body();
  } catch (const json::exception& e) {
    return fail(EBADMSG,
                "luod's report is not what this luoctl understands ({}); use the luoctl of its version, or --json",
                e.what());
  }
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out{text};
  std::ranges::replace_if(
      out, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return out;
}

std::string render_last_words(std::string_view words) {
  std::string out;
  while (!words.empty()) {
    const auto end = std::min(words.find('\n'), words.size());
    std::string text{words.substr(0, end)};
    std::ranges::replace(text, '\t', ' ');
    out += "  | " + printable(text) + "\n";
    words.remove_prefix(std::min(end + 1, words.size()));
  }
  return out;
}

std::string render_duration(std::int64_t ms) {
  if (ms < 0) ms = 0;
  const std::int64_t s = ms / 1000;
  if (s < 1) return fmt::format("{} ms", ms);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {} s", s / 60, s % 60);
  if (s < 86'400) return fmt::format("{} h {} min", s / 3600, s / 60 % 60);
  return fmt::format("{} d {} h", s / 86'400, s / 3600 % 24);
}

std::string render_bytes(std::uint64_t bytes) {
  constexpr std::array kUnits{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  for (; value >= 1023.95 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

Result<json> parse_report(std::string_view text) {
  json report = json::parse(text, nullptr, false);
  if (!report.is_object()) return fail(EBADMSG, "luod sent {} bytes that are no report", text.size());
  return report;
}

Result<std::string> render_status(const json& status, Style style) {
  return reading([&] {
    std::string out =
        fmt::format("{} {} at {}, up {}\n", coloured("luod", Colour::Bold, style), text_of(status, "version"),
                    text_of(status, "socket"), render_duration(status.at("uptime_ms").get<std::int64_t>()));
    const auto& sessions = status.at("sessions");
    const auto& arena = status.at("arena");
    std::string handlers;
    for (const auto& name : status.at("handlers"))
      handlers += (handlers.empty() ? "" : ", ") + printable(name.get<std::string>());
    const std::uint64_t restarts = status.at("worker_restarts").get<std::uint64_t>();
    const std::string restarted = restarts == 0 ? "" : fmt::format(" (worker restarted {} times)", restarts);
    out += line("processes",
                fmt::format("keeper {}, worker {}{}", number_of(status, "keeper_pid"), number_of(status, "worker_pid"),
                            coloured(restarted, Colour::Yellow, restarts != 0 ? style : Style{})));
    out += line("sessions", fmt::format("{} outgoing, {} incoming", number_of(sessions, "outgoing"),
                                        number_of(sessions, "incoming")));
    out += line("files", number_of(status, "files"));
    out += line("connections", number_of(status, "connections"));
    out += line("descriptors",
                fmt::format("{} of {}", number_of(status, "open_files"), number_of(status, "open_files_limit")));
    out += line("arena", fmt::format("{} used, {} committed", render_bytes(arena.at("used_bytes").get<std::uint64_t>()),
                                     render_bytes(arena.at("committed_bytes").get<std::uint64_t>())));
    if (const auto kernel = status.find("kernel"); kernel != status.end() && kernel->is_object())
      out += line(
          "kernel",
          fmt::format("has {} in {}{}", count_of(*kernel, "files", "file", "files"),
                      count_of(*kernel, "sessions", "session", "sessions"),
                      kernel->at("lacking") == 0 ? "" : fmt::format(", and lacks {}", number_of(*kernel, "lacking"))));
    out += line("handlers", handlers);
    out += line("state in", text_of(status, "state_dir"));
    out += line("updates", fmt::format("{} of luod", number_of(status, "updates")));
    if (const auto& last = status.at("last_update"); last.is_object())
      out += line("last update", describe_update(last));
    return out;
  });
}

Result<std::string> render_list(const json& list, std::int64_t now_ms, Style style) {
  return reading([&]() -> std::string {
    const auto& sessions = list.at("sessions");
    if (sessions.empty()) return "no sessions\n";
    Table table{{"NAME", "STATE", "FILES", "PID", "UID", "AGE", "HOLDER"}, "llrrrrl"};
    for (const auto& session : sessions) {
      const std::string state = text_of(session, "state");
      table.add({{text_of(session, "name")},
                 {state, colour_of_state(state)},
                 {number_of(session, "files")},
                 {std::to_string(session.at("pid").get<std::int64_t>())},
                 {number_of(session, "uid")},
                 {render_duration(now_ms - session.at("created_ms").get<std::int64_t>())},
                 {holder_of(session)}});
    }
    return table.text(style);
  });
}

Result<std::string> render_files(const json& files, Style style) {
  return reading([&]() -> std::string {
    if (files.at("files").empty()) return "no files\n";
    Table table{{"SESSION", "STATE", "TOKEN", "HANDLER"}, "llrl"};
    for (const auto& file : files.at("files")) {
      const std::string state = text_of(file, "state");
      table.add({{text_of(file, "session")},
                 {state, colour_of_state(state)},
                 {number_of(file, "token")},
                 {text_of(file, "handler")}});
    }
    return table.text(style);
  });
}

Result<std::string> render_show(const json& session, std::int64_t now_ms, Style style) {
  return reading([&] {
    const std::string state = text_of(session, "state");
    std::string out = fmt::format("session {}\n", coloured(text_of(session, "name"), Colour::Bold, style));
    out += line("state", coloured(state, colour_of_state(state), style));
    out +=
        line("owner", fmt::format("pid {}, uid {}", session.at("pid").get<std::int64_t>(), number_of(session, "uid")));
    out += line("holder", holder_of(session));
    if (session.value("on_close", "") == "hold") out += line("on close", describe_hold(session.at("held_for")));
    for (const char* option : {"transient", "grow"})
      if (session.value(option, "refuse") != "refuse") out += line(option, text_of(session, option));
    out += line("made", render_duration(now_ms - session.at("created_ms").get<std::int64_t>()) + " ago");
    out += line("files", number_of(session, "files"));
    const auto& files = session.at("files_list");
    if (files.empty()) return out;
    Table table{{"TOKEN", "HANDLER", "STATUS", "INODE", "SIZE"}, "rllrr"};
    for (const auto& file : files) {
      const std::string status = text_of(file, "status");
      table.add({{number_of(file, "token")},
                 {text_of(file, "handler")},
                 {status, status == "failed" ? Colour::Red : Colour::Plain},
                 {number_of(file, "inode")},
                 {file.contains("size") ? render_bytes(file.at("size").get<std::uint64_t>()) : "-"}});
    }
    return out + "\n" + table.text(style);
  });
}

Result<std::string> render_update(const json& report) {
  return reading([&]() -> std::string {
    const std::string kind = report.at("kind").get<std::string>();
    if (kind == "luod")
      return fmt::format("luod updated from {} to {}: {}\n", text_of(report, "from_version"),
                         text_of(report, "to_version"), pause_of(report));
    if (kind == "service")
      return fmt::format("service '{}' updated: {}, new pid {}, {}\n", text_of(report, "session"), pause_of(report),
                         report.at("successor_pid").get<std::int64_t>(), count_of(report, "files", "file", "files"));
    return fmt::format("{} with {} crossed: {}; retrieve them by name\n",
                       count_of(report, "sessions", "session", "sessions"), count_of(report, "files", "file", "files"),
                       pause_of(report));
  });
}

Result<std::string> render_kernel_update(const json& report, std::string_view release) {
  return reading([&] {
    const std::string what = fmt::format("{} with {}", count_of(report, "sessions", "session", "sessions"),
                                         count_of(report, "files", "file", "files"));
    const std::string whereto = release.empty() ? "the new kernel" : "Linux " + printable(release);
    if (!report.value("dry_run", false)) return fmt::format("{} cross into {}: the machine restarts\n", what, whereto);
    std::string out = fmt::format("dry run: {} can cross into {}, with an image of {}\n", what, whereto,
                                  render_bytes(report.value("image_bytes", std::uint64_t{0})));
    std::string times;
    if (const auto phases = report.find("phases"); phases != report.end())
      for (const char* phase : {"prepare", "preserve", "image", "freeze"})
        if (const auto ms = phases->find(std::string{phase} + "_ms"); ms != phases->end())
          times += fmt::format("{}{} {}", times.empty() ? "" : ", ", phase, milliseconds(ms->get<double>()));
    if (!times.empty()) out += "  " + times + "\n";
    return out + "  without --dry-run the machine would have restarted here; all go on, and the kernel is unloaded\n";
  });
}

}  // namespace luo::cli
