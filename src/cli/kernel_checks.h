// What luoctl itself can say, before anything is disturbed, of a kernel that is to be started.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/render.h"
#include "kexec/target.h"

namespace luo::cli {

enum class Level { Ok, Warning, Error };

struct Check {
  std::string name;  ///< "command-line": for programs
  Level level = Level::Ok;
  std::string text;  ///< what was found
  std::string fix;   ///< what to do; may be empty
};

/// What this machine is.
struct Host {
  std::string machine;  ///< as uname(2) says
  std::uint32_t page_size = 0;
  bool has_initrd = false;  ///< its kernel was started with one; false also if that is not known
  bool loaded = false;      ///< a kernel is loaded for kexec already
  std::uint64_t room = 0;   ///< Bytes that the kernel can take for itself; 0: not known
  Result<kexec::StateFormats> formats = kexec::StateFormats{};  ///< that its kernel knows, or why that is not known
};
/// Asks the running kernel, but for `loaded`.
Host this_host();

/// What the operator has chosen.
struct Chosen {
  std::string kernel;  ///< path
  std::string command_line;
  bool is_running_line = false;  ///< it is that of the running kernel
  bool has_initrd = false;
  std::uint64_t initrd_size = 0;
};

std::vector<Check> check_kernel(const Chosen& chosen, const kexec::Target& target, const Host& host);

/// luod's checks, from its answer to QueryKind::Preflight. An error called "unclaimed" is a warning if
/// `drop_unclaimed`. EBADMSG: it is not what this luoctl understands.
Result<std::vector<Check>> checks_of(const nlohmann::json& preflight, bool drop_unclaimed);

/// A line for each, and one for what to do about it.
std::string render_checks(const std::vector<Check>& checks, Style style);
/// What luod says will be left behind, a line for each; empty if nothing.
std::string render_left_behind(const nlohmann::json& preflight);

nlohmann::json to_json(const std::vector<Check>& checks);
nlohmann::json to_json(const kexec::Target& target);
std::size_t errors_in(const std::vector<Check>& checks);

}  // namespace luo::cli
