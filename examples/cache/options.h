// The command line of luo-cache.
#pragma once
#include <cstdint>
#include <string>
#include <variant>

namespace luo::cache {

struct Options {
  std::uint16_t port = 6390;
  std::string bind = "127.0.0.1";
  std::string unix_socket;  ///< empty: none
  std::string session = "cache";
  std::string luod;  ///< empty: libluo's default
  bool use_luod = true;
  bool supervise = false;
  std::uint64_t maxmemory = 0;
  int ready_fd = -1;  ///< gets "PORT\n" when requests are served
};

/// The options, or the exit status of a program that has said all (help, version, an error).
std::variant<Options, int> parse_options(int argc, char** argv);

/// "512mb", "1g", "1000": as Redis writes sizes (k, m, g: 1000; kb, mb, gb: 1024). False: it is none.
bool parse_size(const std::string& text, std::uint64_t& bytes) noexcept;

}  // namespace luo::cache
