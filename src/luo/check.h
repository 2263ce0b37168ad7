// Everything that the engine relies on in its records, checked by bounds, links and counts: each record
// that a list names must be found in the tables under its own key, and the tables have as many entries as
// there are such records; so what a table names is a record of ours. O(n), no system call per file.
#pragma once
#include <unordered_map>

#include "luo/engine_impl.h"

namespace luo {

class Checker {
 public:
  /// `ask_kernel`: also whether each file's descriptor is open and each tree in kcmp(2) order.
  Checker(const Engine::Impl& engine, bool ask_kernel);
  /// Errors: EBADMSG (what and where); ENOTSUP (a file's handler is not registered).
  Result<> run();
  /// The same of `records` sessions and files of each side, without the counts: O(records).
  Result<> sample(std::uint64_t records);

 private:
  enum class Where { Outgoing, Incoming, Dropped, Doomed };
  Result<> lists_of_names();
  Result<> tables(bool whole) const;
  Result<> list(const ListRecord<SessionRecord>& sessions, Where where);
  Result<> doomed();
  Result<> session(Ref<SessionRecord> ref, Where where);
  Result<> holder(Ref<SessionRecord> ref, const HolderRecord& holder);
  Result<> options(Ref<SessionRecord> ref, Where where);
  Result<> files(Ref<SessionRecord> ref);
  Result<> file(Ref<FileRecord> ref);
  Result<> relation(Ref<FileRecord> ref);
  Result<> tree(Ref<TreeRecord> ref, std::uint64_t files);
  Result<> counts() const;
  Result<> descriptor(std::int32_t fd, std::uint64_t where);
  bool has_extras() const noexcept { return root_.magic != kRootMagic1; }

  const Engine::Impl& engine_;
  const kho::Arena& arena_;
  RootRecord& root_;
  bool ask_kernel_;
  std::uint64_t left_ = UINT64_MAX;                         ///< records still to be looked at
  std::uint64_t blocks_;                                    ///< no list is longer than there are blocks
  std::vector<bool> fds_;                                   ///< which numbers are named already
  std::unordered_map<std::uint64_t, std::uint64_t> trees_;  ///< files that name it
  std::uint64_t sessions_ = 0, inodes_ = 0, files_ = 0, plain_ = 0, frozen_ = 0, marked_doomed_ = 0, listed_doomed_ = 0;
  const FlbsRecord* flbs_of_ = nullptr;
  std::uint64_t flb_files_[3][kMaxFlbs] = {};  ///< files that hold it, by Where
  int side_ = -1;                              ///< of the session under work; -1: its files hold nothing any more
  std::uint64_t options_ = 0, relations_ = 0;
  std::unordered_map<std::uint64_t, std::uint64_t> dependents_;  ///< of files on which others depend: not yet seen
  std::uint64_t live_files_[2] = {0, 0};                         ///< outgoing, incoming
};

}  // namespace luo
