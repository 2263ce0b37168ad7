#include "handlers/eventfd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>

namespace luo::handlers {
namespace {

constexpr std::string_view kLink = "anon_inode:[eventfd]";

/// The line "eventfd-id: N" of fdinfo; Linux since 5.2.
Result<std::uint64_t> id_of(int fd) {
  char path[48];
  std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  const Fd info = Fd::adopt(open(path, O_RDONLY | O_CLOEXEC));
  if (!info.valid()) return sys_fail("open({})", path);
  char text[1024];
  const ssize_t length = read(info.raw(), text, sizeof text);
  if (length < 0) return sys_fail("read({})", path);
  const std::string_view lines{text, static_cast<std::size_t>(length)};
  constexpr std::string_view kField = "eventfd-id:";
  const std::size_t at = lines.find(kField);
  if (at == std::string_view::npos) return fail(EOPNOTSUPP, "{} has no eventfd-id", path);
  std::size_t digits = lines.find_first_not_of(" \t", at + kField.size());
  if (digits == std::string_view::npos) digits = lines.size();
  std::uint64_t id = 0;
  if (std::from_chars(lines.data() + digits, lines.data() + lines.size(), id).ec != std::errc{})
    return fail(EOPNOTSUPP, "{} has an eventfd-id that is no number", path);
  return id;
}

bool links_to_eventfd(int fd) noexcept {
  char path[48];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  char target[64];
  const ssize_t length = readlink(path, target, sizeof target);
  return length > 0 && std::string_view{target, static_cast<std::size_t>(length)} == kLink;
}

}  // namespace

EventfdHandler::EventfdHandler() {
  const Fd probe = Fd::adopt(::eventfd(0, EFD_CLOEXEC));
  struct stat st {};
  if (probe.valid() && fstat(probe.raw(), &st) == 0) device_ = st.st_dev;
}

bool EventfdHandler::can_preserve(const FileInfo& file) const noexcept {
  return (device_ == 0 || file.st.st_dev == device_) && links_to_eventfd(file.fd);
}

Identity EventfdHandler::identity(const FileInfo& file) const noexcept {
  const auto id = id_of(file.fd);
  known_ = id ? Known{file.fd, *id} : Known{};  // without one, preserve() refuses the file
  return {static_cast<std::uint64_t>(file.st.st_dev), known_.id, true};
}

Result<HandlerData> EventfdHandler::preserve(const FileInfo& file, SessionId, Token) {
  const Known known = std::exchange(known_, {});
  return HandlerData{known.fd == file.fd ? known.id : LUO_TRY(id_of(file.fd)), 0, 0, 0};
}

Result<> EventfdHandler::retrieve(const KeptFile& file) {
  if (!links_to_eventfd(file.fd)) return fail(ESTALE, "fd {} is no eventfd", file.fd);
  const std::uint64_t id = LUO_TRY(id_of(file.fd));
  if (id != file.data[0]) return fail(ESTALE, "fd {} is eventfd {}, preserved was {}", file.fd, id, file.data[0]);
  return {};
}

}  // namespace luo::handlers
