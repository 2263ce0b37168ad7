#include "sys/packet_socket.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <utility>

namespace luo {
namespace {

constexpr std::size_t kMaxFds = 253;  // SCM_MAX_FD, include/net/scm.h of Linux

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty()) return fail(ENOENT, "an empty socket path");
  if (path.size() >= sizeof address.sun_path)
    return fail(ENAMETOOLONG, "socket path '{}' has {} bytes, {} fit", path, path.size(), sizeof address.sun_path - 1);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

void adopt_all(msghdr& header, std::vector<Fd>& fds) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    const unsigned char* numbers = CMSG_DATA(part);
    for (std::size_t i = 0; i < count; ++i) {
      int number;
      std::memcpy(&number, numbers + i * sizeof number, sizeof number);
      fds.push_back(Fd::adopt(number));
    }
  }
}

}  // namespace

Result<Fd> listen_packets(const std::string& path, int backlog) {
  const sockaddr_un address = LUO_TRY(address_of(path));
  Fd fd = Fd::adopt(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return sys_fail("socket(AF_UNIX, SOCK_SEQPACKET)");
  if (bind(fd.raw(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return sys_fail("bind('{}')", path);
  if (::listen(fd.raw(), backlog) != 0) return sys_fail("listen('{}', {})", path, backlog);
  return fd;
}

Result<Fd> connect_packets(const std::string& path) {
  const sockaddr_un address = LUO_TRY(address_of(path));
  Fd fd = Fd::adopt(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return sys_fail("socket(AF_UNIX, SOCK_SEQPACKET)");
  // A Unix connect that a signal interrupts has done nothing yet, so it can be called again.
  while (::connect(fd.raw(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    if (errno != EINTR) return sys_fail("connect('{}')", path);
  return fd;
}

Result<Fd> accept_packets(FdRef listener) {
  for (;;) {
    Fd fd = Fd::adopt(accept4(listener.raw, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.valid()) return fd;
    if (errno != EINTR) return sys_fail("accept4");
  }
}

Result<PeerCredentials> peer_credentials(FdRef socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(socket.raw, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return sys_fail("getsockopt(SO_PEERCRED)");
  return PeerCredentials{peer.pid, peer.uid, peer.gid};
}

Result<> receive(FdRef socket, std::span<std::byte> buffer, Received& into, int flags, OverExec over) {
  into.bytes = 0;
  into.fds.clear();
  into.truncated = into.control_truncated = into.eof = false;

  // Room beyond the descriptors: a control message that nobody asked for must not push them out.
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int)) + 256];
  iovec part{buffer.data(), buffer.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  ssize_t n = -1;
  do {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    n = recvmsg(socket.raw, &header, flags | (over == OverExec::Close ? MSG_CMSG_CLOEXEC : 0));
  } while (n < 0 && errno == EINTR);
  if (n < 0) return sys_fail("recvmsg");

  if (header.msg_controllen != 0) adopt_all(header, into.fds);
  into.bytes = static_cast<std::size_t>(n);
  into.truncated = (header.msg_flags & MSG_TRUNC) != 0;
  into.control_truncated = (header.msg_flags & MSG_CTRUNC) != 0;
  into.eof = n == 0 && !into.truncated && !into.control_truncated && into.fds.empty();
  return {};
}

Result<Received> receive(FdRef socket, std::span<std::byte> buffer, int flags) {
  Received received;
  LUO_TRY(receive(socket, buffer, received, flags));
  return received;
}

Result<> consume(FdRef socket) {
  std::byte one;
  for (;;) {
    if (recv(socket.raw, &one, sizeof one, MSG_DONTWAIT) >= 0) return {};
    if (errno != EINTR) return sys_fail("recv");
  }
}

Result<> send(FdRef socket, std::span<const std::byte> message, std::span<const int> fds, int flags) {
  if (fds.size() > kMaxFds) return fail(EINVAL, "send {} descriptors, {} fit in a message", fds.size(), kMaxFds);
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
  iovec part{const_cast<std::byte*>(message.data()), message.size()};  // sendmsg does not write to it
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  for (;;) {
    if (sendmsg(socket.raw, &header, flags | MSG_NOSIGNAL) >= 0) return {};
    if (errno != EINTR) return sys_fail("sendmsg({} bytes, {} fds)", message.size(), fds.size());
  }
}

}  // namespace luo
