// Where luod is found: one rule for luod, the library and luoctl.
#pragma once
#include <string>

#include "base/error.h"

namespace luo::wire {

/// The directory that holds luod's socket and, unless told otherwise, its state: /run/luo for root,
/// $XDG_RUNTIME_DIR/luo for others. ENOENT: XDG_RUNTIME_DIR is not set.
Result<std::string> runtime_folder();

/// $LUO_SOCKET if it is set and not empty, else luod.sock in runtime_folder().
Result<std::string> socket_path();

}  // namespace luo::wire
