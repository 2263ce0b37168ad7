// How the cache comes to its state: made new, taken over from the running one, left by the side before, or by one that
// was killed.
#pragma once
#include <memory>

#include "cache/options.h"
#include "cache/server.h"
#include "cache/supervisor.h"

namespace luo::cache {

/// A server that is ready to run(). Errors say what the operator can do.
Result<std::unique_ptr<Server>> start_alone(const Options& options, Facts facts);
/// `shown`: see Custodian::connect().
Result<std::unique_ptr<Server>> start_with_luod(const Options& options, Facts facts, std::atomic<int>* shown);
/// Under a supervisor, after the one before has died: all is in our descriptor table. `inherited` was there before it.
Result<std::unique_ptr<Server>> start_again(const Options& options, Facts facts, Heritage& heritage,
                                            const std::vector<int>& inherited);

/// What is listened on, which a successor's own options do not change.
Result<> note_addresses(Facts& facts, const Listeners& listeners);
/// The tokens in a session.
Result<std::vector<std::uint64_t>> tokens_of(luo_connection* luod, int session);

}  // namespace luo::cache
