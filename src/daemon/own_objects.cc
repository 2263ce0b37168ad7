#include "daemon/own_objects.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>

namespace luo::daemon {
bool socket_has_path(int fd, bool peer, std::string_view path) noexcept {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  const auto name_of = peer ? getpeername : getsockname;
  return name_of(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0 && address.sun_family == AF_UNIX &&
         length > sizeof address.sun_family &&
         std::string_view{address.sun_path, strnlen(address.sun_path, sizeof address.sun_path)} == path;
}

OwnObjects::OwnObjects(const Control& control, std::function<bool(std::uint64_t inode)> is_session)
    : control_{control}, is_session_{std::move(is_session)} {
  struct stat st {};
  if (fstat(control.arena_fd, &st) == 0) {
    arena_device_ = st.st_dev;
    arena_inode_ = st.st_ino;
  }
}

bool OwnObjects::can_preserve(const FileInfo& file) const noexcept {
  switch (file.st.st_mode & S_IFMT) {
    case S_IFREG: return file.st.st_ino == arena_inode_ && file.st.st_dev == arena_device_;
    case S_IFIFO: return is_session_(file.st.st_ino);
    case S_IFSOCK:
      // Both ends of a connection, and the listener.
      return socket_has_path(file.fd, false, control_.socket_path) ||
             socket_has_path(file.fd, true, control_.socket_path);
    default: return false;
  }
}

Result<HandlerData> OwnObjects::preserve(const FileInfo&, SessionId, Token) {
  return fail(ENOENT, "an object of luod's own (a session, a connection, its arena) cannot be preserved");
}

}  // namespace luo::daemon
