// What luod's processes do when operator new finds no memory (ADR 0017). It never throws in luod.
//
// A worker ends at once, wherever it is, as if it had been killed there: the next one begins with an empty heap, takes
// back what was half-done, and answers ENOMEM to the request that was under work. The keeper, and a worker that guards
// an update of luod, may be the last ones to have what is preserved: they wait until there is memory.
#pragma once
#include "daemon/state.h"

namespace luo::daemon {

void end_when_out_of_memory() noexcept;   ///< of a worker; said once, at its start
void wait_when_out_of_memory() noexcept;  ///< of the keeper and the guard

/// While it lives, and until no_longer_under_work(), a lack of memory in this thread is blamed on the peer's request:
/// the first one in its queue, so it is to be left before that one is consumed, or the record goes.
class UnderWork {
 public:
  explicit UnderWork(PeerRec& peer) noexcept;
  ~UnderWork();
  UnderWork(const UnderWork&) = delete;
  UnderWork& operator=(const UnderWork&) = delete;
};
void no_longer_under_work() noexcept;
/// Likewise, if it is this peer's.
void no_longer_under_work(const PeerRec& peer) noexcept;

}  // namespace luo::daemon
