// The listening sockets.
#pragma once
#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace luo::cache {

/// `address` is an IPv4 or IPv6 address; port 0: any free one. EADDRINUSE, EADDRNOTAVAIL, EINVAL, EACCES.
Result<Fd> listen_tcp(const std::string& address, std::uint16_t port);
/// A socket that nobody serves any more is replaced. EADDRINUSE: somebody does; ENAMETOOLONG; EACCES.
Result<Fd> listen_unix(const std::string& path);
/// The port of a TCP listener.
Result<std::uint16_t> port_of(FdRef listener);
/// Its address, or the path of a Unix one; empty if it has none.
std::string address_of(FdRef listener);

/// The kernel's name of a socket, never used again (SO_COOKIE); 0 if it is none.
std::uint64_t cookie_of(FdRef socket) noexcept;

}  // namespace luo::cache
