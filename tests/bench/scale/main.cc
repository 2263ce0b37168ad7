// luo-scale: what each call costs beside many sessions and files and beside a tenth of them, how long the updates
// of as many take, and luod's memory. Prints one JSON object; run.py starts the daemons and judges.
#include "scale.h"

#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <numeric>

namespace bench {
namespace {

constexpr std::size_t kPoints = 40;  // of a curve

/// Sessions and files that both luods must hold now, else nothing of this is true.
luo::Result<> expect(const ScaleOptions& options, const Sides& sides, const char* where) {
  for (const Side& side : sides) {
    const auto status = LUO_TRY(luoctl(options, side, {"status"}));
    if (status.at("files") != side.all_files() || status.at("sessions").at(where) != side.sessions)
      return luo::fail(EIO, "{} sessions with {} files should be {}, but there are {} with {}", side.sessions,
                       side.all_files(), where, status.at("sessions").dump(), status.at("files").dump());
  }
  return {};
}

luo::Result<nlohmann::json> measure(const ScaleOptions& options) {
  Sides sides{Side{.socket = options.small,
                   .sessions = options.sessions / 10,
                   .files = options.files,
                   .one_by_one = options.one_by_one},
              Side{.socket = options.large,
                   .sessions = options.sessions,
                   .files = options.files,
                   .one_by_one = options.one_by_one}};
  const auto remember_memory = [&](const char* when) -> luo::Result<> {
    for (Side& side : sides) side.report["memory"][when] = LUO_TRY(memory_of(options, side));
    return {};
  };
  LUO_TRY(remember_memory("nothing"));
  LUO_TRY(pin(options, sides, true));
  LUO_TRY(fill(sides));
  LUO_TRY(pin(options, sides, false));
  LUO_TRY(expect(options, sides, "outgoing"));
  LUO_TRY(remember_memory("preserved"));
  LUO_TRY(update_luod(options, sides));
  LUO_TRY(remember_memory("after_update_luod"));
  LUO_TRY(update_simulated(options, sides));
  LUO_TRY(expect(options, sides, "incoming"));
  LUO_TRY(pin(options, sides, true));
  LUO_TRY(empty(sides));
  LUO_TRY(pin(options, sides, false));
  for (Side& side : sides) side.held.clear();
  LUO_TRY(remember_memory("finished"));

  nlohmann::json calls = nlohmann::json::object();
  auto& [small, large] = sides;
  for (const auto& [name, of_large] : large.samples) {
    const auto few = small.samples.at(name).json(), many = of_large.json();
    calls[name] = {{"small", few},
                   {"large", many},
                   {"ratio", many.at("median_us").get<double>() / few.at("median_us").get<double>()},
                   {"ratio_of_means", many.at("mean_us").get<double>() / few.at("mean_us").get<double>()}};
  }
  const auto side_json = [](const Side& side) {
    nlohmann::json json = side.report;
    json["sessions"] = side.sessions;
    json["files"] = side.all_files();
    return json;
  };
  return nlohmann::json{{"sessions", large.sessions},
                        {"files_in_each", options.files},
                        {"calls", std::move(calls)},
                        {"small", side_json(small)},
                        {"large", side_json(large)}};
}

}  // namespace

nlohmann::json Samples::json() const {
  std::vector<double> sorted = us;
  std::sort(sorted.begin(), sorted.end());
  nlohmann::json curve = nlohmann::json::array();
  const std::size_t points = std::min(kPoints, us.size());
  for (std::size_t i = 0; i < points; ++i) {
    const std::size_t from = us.size() * i / points, to = us.size() * (i + 1) / points;
    using Offset = std::vector<double>::difference_type;
    curve.push_back({held[(from + to) / 2],
                     median({us.begin() + static_cast<Offset>(from), us.begin() + static_cast<Offset>(to)})});
  }
  return {{"samples", us.size()},
          {"mean_us", std::accumulate(us.begin(), us.end(), 0.0) / static_cast<double>(us.size())},
          {"median_us", median(us)},
          {"p99_us", sorted[sorted.size() * 99 / 100]},
          {"max_us", sorted.back()},
          {"curve", std::move(curve)}};
}

}  // namespace bench

int main(int argc, char** argv) {
  using namespace bench;
  be_the_executed({argv, static_cast<std::size_t>(argc)});
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);

  ScaleOptions options;
  CLI::App app{"Measures two luods, of which one holds ten times as much; prints one JSON object.", "luo-scale"};
  app.add_option("--small", options.small, "socket of the luod for a tenth")->required();
  app.add_option("--large", options.large, "socket of the luod for all")->required();
  app.add_option("--luoctl", options.luoctl, "the program, with luod beside it")->required();
  app.add_option("--sessions", options.sessions)->capture_default_str();
  app.add_option("--files", options.files, "in each session")->capture_default_str();
  app.add_option("--rounds", options.rounds, "of update luod")->capture_default_str();
  app.add_option("--one-by-one", options.one_by_one, "the files of each so-manieth session")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--timeout", options.timeout, "of each update, in seconds")->capture_default_str();
  app.add_option("--processor", options.processor, "measure calls on this one alone");
  CLI11_PARSE(app, argc, argv);
  if (options.sessions < 20 || options.files < 1 || options.rounds < 1) {
    fmt::print(stderr, "luo-scale: at least 20 sessions, 1 file and 1 round are needed\n");
    return 2;
  }
  const auto result = measure(options);
  if (!result) {
    fmt::print(stderr, "luo-scale: {}\n", result.error());
    return 1;
  }
  fmt::print("{}\n", result->dump());
  return 0;
}
