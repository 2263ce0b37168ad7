#include "cli/private_luod.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "cli/child.h"
#include "sys/packet_socket.h"
#include "wire/paths.h"

namespace luo::cli {
namespace {

using std::chrono::milliseconds;

/// The luod beside luoctl, else the one in PATH.
std::string luod_program() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto beside = self.parent_path() / "luod";
  return !error && ::access(beside.c_str(), X_OK) == 0 ? beside.string() : "luod";
}

Result<std::string> start_in(const std::string& folder, const std::string& handlers) {
  std::string socket = folder + "/luod.sock";
  if (connect_packets(socket)) return socket;
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return sys_fail("make the directory of a private luod, '{}'", folder);
  const Log log = LUO_TRY_DURING("start a private luod", open_log(folder + "/luod.log", 0, socket, "luod"));
  const Program program{
      .argv = {luod_program(), "--state-dir", folder, "--socket", socket, "--handlers", handlers, "--medium", "exec"},
      .environment = {}};
  const Child child = LUO_TRY_DURING("start a private luod", start_detached(program, log));
  for (;;) {
    if (connect_packets(socket)) return socket;
    if (!ends_within(child, milliseconds{2})) continue;
    if (connect_packets(socket)) return socket;  // somebody else was faster
    const std::string how = how_it_ended(child), words = last_words(log);
    return fail(ECHILD, "start a private luod in '{}': it {}{}{}", folder, how, words.empty() ? "" : ": ", words);
  }
}

}  // namespace

Result<std::string> socket_of(const Options& options) {
  if (options.private_folder.empty()) {
    if (options.socket.empty()) return wire::socket_path();
    return options.socket;
  }
  std::error_code error;
  const std::string folder = std::filesystem::absolute(options.private_folder, error).lexically_normal().string();
  if (error) return fail(error.value(), "find the directory '{}'", options.private_folder);
  if (options.action == Action::Stop) return folder + "/luod.sock";
  return start_in(folder, options.private_handlers);
}

}  // namespace luo::cli
