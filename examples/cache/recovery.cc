#include "cache/recovery.h"

#include "cache/buffer.h"
#include "luo/tcp.h"

namespace luo::cache {

Result<> catch_up(ConnectionRecord& record, FdRef socket) {
  luo_tcp_position is{};
  if (const int result = luo_tcp_get_position(socket.raw, LUO_TCP_ACCEPTED, &is); result < 0)
    return fail(-result, "connection {} ({})", record.token, luo_last_error());
  BufferRecord& in = record.input;
  BufferRecord& out = record.output;
  // The kernel received into the free space and sent from the front: the bytes are there, or still there.
  const std::uint64_t received = is.received - (in.base + in.end);
  const std::uint64_t sent = is.sent - (out.base + out.begin);
  if (received > in.room - in.end || sent > out.end - out.begin)
    return fail(ESTALE, "connection {}: its socket has received {} and sent {} bytes, recorded are {} and {}",
                record.token, is.received, is.sent, in.base + in.end, out.base + out.begin);
  in.end += received;
  out.begin += sent;
  return {};
}

}  // namespace luo::cache
