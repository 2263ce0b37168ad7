// Where luod is, and with --private a luod of one's own.
#pragma once
#include <string>

#include "base/error.h"
#include "cli/options.h"

namespace luo::cli {

/// The socket of the luod that the options name. With --private one is started there, in the background, with its
/// output in luod.log, if none runs (except to stop it); returns when it serves. Errors: those of wire::socket_path();
/// the directory or luod cannot be made or started, with luod's last words.
Result<std::string> socket_of(const Options& options);

}  // namespace luo::cli
