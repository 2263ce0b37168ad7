// luo-verify: the clients of the demonstration. Knows what every answer must be, records how long
// each took, and loses nothing: not a request, not a key, not a connection.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "lane.h"

namespace demo {
namespace {

std::atomic<bool> g_stop{false};

struct Options {
  std::uint16_t port = 6379;
  DataSet data{.keys = 262144, .value_bytes = 1024};
  std::string trace;
  unsigned closed = 4, pipelined = 2, fresh = 1, idle = 16;
  unsigned depth = 16;
  unsigned pause_us = 0;
};

void print(const nlohmann::json& answer) { fmt::print("{}\n", answer.dump()), std::fflush(stdout); }

/// Sets every key to its version 0, pipelined.
luo::Result<> load(const Options& options) {
  constexpr std::uint32_t kBatch = 128;
  RespClient client = LUO_TRY(RespClient::connect(options.port));
  std::string output, key, value;
  Reply reply;
  const std::uint64_t began = now_ns();
  for (std::uint32_t from = 0; from < options.data.keys; from += kBatch) {
    const std::uint32_t to = std::min(options.data.keys, from + kBatch);
    output.clear();
    for (std::uint32_t i = from; i < to; ++i) {
      DataSet::key_name(i, key);
      options.data.value(i, 0, value);
      RespClient::encode(output, {"SET", key, value});
    }
    LUO_TRY_DURING("load", client.send(output));
    for (std::uint32_t i = from; i < to; ++i) {
      LUO_TRY_DURING("load", client.receive(reply));
      if (reply.kind != Reply::Kind::Status) return luo::fail(EIO, "load: SET of key {}: {}", i, reply.text);
    }
  }
  print({{"keys", options.data.keys}, {"seconds", static_cast<double>(now_ns() - began) / 1e9}});
  return {};
}

nlohmann::json as_json(const Totals& totals) {
  return {{"requests", totals.requests}, {"failed_requests", totals.failed}, {"wrong_values", totals.wrong},
          {"keys_lost", totals.lost},    {"resets", totals.resets},          {"complaints", totals.complaints}};
}

/// Connections that do nothing until the end, and must still be there then.
luo::Result<std::vector<RespClient>> connect_idle(const Options& options) {
  std::vector<RespClient> idle;
  for (unsigned i = 0; i < options.idle; ++i) {
    idle.push_back(LUO_TRY(RespClient::connect(options.port)));
    LUO_TRY_DURING("idle connection", idle.back().call({"PING"}));
  }
  return idle;
}

void check_idle(std::vector<RespClient>& idle, Totals& totals) {
  for (RespClient& client : idle) {
    ++totals.requests;
    const auto reply = client.call({"PING"});
    if (reply && reply->text == "PONG") continue;
    ++totals.failed;
    ++totals.resets;
    totals.complain(reply ? "an idle connection: " + reply->text : "an idle connection: " + to_string(reply.error()));
  }
}

/// What all lanes incremented together must be what was acknowledged.
luo::Result<> check_shared(const Options& options, Totals& totals) {
  RespClient client = LUO_TRY(RespClient::connect(options.port));
  const Reply reply = LUO_TRY(client.call({"GET", Lane::kSharedCounter}));
  std::uint64_t found = 0;
  if (reply.kind == Reply::Kind::Bulk) found = std::strtoull(reply.text.c_str(), nullptr, 10);
  ++totals.requests;
  if (found >= totals.shared_incr && found <= totals.shared_incr + totals.shared_maybe) return {};
  ++totals.failed;
  ++totals.wrong;
  totals.complain(fmt::format("{} is {}, acknowledged were {}", Lane::kSharedCounter, found, totals.shared_incr));
  return {};
}

/// All clients at once until SIGTERM, then a look at every key.
luo::Result<> run(const Options& options) {
  std::vector<std::uint32_t> versions(options.data.keys, 0);
  const unsigned count = options.closed + options.pipelined + options.fresh;
  if (count == 0 || options.data.keys < count) return luo::fail(EINVAL, "more clients than keys, or none");
  {
    RespClient client = LUO_TRY(RespClient::connect(options.port));
    LUO_TRY(client.call({"DEL", Lane::kSharedCounter}));
    for (unsigned i = 0; i < count; ++i) LUO_TRY(client.call({"DEL", fmt::format("demo:count:{}", i)}));
  }
  std::vector<RespClient> idle = LUO_TRY(connect_idle(options));
  std::vector<Lane> lanes;
  lanes.reserve(count);
  for (unsigned i = 0; i < count; ++i) {
    const Role role = i < options.closed                       ? Role::Closed
                      : i < options.closed + options.pipelined ? Role::Pipelined
                                                               : Role::Fresh;
    const LaneOptions lane{.port = options.port,
                           .role = role,
                           .number = static_cast<std::uint16_t>(i),
                           .lanes = static_cast<std::uint16_t>(count),
                           .depth = role == Role::Pipelined ? options.depth : 1,
                           .pause_us = options.pause_us};
    lanes.emplace_back(lane, options.data, versions, LUO_TRY(TraceWriter::open(options.trace)));
  }
  print({{"ready", true}});

  std::vector<luo::Result<>> ended(count);
  {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < count; ++i)
      threads.emplace_back([&lane = lanes[i], &result = ended[i]] { result = lane.run(g_stop); });
  }
  for (auto& result : ended) LUO_TRY(std::move(result));

