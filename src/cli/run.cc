// luoctl run.
#include "cli/commands.h"
#include "cli/private_luod.h"
#include "compat/launch.h"

namespace luo::cli {
namespace {

constexpr int kNotRun = 125;  // as env(1) and timeout(1) say it

}  // namespace

Outcome run_command(const Options& options) {
  auto reached = reach(options);  // for a good sentence before anything starts
  if (!reached) {
    Outcome outcome = failure(options, kUnreachable, reached.error());
    outcome.status = kNotRun;
    return outcome;
  }
  const std::string socket = reached->socket;
  reached = fail(ECANCELED, "");  // the supervisor has a connection of its own
  const auto ran = compat::run(socket, options.command);
  if (!ran) {
    Outcome outcome = failure(options, kFailed, Error{ran.error()}.during("run"));
    outcome.status = kNotRun;
    return outcome;
  }
  // stdout is the command's, also with --json.
  return {ran->status, {}, ran->note.empty() ? "" : fmt::format("luoctl: run {}: {}\n", options.command[0], ran->note)};
}

}  // namespace luo::cli
