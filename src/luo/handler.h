// A handler knows one kind of file. No sockets, processes or clocks here; a handler looks only at the
// descriptor it is given.
#pragma once
#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/strong.h"
#include "luo/flb.h"

namespace luo {

/// One fstat per file, shared by all who ask.
struct FileInfo {
  int fd;
  struct stat st;
};

/// Which file this is, for "the same file twice is EBUSY". Two files are the same if `group` and `object`
/// are equal and, where `per_open_file` is set (kinds whose objects share an inode, as eventfd does, or
/// whose ends do, as a pipe's), kcmp(2) says that they are one open file.
struct Identity {
  std::uint64_t group;   ///< st_dev
  std::uint64_t object;  ///< st_ino
  bool per_open_file;
};

/// What a handler remembers of a file. Lies in the arena, fixed width, host byte order.
using HandlerData = std::array<std::uint64_t, 4>;

/// A file that luod holds. `fd` is ours; the handler neither closes nor maps it.
struct KeptFile {
  int fd;
  Token token;
  HandlerData data;
};

/// Called on the loop thread, one call at a time; outlives the engine. Which callbacks run in which order:
/// docs/architecture.md, Lifecycle (as in Linux 7.3). unpreserve, unfreeze and finish are called
/// before the step that they belong to is committed: after a crash in between, or if the step is abandoned,
/// they are called again for the same file. A handler that starts a program marks the child's descriptors first
/// (close_range(2), CLOSE_RANGE_CLOEXEC): what is preserved goes over every exec.
class Handler {
 public:
  virtual std::string_view name() const noexcept = 0;  ///< constant, 1..47 bytes, with a version: "memfd-v1"
  virtual bool can_preserve(const FileInfo& file) const noexcept = 0;
  /// Whether this is surely a file whose poll(2) waits for nobody (a FUSE server answers polls). Of a batch of
  /// these one poll tells the O_PATH descriptors from the rest. A function of `file.st` alone.
  virtual bool can_be_polled(const FileInfo& file) const noexcept {
    (void)file;
    return false;
  }
  virtual Identity identity(const FileInfo& file) const noexcept {
    return {static_cast<std::uint64_t>(file.st.st_dev), static_cast<std::uint64_t>(file.st.st_ino), false};
  }
  /// The heavy step, while the service runs. An error refuses the file and leaves nothing.
  /// May be asked again for what it has taken: the step that it belongs to may be given up, with a batch of which
  /// another file needs time or with a worker that is killed.
  /// EINPROGRESS: later; the request is repeated, with the same session and token, when the handler has
  /// called the waker that the engine's owner gave it. Nothing was changed meanwhile.
  virtual Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) = 0;
  /// `wake` may be called from any thread, at any time until the process ends, when a preserve that answered
  /// EINPROGRESS can be repeated. Called once, before any other call.
  virtual void set_waker(const std::function<void()>& wake) { (void)wake; }
  /// `access` is valid until the process ends. Called once, after the engine has opened, before anything is served.
  virtual void set_flbs(FlbAccess& access) { (void)access; }
  virtual void unpreserve(const KeptFile& file) noexcept = 0;
  /// Last, light step; may replace the data. No allocation that can fail late, bounded time.
  virtual Result<HandlerData> freeze(const KeptFile& file) { return file.data; }
  virtual void unfreeze(const KeptFile&) noexcept {}
  /// The file was another system's, and is here as `file` now, another inode of another device: what is remembered of
  /// it from now on. Before any other call for it on this side.
  virtual HandlerData arrive(const FileInfo& file, const HandlerData& before) noexcept {
    (void)file;
    return before;
  }
  /// Checks that what came back is what was preserved. An error is remembered and given again.
  virtual Result<> retrieve(const KeptFile& file) = 0;
  virtual bool can_finish(const KeptFile&) const noexcept { return true; }
  /// The new owner has it, or nobody wanted it (`retrieved` false).
  virtual void finish(const KeptFile& file, bool retrieved) noexcept = 0;

 protected:
  ~Handler() = default;  // never deleted through this type
};

/// The handlers, in order of registration: the first that can preserve a file gets it.
class HandlerRegistry {
 public:
  /// Errors: EINVAL (name empty or over 47 bytes), EEXIST (name taken).
  Result<> add(Handler& handler);
  Handler* find(std::string_view name) const noexcept;
  Handler* for_file(const FileInfo& file) const noexcept;
  const std::vector<Handler*>& all() const noexcept { return handlers_; }

  static constexpr std::size_t kMaxFlbs = 63;
  /// Ties an FLB to a handler: it exists while a file of the handler is preserved. One FLB may have many handlers, a
  /// handler many FLBs. Errors: EINVAL (the handler is not registered; name empty or over 47 bytes), EEXIST (tied to
  /// it already; or another FLB has that name), ENOSPC (kMaxFlbs).
  Result<> add_flb(Handler& handler, Flb& flb);
  const std::vector<Flb*>& flbs() const noexcept { return flbs_; }  ///< in order of registration
  Flb* find_flb(std::string_view name) const noexcept;
  /// Bit i: flbs()[i] is tied to it.
  std::uint64_t flbs_of(const Handler& handler) const noexcept;

 private:
  std::vector<Handler*> handlers_;
  std::vector<std::uint64_t> tied_;  ///< flbs_of() each handler
  std::vector<Flb*> flbs_;
};

}  // namespace luo
