// tcp.h: rings and counters of a connection, in memory that outlives the process.
#include "luo/tcp.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "client/failure.h"

namespace {

using namespace luo;
using namespace luo::client;

constexpr std::uint64_t kMagic = 0x3150'4354'4f55'4cULL;  // "LUOTCP1"

// tcpi_state, which <netinet/tcp.h> has under these names; that header and <linux/tcp.h> exclude each other.
enum State : std::uint8_t {
  Established = 1,
  FinWait1 = 4,
  FinWait2 = 5,
  CloseWait = 8,
  LastAck = 9,
  Closing = 11,
};

/// What takes effect together. Two of them: one counts, the other is being prepared.
struct Slot {
  std::uint64_t consumed;  ///< of what was received, ever
  std::uint64_t produced;  ///< for sending, ever
  std::uint64_t words[LUO_TCP_WORDS];
};

}  // namespace

// Positions are counted from the connection's beginning; a byte's place in its ring is its position modulo the size.
//
//   consumed ≤ received ≤ consumed + ring        sent ≤ produced ≤ sent + ring
struct luo_tcp {
  std::uint64_t magic;
  std::uint64_t ring;
  std::uint32_t side;
  std::uint32_t current;   ///< index of the slot that counts
  std::uint64_t received;  ///< bytes in the first ring, ever
  std::uint64_t sent;      ///< bytes out of the second ring, ever
  Slot slot[2];

  Slot& counts() noexcept { return slot[current]; }
  const Slot& counts() const noexcept { return slot[current]; }
  Slot& prepared() noexcept { return slot[1 - current]; }
  const Slot& prepared() const noexcept { return slot[1 - current]; }
  char* input() noexcept { return reinterpret_cast<char*>(this + 1); }
  char* output() noexcept { return input() + ring; }
};

