#include "handlers/pidfd.h"

#include <charconv>

#include "handlers/proc.h"

namespace luo::handlers {
namespace {

bool is_pidfd(int fd) noexcept {
  const Link link = link_of(fd);
  return link == "anon_inode:[pidfd]" || link.view().starts_with("pidfd:[");  // the latter from Linux 6.9 on
}

/// -1: it has ended and has been waited for. 0: luod's pid namespace does not have it.
Result<std::int64_t> pid_of(int fd) {
  const std::string text = LUO_TRY(fdinfo_field(fd, "Pid"));
  std::int64_t pid = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), pid).ec != std::errc{})
    return fail(EOPNOTSUPP, "fd {} is a pidfd of '{}'", fd, text);
  return pid;
}

}  // namespace

bool PidfdHandler::can_preserve(const FileInfo& file) const noexcept {
  return ((file.st.st_mode & S_IFMT) == 0 || S_ISREG(file.st.st_mode)) && is_pidfd(file.fd);
}

Result<HandlerData> PidfdHandler::preserve(const FileInfo& file, SessionId, Token) {
  const std::int64_t pid = LUO_TRY(pid_of(file.fd));
  if (pid == 0) return fail(EOPNOTSUPP, "fd {} is a pidfd of a process in another pid namespace", file.fd);
  return HandlerData{static_cast<std::uint64_t>(pid), 0, 0, 0};
}

Result<> PidfdHandler::retrieve(const KeptFile& file) {
  if (!is_pidfd(file.fd)) return fail(ESTALE, "fd {} is no pidfd", file.fd);
  const std::int64_t pid = LUO_TRY(pid_of(file.fd)), before = static_cast<std::int64_t>(file.data[0]);
  if (pid != before && pid != -1)  // it may have ended since
    return fail(ESTALE, "fd {} is a pidfd of process {}, preserved was one of {}", file.fd, pid, before);
  return {};
}

}  // namespace luo::handlers
