// What each of luoctl's commands does.
#pragma once
#include <string>

#include "cli/conversation.h"
#include "cli/options.h"
#include "cli/render.h"

namespace luo::cli {

/// What is left to print, and the exit status.
struct Outcome {
  int status = kDone;  ///< ExitStatus, or that of the command of `luoctl run`
  std::string out, err;
};

/// Does what was asked; may take as long as an update does. `style` is for stdout.
Outcome run(const Options& options, Style style);

// --- shared by the commands ------------------------------------------------------------------------

/// `goal: cause: errno's text`, what to try, and a program's last words; as JSON if that was asked for.
Outcome failure(const Options& options, ExitStatus status, const Error& error, std::string_view last_words = {});
/// For an error that ended the conversation, which has its status_of().
Outcome failure(const Options& options, const Error& error, std::string_view last_words = {});

/// luod is gone, or it is something else.
ExitStatus status_of(const Error& error);

struct Reached {
  std::string socket;
  client::Connection connection;
};
/// Connects to the luod that the options name.
Result<Reached> reach(const Options& options);

/// The error in a report, if it has one, else luod's answer as it came.
Error error_in(client::Answer& answer, const nlohmann::json* report);

Outcome update_service(const Options& options);
Outcome update_kernel(const Options& options, Style style);
Outcome run_command(const Options& options);
Outcome inspect(const Options& options, Style style);

}  // namespace luo::cli
