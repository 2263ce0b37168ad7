// SOCK_SEQPACKET Unix sockets: messages keep their borders and may carry descriptors.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace luo {

/// What one message brought. Kept by the caller and used again, so that receiving does not allocate.
struct Received {
  std::size_t bytes = 0;           ///< in the buffer
  std::vector<Fd> fds;             ///< all that arrived, whatever the message says; closed at the next receive
  bool truncated = false;          ///< the message was longer than the buffer; its rest is lost (MSG_TRUNC)
  bool control_truncated = false;  ///< descriptors are missing: no free numbers (MSG_CTRUNC)
  bool eof = false;                ///< the other side has closed (or sent an empty message: nobody of ours does)
};

struct PeerCredentials {
  pid_t pid;  ///< 0 if it lives in a pid namespace that we cannot see
  uid_t uid;
  gid_t gid;
};

/// A non-blocking listener, mode 0666 less the umask. Does not unlink: EADDRINUSE if the path exists.
Result<Fd> listen_packets(const std::string& path, int backlog);

/// Blocks while the listener's backlog is full. ENOENT, ECONNREFUSED (a stale socket file), EACCES,
/// EPROTOTYPE (another type of socket listens there), ENAMETOOLONG (over 107 bytes).
Result<Fd> connect_packets(const std::string& path);

/// The next connection, non-blocking. EAGAIN: there is none.
Result<Fd> accept_packets(FdRef listener);

/// Who called connect (or socketpair) on the other side.
Result<PeerCredentials> peer_credentials(FdRef socket);

/// Receives one message. `flags`: MSG_PEEK (descriptors arrive each time, as new numbers), MSG_DONTWAIT.
/// All descriptors that came are in `into`, close-on-exec unless `over` says otherwise, before anything is judged.
/// Goes on after EINTR. EAGAIN; ECONNRESET: the other side closed with messages of ours unread.
Result<> receive(FdRef socket, std::span<std::byte> buffer, Received& into, int flags, OverExec over = OverExec::Close);

/// The same with a Received of its own.
Result<Received> receive(FdRef socket, std::span<std::byte> buffer, int flags);

/// Drops the next message and the descriptors in it, without making numbers for them. EAGAIN: there is none.
Result<> consume(FdRef socket);

/// Sends one message; never raises SIGPIPE, goes on after EINTR. `flags`: MSG_DONTWAIT. EAGAIN; EPIPE;
/// EBADF: one of `fds` is not open (O_PATH goes through); EINVAL: one is an io_uring; ETOOMANYREFS: too many in flight;
/// EMSGSIZE. At most 253 descriptors.
Result<> send(FdRef socket, std::span<const std::byte> message, std::span<const int> fds, int flags = 0);

}  // namespace luo
