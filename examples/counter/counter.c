/* A number that outlives its process, its luod and, where there is a kernel with LUO, its kernel: the smallest
 * program that uses libluo. Needs nothing but the installed package:
 *
 *     cc counter.c $(pkg-config --cflags --libs libluo) -o counter
 *     luod & ./counter &              "1"
 *     luoctl update simulated         ends it, as a kexec would; the session waits for the next
 *     ./counter &                     "2"
 */
#include <errno.h>
#include <luo/luo.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TOKEN = 1, BYTES = 4096 };

static int failed(const char* what) {
  fprintf(stderr, "counter: %s: %s\n", what, luo_last_error());
  return 1;
}

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "counter";
  struct luo_connection* luod = NULL;
  if (luo_open(NULL, &luod) < 0) return failed("connect to luod");

  /* Left by the one before us? Then it is ours now, and goes on to the next. */
  int memfd = -1;
  int session = luo_session_retrieve(luod, name);
  if (session >= 0) {
    memfd = luo_retrieve_fd(luod, session, TOKEN);
    if (memfd < 0) return failed("get the memory back");
    if (luo_session_renew(luod, session) < 0) return failed("keep the session");
  } else if (session == -ENOENT) {
    session = luo_session_create(luod, name);
    if (session < 0) return failed("create a session");
    memfd = memfd_create("counter", MFD_CLOEXEC);
    if (memfd < 0 || ftruncate(memfd, BYTES) != 0) return perror("counter: memfd"), 1;
    if (luo_preserve_fd(luod, session, memfd, TOKEN) < 0) return failed("preserve the memory");
  } else {
    return failed("retrieve the session");
  }

  unsigned long* count = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
  if (count == MAP_FAILED) return perror("counter: mmap"), 1;
  printf("%lu\n", ++*count);
  fflush(stdout);

  /* The session lives as long as its descriptor is open somewhere. It hangs up when everything has crossed. */
  struct pollfd ends[2] = {{.fd = session, .events = 0}, {.fd = STDIN_FILENO, .events = POLLIN}};
  while (poll(ends, 2, -1) < 0 && errno == EINTR) {}
  luo_close(luod);
  return 0;
}
