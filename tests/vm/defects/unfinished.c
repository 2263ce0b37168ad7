/* A session whose handler (stubborn.cc) is not done when it is closed. Prints facts, as defects.c does.
 *   luo-unfinished keep    before an update; a child stays       luo-unfinished take    after it
 */
#include "../calls.h"
#include "luo/luo.h"

static struct luo_connection* luod;

static int good(int result, const char* what) {
  if (result >= 0) return result;
  fprintf(stderr, "%s: %s\n", what, luo_last_error());
  exit(3);
}
static const char* name_of(int result) {
  return result >= 0 ? "done" : result == -EBUSY ? "EBUSY" : result == -ENOENT ? "ENOENT" : strerror(-result);
}

static void keep(void) {
  const int waiting = go_behind();
  good(luo_open(NULL, &luod), "luod");
  const int session = good(luo_session_create(luod, "d8"), "create");
  good(luo_session_set_option(luod, session, "transient", "allow"), "transient");
  const int file = must(memfd_create("stubborn", 0), "memfd_create");
  if (write(file, "busy", 4) != 4) die("write");
  good(luo_preserve_fd(luod, session, file, 8), "preserve");
  if (write(waiting, "k", 1) != 1) die("write");
  for (int fd = 0; fd < 3; ++fd) close(fd);
  for (;;) pause();
}

static void take(void) {
  good(luo_open(NULL, &luod), "luod");
  int session = good(luo_session_retrieve(luod, "d8"), "retrieve session");
  printf("d8.finish=%s\n", name_of(luo_session_finish(luod, session)));
  close(session);
  session = luo_session_retrieve(luod, "d8");
  printf("d8.again=%s\n", name_of(session));
  if (session < 0) return;
  const int file = luo_retrieve_fd(luod, session, 8);
  printf("d8.file=%s\n", name_of(file));
  if (file < 0) return;
  if (pwrite(file, "done", 4, 0) != 4) die("pwrite");
  printf("d8.finish_later=%s\n", name_of(luo_session_finish(luod, session)));
  close(session);
  printf("d8.at_last=%s\n", name_of(luo_session_retrieve(luod, "d8")));
}

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "keep") == 0) keep();
  else if (argc == 2 && strcmp(argv[1], "take") == 0) take();
  else return fprintf(stderr, "usage: luo-unfinished keep|take\n"), 2;
  return 0;
}