  {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < count; ++i)
      threads.emplace_back([&lane = lanes[i], &result = ended[i]] { result = lane.check_all(); });
  }
  Totals totals;
  for (const Lane& lane : lanes) totals.add(lane.totals());
  for (auto& result : ended) {
    if (result) continue;
    ++totals.failed;
    totals.complain(to_string(result.error()));
  }
  check_idle(idle, totals);
  LUO_TRY(check_shared(options, totals));
  print(as_json(totals));
  return {};
}

/// What a client sees that waits for a server to come back: one line for each outage, from the
/// start of the first request that failed to the first right answer.
luo::Result<> watch(const Options& options) {
  TraceWriter trace = LUO_TRY(TraceWriter::open(options.trace));
  RespClient client = LUO_TRY(RespClient::connect(options.port));
  std::string key, value;
  std::uint64_t requests = 0, failed = 0, outage = 0, wrong = 0, lost = 0;
  std::minstd_rand random;
  bool connected = true;
  print({{"ready", true}});
  while (!g_stop) {
    const auto number = static_cast<std::uint32_t>(random() % options.data.keys);
    DataSet::key_name(number, key);
    options.data.value(number, 0, value);
    const std::uint64_t start = now_ns();
    if (!connected) {
      auto again = RespClient::connect(options.port);
      connected = again.has_value();
      if (connected) client = std::move(*again);
    }
    luo::Result<Reply> reply = luo::fail(ECONNREFUSED, "not connected");
    if (connected) reply = client.call({"GET", key});
    connected = reply.has_value();
    // "-LOADING" is an answer, but not to the question. A wrong value is one, and is counted.
    const bool answered = reply && reply->kind == Reply::Kind::Bulk;
    if (reply && reply->kind == Reply::Kind::Nil) ++lost;
    if (answered && reply->text != value) ++wrong;
    ++requests;
    if (!answered) ++failed;
    const std::uint64_t end = now_ns();
    LUO_TRY(trace.add({.start_ns = start,
                       .duration_ns = end - start,
                       .lane = 0,
                       .requests = 1,
                       .failed = static_cast<std::uint16_t>(answered ? 0 : 1),
                       .role = Role::Closed,
                       .lost = 0}));
    if (!answered && outage == 0) outage = start;
    if (answered && outage != 0) {
      print({{"outage_from_ns", outage}, {"outage_to_ns", end}});
      outage = 0;
    }
    if (!answered) ::usleep(500);
  }
  LUO_TRY(trace.flush());
  print({{"requests", requests}, {"failed_requests", failed}, {"wrong_values", wrong}, {"keys_lost", lost}});
  return {};
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) {
  using namespace demo;
  Options options;
  CLI::App app{"Clients of a RESP server that know what every answer must be.", "luo-verify"};
  app.add_option("--port", options.port, "of the server, on 127.0.0.1")->capture_default_str();
  app.add_option("--keys", options.data.keys, "in the data set")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--value", options.data.value_bytes, "bytes in each value")->capture_default_str();
  app.add_option("--trace", options.trace, "file for one record of each request (appended)");
  app.require_subcommand(1);
  auto* load_command = app.add_subcommand("load", "set every key of the data set");
  auto* run_command = app.add_subcommand("run", "SET, GET and INCR until SIGTERM, then check every key");
  run_command->add_option("--closed", options.closed, "clients that wait for each answer")->capture_default_str();
  run_command->add_option("--pipelined", options.pipelined, "clients that send batches")->capture_default_str();
  run_command->add_option("--fresh", options.fresh, "clients that connect for each request")->capture_default_str();
  run_command->add_option("--idle", options.idle, "connections that only have to be alive at the end")
      ->capture_default_str();
  run_command->add_option("--depth", options.depth, "of a batch")->capture_default_str()->check(CLI::Range(1, 1024));
  run_command->add_option("--pause-us", options.pause_us, "between two requests")->capture_default_str();
  auto* watch_command = app.add_subcommand("watch", "GET until SIGTERM, through outages, and say how long they were");
  for (auto* command : {load_command, run_command, watch_command}) command->fallthrough();
  CLI11_PARSE(app, argc, argv);

  struct sigaction stop {};
  stop.sa_handler = [](int) { g_stop = true; };
  sigaction(SIGTERM, &stop, nullptr);
  sigaction(SIGINT, &stop, nullptr);

  const luo::Result<> done = load_command->parsed()  ? load(options)
                             : run_command->parsed() ? run(options)
                                                     : watch(options);
  if (done) return 0;
  fmt::print(stderr, "luo-verify: {}\n", done.error());
  return 1;
}