namespace {

// The memory outlives the process, so order of stores is enough; only the compiler must keep it.
template <class T>
void publish(T& word, T value) noexcept {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::atomic_ref{word}.store(value, std::memory_order_release);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

// [from, to) of the stream, in its ring.
void pieces_of(char* ring, std::uint64_t size, std::uint64_t from, std::uint64_t to, iovec pieces[2]) noexcept {
  const std::uint64_t at = from % size;
  const std::uint64_t first = std::min(to - from, size - at);
  pieces[0] = {ring + at, first};
  pieces[1] = {ring, to - from - first};
}

bool is_sound(const luo_tcp& tcp, std::size_t size) noexcept {
  if (tcp.magic != kMagic || tcp.ring == 0 || tcp.ring > (size - sizeof tcp) / 2 || tcp.current > 1 || tcp.side > 1)
    return false;
  const Slot& slot = tcp.counts();
  return slot.consumed <= tcp.received && tcp.received - slot.consumed <= tcp.ring && tcp.sent <= slot.produced &&
         slot.produced - tcp.sent <= tcp.ring;
}

bool fits(const void* memory, std::size_t size) noexcept {
  return reinterpret_cast<std::uintptr_t>(memory) % alignof(luo_tcp) == 0 && size >= sizeof(luo_tcp) + 2;
}

int failed(std::string_view goal, int code, std::string_view why) {
  return report(Operation::Tcp, goal, Error{code, std::string{why}});
}

// Nobody reads, so what waits to be read only grows: the same before and after means that nothing came in between,
// and that the count in the middle belongs to it.
int position(int socket, luo_tcp_side side, luo_tcp_position& out) {
  constexpr std::string_view kGoal = "learn how far a connection has come";
  tcp_info info{};
  int unread = 0, unread_after = 0, unacknowledged = 0;
  std::uint64_t acknowledged = 0;
  do {
    socklen_t size = sizeof info;
    if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
      return failed(kGoal, errno == ENOTSOCK || errno == ENOPROTOOPT ? EOPNOTSUPP : errno, "getsockopt(TCP_INFO)");
    if (size < offsetof(tcp_info, tcpi_bytes_received) + sizeof info.tcpi_bytes_received)
      return failed(kGoal, EOPNOTSUPP, "this kernel does not count bytes");
    acknowledged = info.tcpi_bytes_acked;
    if (::ioctl(socket, SIOCINQ, &unread) != 0 || ::ioctl(socket, SIOCOUTQ, &unacknowledged) != 0)
      return failed(kGoal, errno, "ioctl(SIOCINQ, SIOCOUTQ)");
    if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
      return failed(kGoal, errno, "getsockopt(TCP_INFO)");
    if (::ioctl(socket, SIOCINQ, &unread_after) != 0) return failed(kGoal, errno, "ioctl(SIOCINQ)");
  } while (unread != unread_after || acknowledged != info.tcpi_bytes_acked);
  std::uint64_t ends_read = 0, ends_written = 0;  // an end of a direction counts as a byte of it
  switch (info.tcpi_state) {
    case Established: break;
    case CloseWait: ends_read = 1; break;
    case FinWait1:
    case FinWait2: ends_written = 1; break;
    case LastAck:
    case Closing: ends_read = ends_written = 1; break;
    default: return failed(kGoal, ENOTCONN, "it has ended, or has not begun");
  }
  if (side == LUO_TCP_CONNECTED) ++ends_written;
  out = {.received = info.tcpi_bytes_received - ends_read - static_cast<std::uint64_t>(unread),
         .sent = acknowledged + static_cast<std::uint64_t>(unacknowledged) - ends_written};
  return 0;
}

}  // namespace

int luo_tcp_get_position(int socket, luo_tcp_side side, struct luo_tcp_position* out) {
  luo_tcp_position found{};
  const int result = position(socket, side, found);
  if (result == 0) *out = found;
  return result;
}

size_t luo_tcp_size(size_t ring) { return sizeof(luo_tcp) + 2 * ring; }

int luo_tcp_create(void* memory, size_t size, luo_tcp_side side, luo_tcp** out) {
  if (!fits(memory, size)) return failed("begin with a connection", EINVAL, "memory too small or not aligned to 8");
  auto* tcp = static_cast<luo_tcp*>(memory);
  std::memset(tcp, 0, sizeof *tcp);
  tcp->ring = (size - sizeof *tcp) / 2;
  tcp->side = side;
  publish(tcp->magic, kMagic);
  *out = tcp;
  return 0;
}

int luo_tcp_recover(void* memory, size_t size, int socket, luo_tcp** out) {
  constexpr std::string_view kGoal = "go on with a connection";
  auto* tcp = static_cast<luo_tcp*>(memory);
  if (!fits(memory, size) || !is_sound(*tcp, size)) return failed(kGoal, EBADMSG, "the memory holds none");
  luo_tcp_position is{};
  if (const int result = position(socket, static_cast<luo_tcp_side>(tcp->side), is); result < 0) return result;
  const Slot& slot = tcp->counts();
  if (is.received < tcp->received || is.received - slot.consumed > tcp->ring || is.sent < tcp->sent ||
      is.sent > slot.produced)
    return failed(kGoal, ESTALE, "the socket's counters are another connection's");
  const bool knew_more = is.received != tcp->received || is.sent != tcp->sent;
  tcp->prepared() = slot;
  publish(tcp->received, is.received);
  publish(tcp->sent, is.sent);
  *out = tcp;
  return knew_more ? 1 : 0;
}

ssize_t luo_tcp_receive(luo_tcp* tcp, int socket) {
  iovec pieces[2];
  pieces_of(tcp->input(), tcp->ring, tcp->received, tcp->counts().consumed + tcp->ring, pieces);
  if (pieces[0].iov_len == 0) return -ENOBUFS;
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = 2;
  ssize_t n = 0;
  do n = ::recvmsg(socket, &message, MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  if (n < 0) return -errno;
  publish(tcp->received, tcp->received + static_cast<std::uint64_t>(n));
  return n;
}

size_t luo_tcp_input(const luo_tcp* tcp, iovec pieces[2]) {
  const std::uint64_t from = tcp->counts().consumed;
  pieces_of(const_cast<luo_tcp*>(tcp)->input(), tcp->ring, from, tcp->received, pieces);
  return tcp->received - from;
}

size_t luo_tcp_room(const luo_tcp* tcp) { return tcp->ring - (tcp->prepared().produced - tcp->sent); }

int luo_tcp_reply(luo_tcp* tcp, const void* bytes, size_t count) {
  if (count > luo_tcp_room(tcp)) return -ENOBUFS;
  Slot& slot = tcp->prepared();
  iovec pieces[2];
  pieces_of(tcp->output(), tcp->ring, slot.produced, slot.produced + count, pieces);
  if (count > 0) std::memcpy(pieces[0].iov_base, bytes, pieces[0].iov_len);
  if (pieces[1].iov_len > 0)
    std::memcpy(pieces[1].iov_base, static_cast<const char*>(bytes) + pieces[0].iov_len, pieces[1].iov_len);
  slot.produced += count;
  return 0;
}

uint64_t* luo_tcp_words(luo_tcp* tcp) { return tcp->prepared().words; }

int luo_tcp_commit(luo_tcp* tcp, size_t consumed) {
  if (consumed > tcp->received - tcp->counts().consumed) return -EINVAL;
  tcp->prepared().consumed = tcp->counts().consumed + consumed;
  publish(tcp->current, 1 - tcp->current);
  tcp->prepared() = tcp->counts();
  return 0;
}

ssize_t luo_tcp_send(luo_tcp* tcp, int socket) {
  while (tcp->sent != tcp->counts().produced) {
    msghdr message{};
    iovec pieces[2];
    pieces_of(tcp->output(), tcp->ring, tcp->sent, tcp->counts().produced, pieces);
    message.msg_iov = pieces;
    message.msg_iovlen = 2;
    const ssize_t n = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) publish(tcp->sent, tcp->sent + static_cast<std::uint64_t>(n));
    else if (errno == EAGAIN) break;
    else if (errno != EINTR) return -errno;
  }
  return static_cast<ssize_t>(tcp->counts().produced - tcp->sent);
}
