// Asks a new image, before anything is given up for it, which layouts it reads: runs it with --probe and
// reads the one line of JSON that it prints. Runs beside the loop.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace luo::daemon {

struct ProbeAnswer {
  std::string version;
  std::uint32_t layout;  ///< the newest version of the records that both know: ours, or the one before
};

/// What this image answers to --probe.
std::string probe_text();

class Probe {
 public:
  /// Starts `image --probe`, which has `timeout_ms` to answer, 5 s at most. Errors: those of fork and of exec are found
  /// later, in result().
  static Result<std::unique_ptr<Probe>> start(FdRef image, std::uint32_t timeout_ms);
  ~Probe();  ///< kills it if it still runs
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  /// Polls readable when there is something to do.
  FdRef pidfd() const noexcept { return pidfd_; }
  std::uint64_t deadline_ns() const noexcept { return deadline_ns_; }

  /// Whether it has ended (or its deadline has passed: it is killed then).
  bool done();
  /// After done(). Errors, each with the image's last words: EPROTO (it does not read the layout that is in
  /// use, or does not answer like a luod), ENOEXEC (other architecture), ETIMEDOUT, EIO (exit status, signal).
  Result<ProbeAnswer> result() const;
  std::string last_words() const;
  /// Until then it has copies of all our descriptors.
  void wait_until_it_runs() const noexcept;

 private:
  Probe() = default;
  pid_t pid_ = -1;
  Fd pidfd_, out_, err_, before_exec_;
  std::uint64_t deadline_ns_ = 0;
  std::uint32_t timeout_ms_ = 0;
  bool ended_ = false, late_ = false;
  int status_ = 0;
};

/// The end of what a program has written to `file`: at most 1,000 bytes, from a line's start.
std::string tail_of(FdRef file);

}  // namespace luo::daemon
