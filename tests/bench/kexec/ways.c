#include "ways.h"

#include "../../vm/calls.h"

static void fail_luod(const char* what) {
  fprintf(stderr, "%s: %s\n", what, luo_last_error());
  exit(3);
}

int is_bare(const struct way* way) { return way->luod == NULL; }

struct way open_way(const char* name) {
  struct way way = {.name = name, .device = -1};
  if (strcmp(name, "bare") == 0) {
    way.device = device();
    return way;
  }
  /* It may be starting just now; there is nothing else to wait for than its socket. */
  for (int tries = 0; tries < 60000; ++tries) {
    const int result = luo_open(NULL, &way.luod);
    if (result == 0) return way;
    if (result != -ENOENT && result != -ECONNREFUSED) break;
    usleep(1000);
  }
  fail_luod("luod");
  return way;
}

int make_session(const struct way* way, const char* name) {
  if (is_bare(way)) return must(create(way->device, name), "create");
  const int session = luo_session_create(way->luod, name);
  if (session < 0) fail_luod("create");
  return session;
}

void make_sessions(const struct way* way, const char* const* names, int* sessions, size_t count) {
  if (is_bare(way)) {
    for (size_t i = 0; i < count; ++i) sessions[i] = make_session(way, names[i]);
    return;
  }
  if (luo_session_create_each(way->luod, names, sessions, count) != (int)count) fail_luod("create each");
}

int take_session(const struct way* way, const char* name) {
  if (is_bare(way)) return must(retrieve_session(way->device, name), "retrieve session");
  const int session = luo_session_retrieve(way->luod, name);
  if (session < 0) fail_luod("retrieve session");
  return session;
}

void take_sessions(const struct way* way, const char* const* names, int* sessions, size_t count) {
  if (is_bare(way)) {
    for (size_t i = 0; i < count; ++i) sessions[i] = take_session(way, names[i]);
    return;
  }
  if (luo_session_retrieve_each(way->luod, names, sessions, count) != (int)count) fail_luod("retrieve each");
}

void keep_file(const struct way* way, int session, int fd, uint64_t token) {
  if (is_bare(way)) must(preserve(session, fd, token), "preserve");
  else if (luo_preserve_fd(way->luod, session, fd, token) != 0) fail_luod("preserve");
}

void keep_files(const struct way* way, const int* sessions, const int* fds, const uint64_t* tokens, size_t count) {
  if (is_bare(way)) {
    for (size_t i = 0; i < count; ++i) keep_file(way, sessions[i], fds[i], tokens[i]);
    return;
  }
  int* const errors = calloc(count, sizeof *errors);
  if (errors == NULL) die("calloc");
  if (luo_preserve_each(way->luod, sessions, fds, tokens, errors, count) != (int)count) fail_luod("preserve each");
  free(errors);
}

int take_file(const struct way* way, int session, uint64_t token) {
  const int fd = is_bare(way) ? must(retrieve(session, token), "retrieve") : luo_retrieve_fd(way->luod, session, token);
  if (fd < 0) fail_luod("retrieve");
  return fd;
}

void take_files(const struct way* way, const int* sessions, const uint64_t* tokens, int* fds, size_t count) {
  if (is_bare(way)) {
    for (size_t i = 0; i < count; ++i) fds[i] = take_file(way, sessions[i], tokens[i]);
    return;
  }
  if (luo_retrieve_each(way->luod, sessions, tokens, fds, count) != (int)count) fail_luod("retrieve each");
}

void finish_session(const struct way* way, int session) {
  if (is_bare(way)) must(finish(session), "finish");
  else if (luo_session_finish(way->luod, session) != 0) fail_luod("finish");
}
