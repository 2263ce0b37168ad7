// luo-compat: takes steps that it is told on stdin, and prints what each took as one line of JSON: µs of every call.
// run.py starts several, some of them under `luoctl run`, and lets them take turns.
#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <deque>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "../client.h"
#include "steps.h"

extern char** environ;

namespace bench {
namespace {

using luo::Fd;
using luo::Result;
using Samples = std::map<std::string, std::vector<double>>;

class Runner {
 public:
  explicit Runner(std::unique_ptr<Luo> luo) : luo_{std::move(luo)} {}

  Result<nlohmann::json> step(std::istringstream words) {
    Samples samples;
    std::string what;
    words >> what;
    if (what == "create" || what == "pass") LUO_TRY(create(words, what == "create", samples));
    else if (what == "retrieve") LUO_TRY(retrieve(words, samples));
    else if (what == "finish") LUO_TRY(finish(words, samples));
    else if (what == "open") LUO_TRY(open(words, samples));
    else if (what == "syscall") LUO_TRY(system_call(words, samples));
    else if (what == "time") LUO_TRY(time_command(words, samples));
    else return luo::fail(EINVAL, "'{}' is no step", what);
    return nlohmann::json(samples);
  }

 private:
  template <class Do>
  static auto timed(std::vector<double>& samples, Do&& action) {
    const std::uint64_t began = now_ns();
    auto result = action();
    samples.push_back(us_each(began, 1));
    return result;
  }

  /// create|pass FROM TO FILES: sessions with those numbers. pass: they are given up again.
  Result<> create(std::istringstream& words, bool keep, Samples& samples) {
    std::size_t from = 0, to = 0, files = 0;
    words >> from >> to >> files;
    for (std::size_t i = from; i < to; ++i) {
      Fd session = LUO_TRY(timed(samples["create"], [&] { return luo_->create(fmt::format("s{}", i)); }));
      for (std::size_t token = 1; token <= files; ++token) {
        const Fd file = Fd::adopt(::memfd_create("compat", MFD_CLOEXEC));
        if (!file.valid()) return luo::sys_fail("memfd_create");
        LUO_TRY(timed(samples["preserve"], [&] { return luo_->preserve(session, file, token); }));
      }
      LUO_TRY(timed(samples["get_name"], [&] { return luo_->get_name(session); }));
      if (keep) sessions_.push_back(std::move(session));
    }
    return {};
  }

  /// retrieve FROM TO FILES
  Result<> retrieve(std::istringstream& words, Samples& samples) {
    std::size_t from = 0, to = 0, files = 0;
    words >> from >> to >> files;
    for (std::size_t i = from; i < to; ++i) {
      Fd session = LUO_TRY(timed(samples["retrieve_session"], [&] { return luo_->retrieve(fmt::format("s{}", i)); }));
      for (std::size_t token = 1; token <= files; ++token)
        (void)LUO_TRY(timed(samples["retrieve"], [&] { return luo_->retrieve_file(session, token); }));
      sessions_.push_back(std::move(session));
    }
    return {};
  }

  /// finish COUNT: of those retrieved last; they are closed, too.
  Result<> finish(std::istringstream& words, Samples& samples) {
    std::size_t count = 0;
    words >> count;
    for (; count > 0 && !sessions_.empty(); --count) {
      LUO_TRY(timed(samples["finish"], [&] { return luo_->finish(sessions_.back()); }));
      sessions_.pop_back();
    }
    return {};
  }

  /// open COUNT NAME FLAGS PATH: errors count as well, most opens of a compiler are of files that are not there.
  static Result<> open(std::istringstream& words, Samples& samples) {
    std::size_t count = 0;
    std::string name, path;
    int flags = 0;
    words >> count >> name >> flags >> path;
    for (; count > 0; --count)
      (void)timed(samples[name], [&] { return Fd::adopt(::open(path.c_str(), flags | O_CLOEXEC)); });
    return {};
  }

  static Result<> system_call(std::istringstream& words, Samples& samples) {
    std::size_t count = 0;
    words >> count;
    for (; count > 0; --count) (void)timed(samples["getppid"], [] { return ::syscall(SYS_getppid); });
    return {};
  }

  /// time COMMAND…: how long it runs, and the processor time that it and its children take.
  static Result<> time_command(std::istringstream& words, Samples& samples) {
    std::deque<std::string> argv;
    for (std::string word; words >> word;) argv.push_back(word);
    std::vector<char*> raw;
    for (std::string& word : argv) raw.push_back(word.data());
    raw.push_back(nullptr);
    const std::uint64_t began = now_ns();
    pid_t child = -1;
    const int error = ::posix_spawnp(&child, raw[0], nullptr, nullptr, raw.data(), environ);
    if (error != 0) return luo::fail(error, "start {}", argv.front());
    int status = 0;
    rusage used{};
    while (::wait4(child, &status, 0, &used) < 0) {}
    samples["wall_us"].push_back(us_each(began, 1));
    const auto us = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_usec);
    };
    samples["processor_us"].push_back(us(used.ru_utime) + us(used.ru_stime));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return luo::fail(ECHILD, "{}: status {}", argv.front(), status);
    return {};
  }

  std::unique_ptr<Luo> luo_;
  std::vector<Fd> sessions_;
};

Result<> run(const std::string& device, const std::string& socket, bool trap, bool sync_wakeup) {
  rlimit numbers{};
  ::getrlimit(RLIMIT_NOFILE, &numbers);
  numbers.rlim_cur = numbers.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &numbers);
  if (trap) LUO_TRY(trap_getppid(sync_wakeup));
  std::unique_ptr<Luo> luo;
  if (!device.empty()) luo = LUO_TRY(by_ioctl(device));
  else if (!socket.empty()) luo = LUO_TRY(by_libluo(socket));
  Runner runner{std::move(luo)};
  for (std::string line; std::getline(std::cin, line);) {
    auto done = runner.step(std::istringstream{line});
    if (!done) return luo::fail(done.error().code, "{}: {}", line, done.error().what);
    std::cout << done->dump() << std::endl;
  }
  return {};
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  CLI::App app{"luo-compat: steps of a program that knows /dev/liveupdate, or libluo, timed"};
  std::string device, socket;
  bool trap = false, sync_wakeup = false;
  app.add_option("--device", device, "by ioctl on it");
  app.add_option("--socket", socket, "through libluo");
  app.add_flag("--trap", trap, "getppid(2) is trapped and answered at once");
  app.add_flag("--sync-wakeup", sync_wakeup, "and that with SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP");
  CLI11_PARSE(app, argc, argv);
  if (const auto done = bench::run(device, socket, trap, sync_wakeup); !done) {
    fmt::print(stderr, "luo-compat: {}\n", done.error().what);
    return 2;
  }
  return 0;
}
