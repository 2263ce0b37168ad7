// How the cache comes to its state: made new, taken over from the running one, or left by the side before.
#pragma once
#include <memory>

#include "cache/options.h"
#include "cache/server.h"

namespace luo::cache {

/// A server that is ready to run(). Errors say what the operator can do.
Result<std::unique_ptr<Server>> start_alone(const Options& options, Facts facts);
Result<std::unique_ptr<Server>> start_with_luod(const Options& options, Facts facts);

}  // namespace luo::cache
