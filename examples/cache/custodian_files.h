// What is to be in the cache's session, and what of it luod has. The custodian's thread's own.
#pragma once
#include <cstdint>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "base/fd.h"

struct luo_connection;

namespace luo::cache {

/// Where files are kept. Without a connection (nullptr) nothing is, until there is one again.
struct Keeping {
  luo_connection* luod;
  int session;
};

/// The only error is ECONNRESET: luod is gone for good, and what() says during what. What else luod says is logged.
class SessionFiles {
 public:
  /// Lent: stays open until it is given up.
  void add(int fd, std::uint64_t token, bool preserved);
  /// True: luod has it, so unpreserve() comes next.
  bool remove(std::uint64_t token);
  /// luod has nothing any more, or a new luod nothing yet.
  void none_is_preserved();

  /// What luod refuses stays missing, and is tried again the next time.
  Result<> preserve_missing(const Keeping& keeping);
  Result<> unpreserve(const Keeping& keeping, std::uint64_t token);
  /// Whatever luod would not take yet of an earlier replacement is off. `fresh` is lent.
  Result<> begin_replacing(const Keeping& keeping, int fresh, std::uint64_t token, Fd old, std::uint64_t old_token);
  /// Once luod has the new one, or there is no luod that could have either.
  Result<> end_replacing(const Keeping& keeping);

  std::size_t size() const noexcept { return files_.size(); }
  bool missing() const noexcept { return missing_; }                    ///< luod does not have them all
  bool replacing() const noexcept { return replacement_.has_value(); }  ///< luod does not have the new one yet

 private:
  struct File {
    int fd;
    bool preserved;
  };
  struct Replacement {
    std::uint64_t token;
    Fd old;  ///< may be empty
    std::uint64_t old_token;
  };
  std::unordered_map<std::uint64_t, File> files_;
  std::optional<Replacement> replacement_;
  bool missing_ = false;
};

}  // namespace luo::cache
