// File-lifecycle-bound state (FLB): what several files need together, of one handler or of several, such as the
// tables of an IOMMU behind many devices. It begins with the first file that is preserved and ends with the last, on
// both sides of an update. What has to cross is one number, `data` (an address in the arena, an index, a token);
// `object` is this process's own view of it, and is made again by each process that needs it.
#pragma once
#include <cstdint>
#include <functional>
#include <string_view>

#include "base/error.h"
#include "base/strong.h"

namespace luo {

struct KeptFile;
class Handler;

/// Called on the loop thread, one call at a time; outlives the engine.
///
///   first file preserved      preserve()             → data, object
///   last of them given up     unpreserve()
///   the other side begins     (nothing; data has crossed)
///   somebody needs the object retrieve(data)         → object; once, and an error is remembered
///   last of them finished     finish(data, object)   → after retrieve(), even if nobody had asked for it
///
/// A luod that was restarted calls reattach() or retrieve() again for what its predecessor had; as those of
/// handlers, unpreserve and finish may come again after a crash in the middle of the step they belong to.
class Flb {
 public:
  struct State {
    std::uint64_t data = 0;
    void* object = nullptr;  ///< nullptr: it could not be made
  };
  virtual std::string_view name() const noexcept = 0;  ///< constant, 1..47 bytes, with a version: "iommu-v1"
  virtual Result<State> preserve() = 0;                ///< an error refuses the file and leaves nothing
  virtual void unpreserve(const State& state) noexcept = 0;
  virtual Result<void*> retrieve(std::uint64_t data) = 0;
  virtual void finish(const State& state) noexcept = 0;
  /// The object of what this side has preserved, in a luod that was restarted or updated.
  virtual Result<void*> reattach(std::uint64_t data) { return retrieve(data); }
  /// What this side has preserved crosses: this process's object of it is not needed any more. (After a kexec
  /// there is no such process.)
  virtual void forget(void* object) noexcept { (void)object; }

 protected:
  ~Flb() = default;  // never deleted through this type
};

/// How handlers and FLBs reach what is kept. May be used in every callback of theirs except that an FLB does not ask
/// for itself in its own. Each successful get is paired with a put; the state does not end while somebody has it.
class FlbAccess {
 public:
  /// ENOENT: no file of its handlers is preserved (or being preserved: FLBs come first), or it has no object.
  virtual Result<void*> get_outgoing(const Flb& flb) = 0;
  virtual void put_outgoing(const Flb& flb) noexcept = 0;
  /// Also before anybody has retrieved a session. ENOENT: none came in; ENODATA: it was finished; the remembered
  /// errno of retrieve().
  virtual Result<void*> get_incoming(const Flb& flb) = 0;
  virtual void put_incoming(const Flb& flb) noexcept = 0;
  /// What came in for a handler, retrieved or not, in order of sessions and preservation.
  virtual void for_each_incoming(const Handler& handler,
                                 const std::function<void(std::string_view session, const KeptFile&)>& visit) const = 0;

 protected:
  ~FlbAccess() = default;
};

}  // namespace luo
