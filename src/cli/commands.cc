#include "cli/commands.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <filesystem>

#include "cli/private_luod.h"
#include "compat/launch.h"
#include "sys/process.h"

namespace luo::cli {
namespace {

using nlohmann::json;
using wire::Command;

std::string dump(const json& value) { return value.dump(2, ' ', false, json::error_handler_t::replace) + "\n"; }

std::int64_t now_ms() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

/// What someone who sees this should do, where the errno's text does not say it.
std::string_view advice(int code) {
  switch (code) {
    case ENOENT:
    case ECONNREFUSED: return "is luod running? start it, or name its socket: --socket PATH, or LUO_SOCKET";
    case EACCES: return "this user may not use that luod: try as root, or as the user whom luod runs as";
    case EPROTO: return "what listens there is not a luod that this luoctl knows";
    case ECONNRESET: return "luod ended: see its log, then luoctl status";
    default: return {};
  }
}

Outcome query(const Options& options, Style style) {
  auto reached = reach(options);
  if (!reached) return failure(options, kUnreachable, reached.error());
  wire::QueryArg arg{};
  wire::QueryKind kind = wire::QueryKind::Status;
  if (options.action == Action::List) kind = wire::QueryKind::List;
  if (options.action == Action::Show) kind = wire::QueryKind::Show;
  if (options.action == Action::Files) kind = wire::QueryKind::Files;
  arg.kind = static_cast<std::uint32_t>(kind);
  wire::put_text(arg.name, options.action == Action::Files ? options.handler : options.session);
  wire::Builder request;
  request.start(Command::Query, 0, 0).arg(arg);
  Progress progress{"ask luod"};
  auto answer = ask(reached->connection, request, progress);
  if (!answer) return failure(options, answer.error());
  auto good = client::verdict(*std::move(answer));
  if (!good) return failure(options, kFailed, good.error());
  const auto report = report_in(*good);
  if (!report) return failure(options, kFailed, report.error());
  if (options.json) return {kDone, dump(*report), {}};
  Result<std::string> text;
  if (kind == wire::QueryKind::Status) text = render_status(*report, style);
  if (kind == wire::QueryKind::List) text = render_list(*report, now_ms(), style);
  if (kind == wire::QueryKind::Show) text = render_show(*report, now_ms(), style);
  if (kind == wire::QueryKind::Files) text = render_files(*report, style);
  if (!text) return failure(options, kFailed, text.error());
  return {kDone, *std::move(text), {}};
}

Outcome drop(const Options& options) {
  auto reached = reach(options);
  if (!reached) return failure(options, kUnreachable, reached.error());
  wire::NameArg arg{};
  wire::put_text(arg.name, options.session);
  wire::Builder request;
  request.start(Command::Drop, 0, 0).arg(arg);
  Progress progress{"drop the session"};
  auto answer = ask(reached->connection, request, progress);
  if (!answer) return failure(options, answer.error());
  if (auto good = client::verdict(*std::move(answer)); !good) return failure(options, kFailed, good.error());
  return {kDone, options.json ? dump({{"ok", true}}) : fmt::format("session {} is given up\n", options.session), {}};
}

/// Updates that luod carries out alone: the answer has the report, also of a failure.
Outcome update(const Options& options, wire::Builder& request, client::Connection& connection, const char* what) {
  Progress progress{what};
  auto answer = ask(connection, request, progress);
  if (!answer) return failure(options, std::move(answer).error().during(what));
  const auto report = report_in(*answer);
  if (answer->header.error != 0) {
    const Error error = error_in(*answer, report ? &*report : nullptr).during(what);
    if (options.json && report) return {kFailed, dump(*report), {}};
    const std::string words = report ? report->value("last_words", "") : "";
    return failure(options, kFailed, error, words);
  }
  if (!report && report.error().code == ENODATA) {  // it is done all the same
    const std::string why = to_string(report.error());
    return {kDone, options.json ? dump({{"ok", true}, {"report", why}}) : fmt::format("{}: done; {}\n", what, why), {}};
  }
  if (!report) return failure(options, kFailed, report.error());
  if (options.json) return {kDone, dump(*report), {}};
  const auto text = render_update(*report);
  if (!text) return failure(options, kFailed, text.error());
  return {kDone, *text, {}};
}

Result<Fd> open_image(const Options& options) {
  std::string path = options.image;
  if (path.empty()) {
    std::error_code error;
    const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
    if (error) return fail(error.value(), "find the luod beside luoctl (name one with --image)");
    path = (self.parent_path() / "luod").string();
  }
  Fd image = Fd::adopt(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!image.valid()) return sys_fail("open the new luod '{}' (choose another with --image)", path);
  return image;
}

Outcome update_luod(const Options& options) {
  const auto image = open_image(options);
  if (!image) return failure(options, kFailed, image.error());
  auto reached = reach(options);
  if (!reached) return failure(options, kUnreachable, reached.error());
  wire::UpdateArg arg{};
  arg.timeout_ms = options.timeout_ms;
  wire::Builder request;
  request.start(Command::UpdateLuod, 0, 0).arg(arg).add_fd(image->raw());
  return update(options, request, reached->connection, "update luod");
}

/// The processes behind each `luoctl run` of that luod. Without them an update is told of before all have died.
std::vector<Fd> supervisors(client::Connection& connection) {
  std::vector<Fd> found;
  wire::QueryArg arg{};
  arg.kind = static_cast<std::uint32_t>(wire::QueryKind::Status);
  wire::Builder request;
  request.start(Command::Query, 0, 0).arg(arg);
  const auto answer = connection.call(request);
  const auto status = answer && answer->header.error == 0 ? report_in(*answer) : Result<json>{fail(ENODATA, "")};
  if (!status || !status->contains("clients")) return found;
  for (const json& one : status->at("clients"))
    if (one.value("name", "") == compat::kSupervisorName)
      if (auto process = open_pidfd(one.value("pid", 0))) found.push_back(*std::move(process));
  return found;
}

/// A kexec leaves nobody of the side before: neither what ran under `luoctl run`, before we say that it is done.
void wait_for_deaths(const std::vector<Fd>& processes) {
  Progress progress{"wait for what runs under luoctl run to die"};
  for (const Fd& process : processes) {
    pollfd dead{process.raw(), POLLIN, 0};
    while (::poll(&dead, 1, progress.poll_timeout_ms()) == 0) progress.tick();
  }
}

Outcome update_simulated(const Options& options) {
  auto reached = reach(options);
  if (!reached) return failure(options, kUnreachable, reached.error());
  const std::vector<Fd> programs = supervisors(reached->connection);
  wire::UpdateArg arg{};
  arg.timeout_ms = options.timeout_ms;
  wire::Builder request;
  request.start(Command::UpdateSimulated, 0, 0).arg(arg);
  Outcome outcome = update(options, request, reached->connection, "update simulated");
  if (outcome.status == kDone) wait_for_deaths(programs);
  return outcome;
}

Outcome stop(const Options& options) {
  auto reached = reach(options);
  if (!reached) return failure(options, kUnreachable, reached.error());
  wire::Builder request;
  request.start(Command::Stop, 0, 0).arg(wire::PlainArg{});
  Progress progress{"stop luod"};
  auto answer = ask(reached->connection, request, progress);
  if (answer && answer->header.error != 0)
    return failure(options, kFailed, client::verdict(*std::move(answer)).error());
  // Stopped is what it is when it closes the connection, with or without having answered.
  Result<Woken> end =
      answer ? wait_for(reached->connection, {}, progress) : Result<Woken>{std::unexpected(answer.error())};
  if (!end && end.error().code != ECONNRESET) return failure(options, end.error());
  return {kDone, options.json ? dump({{"ok", true}}) : "luod stopped\n", {}};
}

}  // namespace

ExitStatus status_of(const Error& error) {
  return error.code == ECONNRESET || error.code == EPROTO ? kUnreachable : kFailed;
}

Outcome failure(const Options& options, const Error& error, std::string_view words) {
  return failure(options, status_of(error), error, words);
}

Outcome failure(const Options& options, ExitStatus status, const Error& error, std::string_view words) {
  const std::string sentence = printable(to_string(error));
  const std::string_view hint = status == kUnreachable ? advice(error.code) : std::string_view{};
  if (options.json) {
    const char* name = strerrorname_np(error.code);
    json report = {{"ok", false}, {"error", sentence}, {"errno", name != nullptr ? name : std::to_string(error.code)}};
    if (!words.empty()) report["last_words"] = words;
    return {status, dump(report), {}};
  }
  std::string text = "luoctl: " + sentence + "\n";
  if (!hint.empty()) text += fmt::format("  {}\n", hint);
  if (!words.empty()) text += "  its last words:\n" + render_last_words(words);
  return {status, {}, std::move(text)};
}

Result<Reached> reach(const Options& options) {
  std::string socket = LUO_TRY(socket_of(options));
  const std::string goal = fmt::format("reach luod at '{}'", socket);
  auto connection = LUO_TRY_DURING(goal, client::Connection::open(socket, {"luoctl", 0}));
  return Reached{std::move(socket), std::move(connection)};
}

Error error_in(client::Answer& answer, const json* report) {
  const int code = answer.header.error;
  if (report != nullptr && report->contains("error") && report->at("error").is_string()) {
    // The report's sentence ends with the errno's text, which comes again when the error is printed.
    std::string text = report->at("error").get<std::string>();
    const std::string tail = ": " + errno_text(code);
    if (text.ends_with(tail)) text.resize(text.size() - tail.size());
    if (!text.empty()) return {code, std::move(text)};
  }
  return client::verdict(std::move(answer)).error();
}

Outcome run(const Options& options, Style style) {
  switch (options.action) {
    case Action::Status:
    case Action::List:
    case Action::Show:
    case Action::Files: return query(options, style);
    case Action::Drop: return drop(options);
    case Action::UpdateLuod: return update_luod(options);
    case Action::UpdateService: return update_service(options);
    case Action::UpdateSimulated: return update_simulated(options);
    case Action::UpdateKernel: return update_kernel(options, style);
    case Action::Stop: return stop(options);
    case Action::Run: return run_command(options);
    case Action::Inspect: return inspect(options, style);
  }
  return {kUsage, {}, "luoctl: nothing to do\n"};
}

}  // namespace luo::cli
