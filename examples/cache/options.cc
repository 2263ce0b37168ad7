#include "cache/options.h"

#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <charconv>

namespace luo::cache {
namespace {

constexpr const char* kAbout =
    "A cache that speaks the Redis protocol and survives its own replacement: keys, values and client\n"
    "connections live on while the program is updated.\n";

constexpr const char* kExamples = R"(
Examples:
  luo-cache                                 serve 127.0.0.1:6390, kept by luod in session 'cache'
  redis-cli -p 6390 set greeting hello      talk to it with any Redis client
  luoctl update service cache -- luo-cache --maxmemory 1gb
                                            replace it under load: the new process takes over the keys
                                            and the connections, no client notices. It goes on listening
                                            where the old one did; other options are its own
  luo-cache --supervise                     be killed (kill -9) and go on: no client notices
  luo-cache --no-luo --port 0               alone, on a free port (printed), as a plain cache
  luo-cache --luod /tmp/luod.sock --session cache2 --port 6391
                                            a second one, kept by a luod of your own

`redis-cli -p 6390 info luo` shows how often it was handed over and how long the last time took.
Exit status: 0 stopped by a signal or handed over, 1 failed, 2 wrong usage.)";

}  // namespace

bool parse_size(const std::string& text, std::uint64_t& bytes) noexcept {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  if (error != std::errc{}) return false;
  std::string unit{end, text.data() + text.size()};
  for (char& c : unit)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
  constexpr std::pair<const char*, std::uint64_t> kUnits[] = {{"", 1},
                                                              {"b", 1},
                                                              {"k", 1000},
                                                              {"kb", 1ULL << 10},
                                                              {"m", 1'000'000},
                                                              {"mb", 1 << 20},
                                                              {"g", 1'000'000'000},
                                                              {"gb", 1ULL << 30},
                                                              {"t", 1'000'000'000'000},
                                                              {"tb", 1ULL << 40}};
  for (const auto& [name, factor] : kUnits)
    if (unit == name) return !__builtin_mul_overflow(bytes, factor, &bytes);
  return false;
}

std::variant<Options, int> parse_options(int argc, char** argv) {
  Options options;
  std::string maxmemory;
  bool alone = false;
  CLI::App app{kAbout, "luo-cache"};
  app.footer(kExamples);
  app.set_version_flag("--version", std::string{"luo-cache "} + LUO_CACHE_VERSION);
  app.add_option("--port", options.port, "TCP port, 0 for any free one")->capture_default_str();
  app.add_option("--bind", options.bind, "IPv4 or IPv6 address to listen on")->capture_default_str();
  app.add_option("--unixsocket", options.unix_socket, "listen on this Unix socket too")->type_name("PATH");
  app.add_option("--session", options.session, "name of the session at luod")->capture_default_str();
  app.add_option("--maxmemory", maxmemory, "refuse writes above this size: 512mb, 2gb; 0 for no limit")
      ->type_name("SIZE");
  auto* luod = app.add_option("--luod", options.luod, "luod's socket (default: $LUO_SOCKET, else /run/luo/luod.sock)")
                   ->type_name("SOCKET");
  app.add_flag("--no-luo", alone,
               "run without luod: an update loses everything, and so does a crash without --supervise")
      ->excludes(luod);
  app.add_flag("--supervise", options.supervise,
               "start again at once after a crash, with every connection; the process that was started waits for it");
  app.add_option("--ready-fd", options.ready_fd, "write the port and a newline to this descriptor when serving")
      ->type_name("N");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  options.use_luod = !alone;
  if (!maxmemory.empty() && (!parse_size(maxmemory, options.maxmemory) || options.maxmemory > (4ULL << 40))) {
    fmt::print(stderr, "luo-cache: --maxmemory {}: not a size up to 4tb; write it as 512mb or 2gb\n", maxmemory);
    return 2;
  }
  if (options.session.empty() || options.session.size() > 63) {
    fmt::print(stderr, "luo-cache: --session: a name has 1 to 63 bytes\n");
    return 2;
  }
  return options;
}

}  // namespace luo::cache
