// Sockets whose state the kernel keeps while a descriptor is open: Unix (stream, datagram, seqpacket), TCP
// and UDP over IPv4 and IPv6, listening or connected. Nothing else: a raw or netlink socket is bound to
// rights or to a process.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: inode, SO_COOKIE, domain << 32 | type << 16 | protocol, 1 if listening
class SocketHandler final : public Handler {
 public:
  std::string_view name() const noexcept override { return "socket-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Looks again: it may have begun to listen since.
  Result<HandlerData> freeze(const KeptFile& file) override;
  /// Errors: ESTALE another socket.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}
};

}  // namespace luo::handlers
