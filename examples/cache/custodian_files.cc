#include "cache/custodian_files.h"

#include <utility>
#include <vector>

#include "base/log.h"
#include "luo/luo.h"

namespace luo::cache {

void SessionFiles::add(int fd, std::uint64_t token, bool preserved) {
  files_[token] = {fd, preserved};
  missing_ = missing_ || !preserved;
}

bool SessionFiles::remove(std::uint64_t token) {
  const auto file = files_.find(token);
  if (file == files_.end()) return false;
  const bool was_preserved = file->second.preserved;
  files_.erase(file);
  return was_preserved;
}

void SessionFiles::none_is_preserved() {
  for (auto& [token, file] : files_) file.preserved = false;
  missing_ = true;
}

Result<> SessionFiles::preserve_missing(const Keeping& keeping) {
  if (keeping.luod == nullptr || !missing_) return {};
  missing_ = false;
  std::vector<int> fds;
  std::vector<std::uint64_t> tokens;
  for (const auto& [token, file] : files_) {
    if (file.preserved) continue;
    fds.push_back(file.fd);
    tokens.push_back(token);
  }
  if (fds.empty()) return {};
  std::vector<int> errors(fds.size(), 0);
  const int kept =
      luo_preserve_many(keeping.luod, keeping.session, fds.data(), tokens.data(), errors.data(), fds.size());
  if (kept == -ECONNRESET) return fail(ECONNRESET, "preserve connections");
  const std::string why = luo_last_error();
  std::size_t refused = 0;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const bool preserved = errors[i] == 0 || errors[i] == EEXIST;
    files_[tokens[i]].preserved = preserved;
    if (!preserved) ++refused;
  }
  if (refused == 0) return {};
  log(Level::Warning, "luod refused {} of {} files, which an update will close: {}", refused, fds.size(), why);
  missing_ = true;
  return {};
}

Result<> SessionFiles::unpreserve(const Keeping& keeping, std::uint64_t token) {
  if (keeping.luod == nullptr) return {};
  const int result = luo_unpreserve_fd(keeping.luod, keeping.session, token);
  if (result == -ECONNRESET) return fail(ECONNRESET, "unpreserve a connection");
  if (result != 0 && result != -ENOENT) log(Level::Warning, "unpreserve token {}: {}", token, luo_last_error());
  return {};
}

Result<> SessionFiles::begin_replacing(const Keeping& keeping, int fresh, std::uint64_t token, Fd old,
                                       std::uint64_t old_token) {
  const auto [file, is_new] = files_.try_emplace(token, File{fresh, false});
  const bool another = !is_new && file->second.fd != fresh;
  const bool luod_has_another = another && file->second.preserved;
  if (another) file->second = {fresh, false};
  const bool preserved = file->second.preserved;
  if (!preserved) missing_ = true;
  replacement_ = Replacement{token, std::move(old), old_token};
  if (luod_has_another) LUO_TRY(unpreserve(keeping, token));
  return preserved ? end_replacing(keeping) : Result<>{};
}

Result<> SessionFiles::end_replacing(const Keeping& keeping) {
  if (!replacement_) return {};
  const auto fresh = files_.find(replacement_->token);
  const bool there = fresh != files_.end() && fresh->second.preserved;
  if (!there && keeping.luod != nullptr) return {};
  const Replacement done = *std::exchange(replacement_, std::nullopt);
  if (remove(done.old_token)) return unpreserve(keeping, done.old_token);
  return {};
}

}  // namespace luo::cache
