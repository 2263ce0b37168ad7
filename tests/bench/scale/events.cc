// What happens to all that a luod holds at once: updates, seen by a client that asks all the time; and its memory.
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "scale.h"

namespace bench {
namespace {

/// luoctl, running.
struct Running {
  luo::Fd output;
  pid_t pid = -1;
};

luo::Result<Running> start(const ScaleOptions& options, const Side& side, std::vector<std::string> args) {
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) return luo::sys_fail("pipe2");
  Running running{.output = luo::Fd::adopt(pipe[0])};
  luo::Fd output = luo::Fd::adopt(pipe[1]);
  args.insert(args.begin(), "luoctl");
  args.insert(args.end(), {"--json", "--socket", side.socket});
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  running.pid = ::fork();
  if (running.pid < 0) return luo::sys_fail("fork");
  if (running.pid == 0) {
    ::dup2(output.raw(), STDOUT_FILENO);
    ::execv(options.luoctl.c_str(), argv.data());
    _exit(127);
  }
  return running;
}

luo::Result<nlohmann::json> finish(Running running, const std::string& what) {
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t got = 0; (got = ::read(running.output.raw(), buffer.data(), buffer.size())) > 0;)
    text.append(buffer.data(), static_cast<std::size_t>(got));
  int status = 0;
  ::waitpid(running.pid, &status, 0);
  if (status != 0) return luo::fail(ECHILD, "luoctl {}: wait status {}: {}", what, status, text);
  auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) return luo::fail(EBADMSG, "luoctl {} printed no JSON: {}", what, text);
  return json;
}

struct Seen {
  double blackout_ms;  ///< longest call of a client
  double command_ms;   ///< luoctl, from its start to its end
  nlohmann::json report;
};

/// Runs `luoctl update KIND` while a client that holds nothing asks for a session that does not exist.
luo::Result<Seen> watch(const ScaleOptions& options, const Side& side, const std::string& kind) {
  const Connection client = LUO_TRY(Connection::open(side.socket));
  const std::uint64_t began = now_ns();
  Running running = LUO_TRY(start(options, side, {"update", kind, "--timeout", fmt::to_string(options.timeout)}));
  std::uint64_t longest = 0;
  pollfd end{running.output.raw(), POLLIN, 0};
  do {
    const std::uint64_t asked = now_ns();
    if (const int result = luo_session_retrieve(client.get(), "there is none of this name"); result != -ENOENT)
      return luo_fail(result, "a call during the update");
    longest = std::max(longest, now_ns() - asked);
  } while (::poll(&end, 1, 0) == 0);
  // It prints when it has been answered: whatever is asked until then may have met the update, nothing later.
  const double command_ms = us_each(began, 1000);
  auto report = LUO_TRY(finish(std::move(running), "update " + kind));
  return Seen{static_cast<double>(longest) / 1e6, command_ms, std::move(report)};
}

luo::Result<> pin_process(pid_t pid, const cpu_set_t& where) {
  if (::sched_setaffinity(pid, sizeof where, &where) != 0) return luo::sys_fail("sched_setaffinity({})", pid);
  return {};
}

nlohmann::json rss_of(pid_t pid) {
  nlohmann::json sizes = nlohmann::json::object();
  std::ifstream status{fmt::format("/proc/{}/status", pid)};
  for (std::string line; std::getline(status, line);)
    for (const char* key : {"RssAnon", "RssFile", "RssShmem", "VmRSS"})
      if (line.starts_with(std::string{key} + ":"))
        sizes[key] = std::strtoull(line.c_str() + std::string_view{key}.size() + 1, nullptr, 10) * 1024;
  return sizes;
}

nlohmann::json summary(const std::vector<double>& values) {
  return {{"median", median(values)},
          {"min", *std::min_element(values.begin(), values.end())},
          {"max", *std::max_element(values.begin(), values.end())},
          {"all", values}};
}

}  // namespace

luo::Result<nlohmann::json> luoctl(const ScaleOptions& options, const Side& side, std::vector<std::string> args) {
  const std::string what = args.front();
  return finish(LUO_TRY(start(options, side, std::move(args))), what);
}

luo::Result<> pin(const ScaleOptions& options, Sides& sides, bool together) {
  if (options.processor < 0) return {};
  static const cpu_set_t before = [] {
    cpu_set_t set{};
    ::sched_getaffinity(0, sizeof set, &set);
    return set;
  }();
  cpu_set_t one{};
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(options.processor), &one);
  const cpu_set_t& where = together ? one : before;
  LUO_TRY(pin_process(0, where));
  for (Side& side : sides) {
    const auto status = LUO_TRY(luoctl(options, side, {"status"}));
    for (const char* process : {"keeper_pid", "worker_pid"})
      LUO_TRY(pin_process(status.at(process).get<pid_t>(), where));
  }
  return {};
}

luo::Result<nlohmann::json> memory_of(const ScaleOptions& options, const Side& side) {
  const auto status = LUO_TRY(luoctl(options, side, {"status"}));
  return nlohmann::json{{"arena", status.at("arena")},
                        {"worker", rss_of(status.at("worker_pid").get<pid_t>())},
                        {"keeper", rss_of(status.at("keeper_pid").get<pid_t>())},
                        {"descriptors", status.at("open_files")},
                        {"sessions", status.at("sessions")},
                        {"files", status.at("files")}};
}

luo::Result<> update_luod(const ScaleOptions& options, Sides& sides) {
  for (Side& side : sides) {
    const auto status = LUO_TRY(luoctl(options, side, {"status"}));
    const std::size_t descriptors = status.at("open_files").get<std::size_t>();
    BareProcess bare = LUO_TRY(BareProcess::start(descriptors));
    std::vector<double> blackouts, pauses, commands, running, ended;
    for (std::size_t round = 0; round < options.rounds; ++round) {
      const auto yardstick = LUO_TRY(bare.fork_and_exec());
      running.push_back(yardstick.running_ms);
      ended.push_back(yardstick.ended_ms);
      const Seen seen = LUO_TRY(watch(options, side, "luod"));
      blackouts.push_back(seen.blackout_ms);
      pauses.push_back(seen.report.at("pause_ms").get<double>());
      commands.push_back(seen.command_ms);
    }
    side.report["update_luod"] = {{"descriptors", descriptors},
                                  {"blackout_ms", summary(blackouts)},
                                  {"pause_ms", summary(pauses)},
                                  {"command_ms", summary(commands)},
                                  {"bare_running_ms", summary(running)},
                                  {"bare_ended_ms", summary(ended)},
                                  {"ratio", median(blackouts) / median(running)},
                                  {"ratio_to_ended", median(blackouts) / median(ended)}};
  }
  return {};
}

luo::Result<> update_simulated(const ScaleOptions& options, Sides& sides) {
  for (Side& side : sides) {
    const Seen seen = LUO_TRY(watch(options, side, "simulated"));
    side.connection.reset();  // luod has closed it: everything that it had has crossed
    side.held.clear();
    side.report["update_simulated"] = {
        {"blackout_ms", seen.blackout_ms}, {"command_ms", seen.command_ms}, {"report", seen.report}};
  }
  return {};
}

}  // namespace bench
