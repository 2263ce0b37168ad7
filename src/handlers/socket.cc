#include "handlers/socket.h"

#include <netinet/in.h>
#include <sys/socket.h>

namespace luo::handlers {
namespace {

template <class T>
Result<T> option(int fd, int name, const char* label) {
  T value{};
  socklen_t size = sizeof value;
  if (getsockopt(fd, SOL_SOCKET, name, &value, &size) != 0) return sys_fail("getsockopt(fd {}, {})", fd, label);
  return value;
}

Result<HandlerData> describe(int fd, std::uint64_t inode) {
  const int domain = LUO_TRY(option<int>(fd, SO_DOMAIN, "SO_DOMAIN"));
  const int type = LUO_TRY(option<int>(fd, SO_TYPE, "SO_TYPE"));
  const int protocol = LUO_TRY(option<int>(fd, SO_PROTOCOL, "SO_PROTOCOL"));
  const int listening = LUO_TRY(option<int>(fd, SO_ACCEPTCONN, "SO_ACCEPTCONN"));
  const std::uint64_t cookie = LUO_TRY(option<std::uint64_t>(fd, SO_COOKIE, "SO_COOKIE"));
  return HandlerData{inode, cookie,
                     static_cast<std::uint64_t>(domain) << 32 | static_cast<std::uint64_t>(type) << 16 |
                         static_cast<std::uint64_t>(protocol),
                     listening != 0 ? 1U : 0U};
}

}  // namespace

bool SocketHandler::can_preserve(const FileInfo& file) const noexcept {
  if (!S_ISSOCK(file.st.st_mode)) return false;
  const auto domain = option<int>(file.fd, SO_DOMAIN, "SO_DOMAIN");
  const auto type = option<int>(file.fd, SO_TYPE, "SO_TYPE");
  const auto protocol = option<int>(file.fd, SO_PROTOCOL, "SO_PROTOCOL");
  if (!domain || !type || !protocol) return false;  // a socket file of a file system, or one we cannot ask
  if (*domain == AF_UNIX) return *type == SOCK_STREAM || *type == SOCK_DGRAM || *type == SOCK_SEQPACKET;
  if (*domain != AF_INET && *domain != AF_INET6) return false;
  return (*type == SOCK_STREAM && *protocol == IPPROTO_TCP) || (*type == SOCK_DGRAM && *protocol == IPPROTO_UDP);
}

Result<HandlerData> SocketHandler::preserve(const FileInfo& file, SessionId, Token) {
  return describe(file.fd, file.st.st_ino);
}

Result<HandlerData> SocketHandler::freeze(const KeptFile& file) { return describe(file.fd, file.data[0]); }

Result<> SocketHandler::retrieve(const KeptFile& file) {
  struct stat st {};
  if (fstat(file.fd, &st) != 0) return sys_fail("fstat(fd {})", file.fd);
  const HandlerData now = LUO_TRY(describe(file.fd, st.st_ino));
  // A listening flag that has come since is the same socket; one that has gone is not.
  if (now[0] != file.data[0] || now[1] != file.data[1] || now[2] != file.data[2] || now[3] < file.data[3])
    return fail(ESTALE, "fd {} is socket {} (cookie {:#x}, kind {:#x}), preserved was {} (cookie {:#x}, kind {:#x})",
                file.fd, now[0], now[1], now[2], file.data[0], file.data[1], file.data[2]);
  return {};
}

}  // namespace luo::handlers
