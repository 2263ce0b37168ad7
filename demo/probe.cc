// luo-probe: a client of luod with sessions and files of its own. Asks a cheap question over and over
// and records how long each answer took; at the end every session and file must still be there.
#include <luo/luo.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "trace.h"

namespace demo {
namespace {

std::atomic<bool> g_stop{false};

struct Options {
  std::string socket;
  std::string name = "probe";
  std::string trace;
  unsigned sessions = 1, files = 4, interval_us = 0;
};

struct Session {
  std::string name;
  luo::Fd fd;
};

auto luo_fail(int result, const std::string& what) { return luo::fail(-result, "{}: {}", what, luo_last_error()); }

/// A session with `files` memfds of one page each, which nobody but luod holds afterwards.
luo::Result<Session> make_session(luo_connection* connection, const std::string& name, unsigned files) {
  const int fd = luo_session_create(connection, name.c_str());
  if (fd < 0) return luo_fail(fd, "create " + name);
  Session session{.name = name, .fd = luo::Fd::adopt(fd)};
  std::vector<luo::Fd> memfds;
  std::vector<int> numbers;
  for (unsigned i = 0; i < files; ++i) {
    memfds.push_back(luo::Fd::adopt(memfd_create("probe", MFD_CLOEXEC)));
    if (!memfds.back().valid()) return luo::sys_fail("memfd_create");
    if (::write(memfds.back().raw(), name.data(), name.size()) < 0) return luo::sys_fail("write to a memfd");
    numbers.push_back(memfds.back().raw());
  }
  std::vector<std::uint64_t> tokens(files);
  std::iota(tokens.begin(), tokens.end(), 1U);
  std::vector<int> errors(files);
  const int done =
      files == 0 ? 0 : luo_preserve_many(connection, fd, numbers.data(), tokens.data(), errors.data(), files);
  if (done < 0) return luo_fail(done, "preserve in " + name);
  if (static_cast<unsigned>(done) != files) return luo::fail(EIO, "preserve in {}: only {} of {}", name, done, files);
  return session;
}

luo::Result<> run(const Options& options) {
  luo_connection* raw = nullptr;
  if (const int result = luo_open(options.socket.empty() ? nullptr : options.socket.c_str(), &raw); result < 0)
    return luo_fail(result, "connect to luod");
  const std::unique_ptr<luo_connection, decltype(&luo_close)> connection{raw, &luo_close};
  TraceWriter trace = LUO_TRY(TraceWriter::open(options.trace));
  std::vector<Session> sessions;
  for (unsigned i = 0; i < options.sessions; ++i)
    sessions.push_back(LUO_TRY(make_session(raw, fmt::format("{}-{}", options.name, i), options.files)));
  fmt::print("{}\n", nlohmann::json{{"ready", true}}.dump());
  std::fflush(stdout);

  std::uint64_t calls = 0, failed = 0, files_lost = 0;
  nlohmann::json complaints = nlohmann::json::array();
  const auto complain = [&complaints](std::string text) {
    if (complaints.size() < 10) complaints.push_back(std::move(text));
  };
  const auto ask = [&](const Session& session) {
    char name[LUO_NAME_LENGTH];
    const int result = luo_session_get_name(raw, session.fd.raw(), name);
    ++calls;
    if (result == 0 && session.name == name) return true;
    ++failed;
    complain(result < 0 ? fmt::format("name of {}: {}", session.name, luo_last_error())
                        : fmt::format("{} is called {}", session.name, name));
    return false;
  };
  for (std::size_t turn = 0; !g_stop; ++turn) {
    const std::uint64_t start = now_ns();
    const bool right = ask(sessions[turn % sessions.size()]);
    LUO_TRY(trace.add({.start_ns = start,
                       .duration_ns = now_ns() - start,
                       .lane = 0,
                       .requests = 1,
                       .failed = static_cast<std::uint16_t>(right ? 0 : 1),
                       .role = Role::Probe,
                       .lost = 0}));
    if (options.interval_us > 0) ::usleep(options.interval_us);
  }
  LUO_TRY(trace.flush());
  for (const Session& session : sessions) {
    ask(session);
    const int there = luo_session_tokens(raw, session.fd.raw(), nullptr, 0);
    if (there < 0) complain(fmt::format("tokens of {}: {}", session.name, luo_last_error()));
    if (there != static_cast<int>(options.files))
      files_lost += options.files - static_cast<unsigned>(std::clamp(there, 0, static_cast<int>(options.files)));
  }
  const nlohmann::json answer{{"calls", calls},
                              {"failed_calls", failed},
                              {"files_lost", files_lost},
                              {"sessions", options.sessions},
                              {"files", std::uint64_t{options.sessions} * options.files},
                              {"complaints", complaints}};
  fmt::print("{}\n", answer.dump());
  return {};
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) {
  using namespace demo;
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;  // a descriptor for each session
  setrlimit(RLIMIT_NOFILE, &files);
  Options options;
  CLI::App app{"A client of luod that records how long each answer takes, until SIGTERM.", "luo-probe"};
  app.add_option("--socket", options.socket, "of luod (default: as for all programs)");
  app.add_option("--name", options.name, "of its sessions, with a number behind")->capture_default_str();
  app.add_option("--sessions", options.sessions)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--files", options.files, "memfds preserved in each session")->capture_default_str();
  app.add_option("--interval-us", options.interval_us, "between an answer and the next question")
      ->capture_default_str();
  app.add_option("--trace", options.trace, "file for one record of each call (appended)");
  CLI11_PARSE(app, argc, argv);
  struct sigaction stop {};
  stop.sa_handler = [](int) { g_stop = true; };
  sigaction(SIGTERM, &stop, nullptr);
  sigaction(SIGINT, &stop, nullptr);
  const luo::Result<> done = run(options);
  if (done) return 0;
  fmt::print(stderr, "luo-probe: {}\n", done.error());
  return 1;
}
