/* echo: an echo server whose connections survive it. Kill it with SIGKILL at any moment and start it again: every
 * client goes on, and each byte comes back exactly once.
 *
 *   cc -o echo echo.c $(pkg-config --cflags --libs libluo)
 *   ./echo 7007 &                     # needs a luod (LUO_SOCKET says where)
 *   kill -9 $!; ./echo 7007 &         # clients notice a pause at most
 *
 * Two things make that so. luod keeps the listening socket, the connections and the memory in a session that waits for
 * its owner to come back (luo_session_hold). And what each connection was about is in that memory, in a struct luo_tcp
 * (luo/tcp.h), which after a crash learns from the kernel how far reading and writing had come.
 *
 * SIGTERM ends it for good. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <luo/luo.h>
#include <luo/tcp.h>

#define SESSION "echo"
#define MOST 256                                          /* connections */
#define SLOT (1 << 16)                                    /* bytes of memory for each */
enum { MEMORY = 1, LISTENER = 2, FIRST_CONNECTION = 16 }; /* tokens in the session */

static struct luo_connection* luo;
static int session, listener;
static char* memory;
static struct {
  int socket;
  struct luo_tcp* tcp;
} peers[MOST]; /* socket 0: free */
static volatile sig_atomic_t stopping;

static void stop(int number) { (void)number, stopping = 1; }

static int check(int result, const char* what) {
  if (result >= 0) return result;
  fprintf(stderr, "echo: %s: %s (%s)\n", what, strerror(-result), luo_last_error());
  exit(1);
}

static int posix(int result, const char* what) { return check(result < 0 ? -errno : result, what); }

/* The first one: everything is made, and preserved before anybody can connect. */
static void create(int port) {
  session = check(luo_session_create(luo, SESSION), "make a session");
  int file = posix(memfd_create(SESSION, MFD_CLOEXEC), "make the memory");
  posix(ftruncate(file, (off_t)MOST * SLOT), "make the memory");
  memory = mmap(NULL, (size_t)MOST * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) check(-errno, "map the memory");
  listener = posix(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket");
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  posix(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)), "setsockopt");
  posix(bind(listener, (struct sockaddr*)&address, sizeof address), "bind");
  check(luo_preserve_fd(luo, session, file, MEMORY), "preserve the memory");
  check(luo_preserve_fd(luo, session, listener, LISTENER), "preserve the listener");
  check(luo_session_hold(luo, session, LUO_HOLD_USER), "make the session wait for us");
  posix(listen(listener, 64), "listen");
}

static void give_up(int i) {
  luo_unpreserve_fd(luo, session, FIRST_CONNECTION + (uint64_t)i);
  shutdown(peers[i].socket, SHUT_RDWR);
  close(peers[i].socket);
  peers[i].socket = 0;
}

/* The next one: takes what the one before left, and asks each connection how far it has come. */
static void restore(void) {
  check(luo_session_renew(luo, session), "own the session"); /* if it came through a crossing; else nothing to do */
  int file = check(luo_retrieve_fd(luo, session, MEMORY), "get the memory");
  memory = mmap(NULL, (size_t)MOST * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) check(-errno, "map the memory");
  listener = check(luo_retrieve_fd(luo, session, LISTENER), "get the listener");
  posix(listen(listener, 64), "listen"); /* if it was killed before it did */
  uint64_t tokens[MOST + 2];
  int count = check(luo_session_tokens(luo, session, tokens, MOST + 2), "list the connections");
  for (int t = 0; t < count; t++) {
    if (tokens[t] < FIRST_CONNECTION) continue;
    int i = (int)(tokens[t] - FIRST_CONNECTION);
    peers[i].socket = check(luo_retrieve_fd(luo, session, tokens[t]), "get a connection");
    int learned = luo_tcp_recover(memory + (size_t)i * SLOT, SLOT, peers[i].socket, &peers[i].tcp);
    if (learned < 0) {
      fprintf(stderr, "echo: connection %d: %s\n", i, luo_last_error());
      give_up(i);
    }
  }
}

/* Preserved before a byte of it is read: from its first byte on a connection survives. */
static void welcome(void) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), i = 0;
  if (fd < 0) return;
  while (i < MOST && peers[i].socket != 0) i++;
  if (i < MOST && luo_tcp_create(memory + (size_t)i * SLOT, SLOT, LUO_TCP_ACCEPTED, &peers[i].tcp) == 0 &&
      luo_preserve_fd(luo, session, fd, FIRST_CONNECTION + (uint64_t)i) == 0)
    peers[i].socket = fd;
  else close(fd);
}

/* Receives, echoes, sends. What is echoed and that it was read is one commit. */
static void serve(int i) {
  struct luo_tcp* tcp = peers[i].tcp;
  ssize_t got = luo_tcp_receive(tcp, peers[i].socket);
  struct iovec in[2];
  size_t count = luo_tcp_input(tcp, in), room = luo_tcp_room(tcp);
  if (count > room) count = room;
  size_t first = count < in[0].iov_len ? count : in[0].iov_len;
  luo_tcp_reply(tcp, in[0].iov_base, first);
  luo_tcp_reply(tcp, in[1].iov_base, count - first);
  luo_tcp_commit(tcp, count);
  ssize_t waiting = luo_tcp_send(tcp, peers[i].socket);
  int over = got == 0 && luo_tcp_input(tcp, in) == 0 && waiting == 0;
  if (over || waiting < 0 || (got < 0 && got != -EAGAIN && got != -ENOBUFS)) give_up(i);
}

int main(int argc, char** argv) {
  sigaction(SIGTERM, &(struct sigaction){.sa_handler = stop}, NULL);
  check(luo_open(NULL, &luo), "connect to luod");
  session = luo_session_retrieve(luo, SESSION);
  if (session >= 0) restore();
  else if (session == -ENOENT) create(argc > 1 ? atoi(argv[1]) : 7007);
  else check(session, "retrieve the session");
  printf("ready\n"), fflush(stdout);

  while (!stopping) {
    struct pollfd files[MOST + 1] = {{.fd = listener, .events = POLLIN}};
    for (int i = 0; i < MOST; i++) {
      struct iovec in[2];
      files[i + 1].fd = peers[i].socket != 0 ? peers[i].socket : -1;
      if (peers[i].socket == 0) continue;
      int full = luo_tcp_room(peers[i].tcp) == 0, waits = luo_tcp_send(peers[i].tcp, peers[i].socket) != 0;
      files[i + 1].events = (short)((full ? 0 : POLLIN) | (waits ? POLLOUT : 0));
      if (!full && luo_tcp_input(peers[i].tcp, in) > 0) serve(i); /* left by the one before, or no room until now */
    }
    if (poll(files, MOST + 1, 1000) <= 0) continue;
    for (int i = 0; i < MOST; i++)
      if (files[i + 1].revents != 0 && peers[i].socket != 0) serve(i);
    if (files[0].revents != 0) welcome();
  }
  luo_session_hold(luo, session, LUO_HOLD_OFF); /* stopped, not killed: the session ends with us */
  return 0;
}
