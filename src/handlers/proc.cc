#include "handlers/proc.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "base/fd.h"

namespace luo::handlers {

Link link_of(int fd) noexcept {
  char path[48];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  Link link;
  const ssize_t length = readlink(path, link.text.data(), link.text.size());
  link.length = length > 0 ? static_cast<std::size_t>(length) : 0;
  return link;
}

Result<std::string> fdinfo_field(int fd, std::string_view field) {
  char path[48];
  std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  const Fd info = Fd::adopt(open(path, O_RDONLY | O_CLOEXEC));
  if (!info.valid()) return sys_fail("open({})", path);
  char text[1024];
  const ssize_t length = read(info.raw(), text, sizeof text);
  if (length < 0) return sys_fail("read({})", path);
  std::string_view lines{text, static_cast<std::size_t>(length)};
  while (!lines.empty()) {
    const std::size_t end = std::min(lines.find('\n'), lines.size());
    std::string_view line = lines.substr(0, end);
    lines.remove_prefix(std::min(end + 1, lines.size()));
    if (!line.starts_with(field) || line.substr(field.size(), 1) != ":") continue;
    line.remove_prefix(field.size() + 1);
    const std::size_t first = line.find_first_not_of(" \t");
    if (first == std::string_view::npos) return std::string{};
    return std::string{line.substr(first, line.find_last_not_of(" \t") - first + 1)};
  }
  return fail(EOPNOTSUPP, "{} has no {}", path, field);
}

}  // namespace luo::handlers
