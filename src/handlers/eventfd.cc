#include "handlers/eventfd.h"

#include <sys/eventfd.h>

#include <charconv>

#include "handlers/proc.h"

namespace luo::handlers {
namespace {

/// Linux since 5.2.
Result<std::uint64_t> id_of(int fd) {
  const std::string text = LUO_TRY(fdinfo_field(fd, "eventfd-id"));
  std::uint64_t id = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), id).ec != std::errc{})
    return fail(EOPNOTSUPP, "fd {} is an eventfd with the id '{}'", fd, text);
  return id;
}

bool is_eventfd(int fd) noexcept { return link_of(fd) == "anon_inode:[eventfd]"; }

}  // namespace

EventfdHandler::EventfdHandler() {
  const Fd probe = Fd::adopt(::eventfd(0, EFD_CLOEXEC));
  struct stat st {};
  if (probe.valid() && fstat(probe.raw(), &st) == 0) device_ = st.st_dev;
}

bool EventfdHandler::can_preserve(const FileInfo& file) const noexcept {
  return (device_ == 0 || file.st.st_dev == device_) && is_eventfd(file.fd);
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
  if (!is_eventfd(file.fd)) return fail(ESTALE, "fd {} is no eventfd", file.fd);
  const std::uint64_t id = LUO_TRY(id_of(file.fd));
  if (id != file.data[0]) return fail(ESTALE, "fd {} is eventfd {}, preserved was {}", file.fd, id, file.data[0]);
  return {};
}

}  // namespace luo::handlers
