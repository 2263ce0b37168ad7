#include "cache/listen.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace luo::cache {
namespace {

constexpr int kBacklog = 1024;

Result<Fd> listening(int family, const sockaddr* address, socklen_t size, const std::string& shown) {
  Fd socket = Fd::adopt(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return sys_fail("socket for {}", shown);
  const int one = 1;
  if (family != AF_UNIX && ::setsockopt(socket.raw(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0)
    return sys_fail("setsockopt(SO_REUSEADDR)");
  if (::bind(socket.raw(), address, size) != 0) return sys_fail("bind {}", shown);
  if (::listen(socket.raw(), kBacklog) != 0) return sys_fail("listen on {}", shown);
  return socket;
}

}  // namespace

Result<Fd> listen_tcp(const std::string& address, std::uint16_t port) {
  const std::string shown = fmt::format("{} port {}", address, port);
  sockaddr_in v4{};
  if (::inet_pton(AF_INET, address.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    return listening(AF_INET, reinterpret_cast<const sockaddr*>(&v4), sizeof v4, shown);
  }
  sockaddr_in6 v6{};
  if (::inet_pton(AF_INET6, address.c_str(), &v6.sin6_addr) != 1)
    return fail(EINVAL, "'{}' is not an IPv4 or IPv6 address", address);
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  return listening(AF_INET6, reinterpret_cast<const sockaddr*>(&v6), sizeof v6, shown);
}

Result<Fd> listen_unix(const std::string& path) {
  sockaddr_un address{};
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(ENAMETOOLONG, "a Unix socket's path has 1 to {} bytes, not {}", sizeof address.sun_path - 1,
                path.size());
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  struct stat found {};
  if (::lstat(path.c_str(), &found) == 0 && S_ISSOCK(found.st_mode)) {
    const Fd probe = Fd::adopt(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!probe.valid()) return sys_fail("socket");
    if (::connect(probe.raw(), generic, sizeof address) == 0 || errno != ECONNREFUSED)
      return fail(EADDRINUSE, "somebody serves {}", path);
    if (::unlink(path.c_str()) != 0) return sys_fail("remove the stale socket {}", path);
  }
  return listening(AF_UNIX, generic, sizeof address, path);
}

Result<std::uint16_t> port_of(FdRef listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(listener.raw, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return sys_fail("getsockname(fd {})", listener.raw);
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return fail(EINVAL, "fd {} is not a TCP socket", listener.raw);
}

std::uint64_t cookie_of(FdRef socket) noexcept {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return ::getsockopt(socket.raw, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

std::string address_of(FdRef listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  char text[INET6_ADDRSTRLEN] = {};
  if (::getsockname(listener.raw, reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  if (address.ss_family == AF_INET)
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof text);
  if (address.ss_family == AF_INET6)
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text, sizeof text);
  if (address.ss_family == AF_UNIX) return reinterpret_cast<const sockaddr_un&>(address).sun_path;
  return text;
}

}  // namespace luo::cache
