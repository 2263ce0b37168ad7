/* libluo: a TCP connection that survives its server.
 *
 * A server that is killed between recv() and the note that it received, or between send() and the note that it sent,
 * leaves a successor who has its memory and its sockets, and does not know how far either had come. The kernel does:
 * TCP counts what a socket has received and what of it was read, what was written and what of it is acknowledged.
 * luo_tcp_get_position() asks it. `struct luo_tcp` is what a server builds on that: two rings in memory that outlives
 * it, into which the kernel receives and out of which it sends, and counters, so that
 *
 *   - input is given up, output is added and the application's own words change in one step (luo_tcp_commit);
 *   - after SIGKILL at any instruction the next process calls luo_tcp_recover() and goes on: no byte of either
 *     direction is lost, doubled or answered twice.
 *
 * It needs no luod: somebody has to keep the socket and the memory open, be it a luod session (luo_session_hold), or a
 * parent. The one before must be dead, or have stopped, when the next one begins. examples/echo is a server like that.
 *
 * A server with memory of its own that changes by transactions needs luo_tcp_get_position() only: receive into that
 * memory, make a request's effect, its answer and "it is read" one transaction, send from that memory, and correct two
 * counters after a crash. examples/cache does so.
 *
 * Limits: TCP only (a Unix socket has no counters); no urgent data, no TCP Fast Open with data. A connection that
 * nobody else had yet when the server died is lost, so preserve it before anything is received from it.
 *
 * Functions return 0 or a number, or a negative errno; nothing here waits. One process at a time uses one struct.
 */
#ifndef LUO_TCP_H
#define LUO_TCP_H
#include <luo/luo.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum luo_tcp_side {
  LUO_TCP_ACCEPTED = 0, /* the socket came from accept(2) */
  LUO_TCP_CONNECTED = 1 /* from connect(2): its handshake counts as a byte */
};

struct luo_tcp_position {
  uint64_t received; /* bytes that have been read from the socket, ever */
  uint64_t sent;     /* bytes that have been written to it, ever, whether or not they have arrived */
};

/* How far reading and writing have come, exactly, while nobody reads or writes; the peer may.
 * -EOPNOTSUPP: no TCP socket, or a kernel before 4.2. -ENOTCONN: the connection has ended both ways, or was reset: the
 * kernel's counters no longer tell. -EBADF. */
LUO_API int luo_tcp_get_position(int socket, enum luo_tcp_side side, struct luo_tcp_position* out);

struct luo_tcp;
#define LUO_TCP_WORDS 8 /* of the application, in each struct luo_tcp */

/* Bytes of memory for rings of `ring` bytes each. */
LUO_API size_t luo_tcp_size(size_t ring);
/* Begins with a socket of which nothing has been read and to which nothing has been written. `memory`: aligned to 8,
 * shared, used by nothing else; stays the caller's. *out is `memory`. -EINVAL: too small, or not aligned. */
LUO_API int luo_tcp_create(void* memory, size_t size, enum luo_tcp_side side, struct luo_tcp** out);
/* Goes on where another process stopped, however it stopped. Returns 1 if the socket knew more than the memory, 0 if
 * not. What was not committed has not happened: the same input is there again, the output and words are as they were.
 * -EBADMSG: there is no sound struct luo_tcp. -ESTALE: this socket's counters cannot belong to it.
 * Others as luo_tcp_get_position(). After an error nothing has changed. */
LUO_API int luo_tcp_recover(void* memory, size_t size, int socket, struct luo_tcp** out);

/* Receives once, as much as is there and fits, without waiting. Returns the bytes; 0: the peer will send no more.
 * -EAGAIN; -ENOBUFS: the ring is full (commit some, first). Others as recv(2). */
LUO_API ssize_t luo_tcp_receive(struct luo_tcp* tcp, int socket);
/* What has been received and not been committed as consumed, in order, in one or two pieces of the ring (the second
 * may be empty). Returns the bytes. Valid until the commit. */
LUO_API size_t luo_tcp_input(const struct luo_tcp* tcp, struct iovec pieces[2]);
/* Adds to the output, which counts from the next commit on. Returns 0; -ENOBUFS: it does not fit, nothing is added. */
LUO_API int luo_tcp_reply(struct luo_tcp* tcp, const void* bytes, size_t count);
/* Bytes that luo_tcp_reply() would take now. */
LUO_API size_t luo_tcp_room(const struct luo_tcp* tcp);
/* The application's words, LUO_TCP_WORDS of them, 0 at first: what is written there counts from the next commit on.
 * Valid until then; ask again after it. */
LUO_API uint64_t* luo_tcp_words(struct luo_tcp* tcp);
/* In one step, with one store: `consumed` bytes of the input are done with, what was replied will be sent, the words
 * are as written. -EINVAL: there is not that much input. */
LUO_API int luo_tcp_commit(struct luo_tcp* tcp, size_t consumed);
/* Sends what is committed, as far as the socket takes it, without waiting and without SIGPIPE. Returns the bytes that
 * still wait: 0, nothing. Others as send(2), except -EAGAIN. */
LUO_API ssize_t luo_tcp_send(struct luo_tcp* tcp, int socket);

#ifdef __cplusplus
}
#endif
#endif
