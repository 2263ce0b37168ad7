/* Keeps sessions and files over a kexec and says, as JSON in one line, what each step took: by the bare kernel's ioctls
 * or through luod. The time over the kexec is told by the processor's cycle counter, which goes on.
 *
 *   luo-timeline bare|luod fill SESSIONS FILES BIG    FILES of 4 KiB in each session, and one of BIG bytes. bare:
 * leaves the kernel then, which must be loaded; luod: a child stays and is ready when luod announces an update
 *   luo-timeline bare|luod take SESSIONS FILES BIG    retrieves all, then verifies it
 *   luo-timeline bare|luod deep FILES                 FILES of 4 KiB in one session, and given up again
 *   luo-timeline bare|luod curve-fill SESSIONS FILES  so many sessions one by one, and so many files in one of them
 *   luo-timeline bare|luod curve-take FILES
 */
#include <linux/reboot.h>
#include <poll.h>
#include <sys/reboot.h>
#include <time.h>
#include <x86intrin.h>

#include "../../vm/calls.h"
#include "ways.h"

#define FILE_BYTES 4096U
#define CLOCK_SESSION "timeline-clock"
#define BIG_SESSION "timeline-big"
#define CURVE_SESSION "timeline-curve"

/* The moment before the kexec; lies in a preserved file. */
struct moment {
  uint64_t cycles, real_ns;
  double cycles_per_ns;
};

static uint64_t ns_of(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static uint64_t first_cycles, first_ns;
static void note_clocks(void) {
  first_ns = ns_of(CLOCK_MONOTONIC_RAW);
  first_cycles = __rdtsc();
}
/* Since note_clocks(). */
static double cycles_per_ns(void) {
  return (double)(__rdtsc() - first_cycles) / (double)(ns_of(CLOCK_MONOTONIC_RAW) - first_ns);
}

static uint64_t now_ns(void) { return ns_of(CLOCK_MONOTONIC); }
static double ms_since(uint64_t began) { return (double)(now_ns() - began) / 1e6; }

static void name_session(char* name, unsigned i) { snprintf(name, LUO_NAME_LENGTH, "timeline-%u", i); }
static uint64_t seed_of(unsigned session, unsigned file) {
  return (uint64_t)session << 32 | file | 0x1000000000000000U;
}

static struct moment* clock_file(const struct way* way, int taken) {
  int fd;
  if (taken) {
    fd = take_file(way, take_session(way, CLOCK_SESSION), 1);
  } else {
    fd = memfd_of(FILE_BYTES, 0);
    keep_file(way, make_session(way, CLOCK_SESSION), fd, 1);
  }
  struct moment* const at = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) die("mmap");
  return at;
}

static void note_moment(struct moment* moment) {
  moment->cycles_per_ns = cycles_per_ns();
  moment->real_ns = ns_of(CLOCK_REALTIME);
  moment->cycles = __rdtsc();
}

/* luod's client: ready as soon as it is asked. */
static struct luo_connection* connection;
static void prepare(void* moment, const struct luo_update* update) {
  note_moment(moment);
  if (luo_update_ready(connection, update->id) != 0) die("ready");
}

static void stay(const struct way* way, int waiting, struct moment* moment) {
  fflush(stdout);
  if (write(waiting, "r", 1) != 1) die("write");
  for (int fd = 0; fd < 3; ++fd) close(fd);
  if (is_bare(way))
    for (;;) pause();
  const struct luo_update_callbacks callbacks = {.prepare = prepare};
  connection = way->luod;
  if (moment != NULL && luo_on_update(connection, &callbacks, moment) != 0) _exit(4);
  struct pollfd luod = {.fd = luo_fd(connection), .events = POLLIN};
  while (poll(&luod, 1, -1) > 0 && luo_dispatch(connection) >= 0) {}
  _exit(0);
}

/* All sessions and files of a timeline; those of a session stand beside each other. */
struct kept {
  unsigned sessions, files; /* of these in each session */
  size_t count;
  char (*text)[LUO_NAME_LENGTH];
  const char** names;
  int *held, *session_of, *fds; /* by session, by file, by file */
  uint64_t* tokens;
};

static struct kept room_for(unsigned sessions, unsigned files) {
  const size_t count = (size_t)sessions * files;
  const struct kept kept = {sessions,
                            files,
                            count,
                            calloc(sessions, sizeof *kept.text),
                            calloc(sessions, sizeof *kept.names),
                            calloc(sessions, sizeof *kept.held),
                            calloc(count, sizeof *kept.session_of),
                            calloc(count, sizeof *kept.fds),
                            calloc(count, sizeof *kept.tokens)};
  if (kept.text == NULL || kept.names == NULL || kept.held == NULL || kept.session_of == NULL || kept.fds == NULL ||
      kept.tokens == NULL)
    die("calloc");
  for (unsigned s = 0; s < sessions; ++s) name_session(kept.text[s], s), kept.names[s] = kept.text[s];
  for (size_t i = 0; i < count; ++i) kept.tokens[i] = i % files;
  return kept;
}

/* Once the sessions are there. */
static void say_whose(const struct kept* kept) {
  for (size_t i = 0; i < kept->count; ++i) kept->session_of[i] = kept->held[i / kept->files];
}

static void fill(const char* way_name, unsigned sessions, unsigned files, uint64_t big_bytes) {
  const int bare = strcmp(way_name, "bare") == 0;
  const int waiting = bare ? -1 : go_behind();
  const struct way way = open_way(way_name);
  note_clocks();
  const struct kept kept = room_for(sessions, files);
  for (unsigned s = 0; s < sessions; ++s)
    for (unsigned f = 0; f < files; ++f) kept.fds[s * files + f] = memfd_of(FILE_BYTES, seed_of(s, f));
  const int big = memfd_of(big_bytes, 1);
  struct moment* const moment = clock_file(&way, 0);

  uint64_t began = now_ns();
  make_sessions(&way, kept.names, kept.held, sessions);
  const double create_ms = ms_since(began);
  say_whose(&kept);
  began = now_ns();
  keep_files(&way, kept.session_of, kept.fds, kept.tokens, kept.count);
  const double preserve_ms = ms_since(began);
  const int big_session = make_session(&way, BIG_SESSION);
  began = now_ns();
  keep_file(&way, big_session, big, 1);
  printf(
      "{\"way\": \"%s\", \"step\": \"fill\", \"create_ms\": %.3f, \"preserve_ms\": %.3f, \"preserve_big_ms\": %.3f}\n",
      way_name, create_ms, preserve_ms, ms_since(began));
  if (!bare) stay(&way, waiting, moment);
  fflush(stdout);
  sync();
  note_moment(moment);
  sync(); /* as luod does, after its freeze */
  must(reboot((int)LINUX_REBOOT_CMD_KEXEC), "reboot");
}

static void verify(int fd, uint64_t bytes, uint64_t seed) {
  const uint64_t* const at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED || lseek(fd, 0, SEEK_END) != (off_t)bytes) die("a file has another size");
  for (uint64_t page = 0; page < bytes / 4096; ++page)
    if (at[page * 512] != seed || at[page * 512 + 1] != page) {
      fprintf(stderr, "page %lu of the file of seed %#lx is another\n", (unsigned long)page, (unsigned long)seed);
      exit(5);
    }
  munmap((void*)at, bytes);
}

static void take(const char* way_name, unsigned sessions, unsigned files, uint64_t big_bytes) {
  const struct kept kept = room_for(sessions, files);
  note_clocks();
  uint64_t began = now_ns();
  const struct way way = open_way(way_name);
  const double open_ms = ms_since(began);
  began = now_ns();
  take_sessions(&way, kept.names, kept.held, sessions);
  const double sessions_ms = ms_since(began);
  say_whose(&kept);
  began = now_ns();
  take_files(&way, kept.session_of, kept.tokens, kept.fds, kept.count);
  const double files_ms = ms_since(began);
  began = now_ns();
  const int big_session = take_session(&way, BIG_SESSION);
  const int big = take_file(&way, big_session, 1);
  const double big_ms = ms_since(began);
  const struct moment* const moment = clock_file(&way, 1);
  const uint64_t cycles = __rdtsc(), real_ns = ns_of(CLOCK_REALTIME);

  began = now_ns();
  for (unsigned s = 0; s < sessions; ++s)
    for (unsigned f = 0; f < files; ++f) verify(kept.fds[s * files + f], FILE_BYTES, seed_of(s, f));
  verify(big, big_bytes, 1);
  const double verify_ms = ms_since(began);
  began = now_ns();
  for (unsigned s = 0; s < sessions; ++s) finish_session(&way, kept.held[s]);
  finish_session(&way, big_session);
  const double finish_ms = ms_since(began);
  printf(
      "{\"way\": \"%s\", \"step\": \"take\", \"over_ms\": %.3f, \"over_by_real_ms\": %.3f, \"cycles_per_ns_before\": "
      "%.6f, "
      "\"cycles_per_ns_after\": %.6f, \"up_ms\": %.3f, \"open_ms\": %.3f, \"retrieve_sessions_ms\": %.3f, "
      "\"retrieve_files_ms\": %.3f, \"retrieve_big_ms\": %.3f, \"verify_ms\": %.3f, \"finish_ms\": %.3f}\n",
      way_name, (double)(cycles - moment->cycles) / moment->cycles_per_ns / 1e6,
      (double)(int64_t)(real_ns - moment->real_ns) / 1e6, moment->cycles_per_ns, cycles_per_ns(),
      (double)first_ns / 1e6, open_ms, sessions_ms, files_ms, big_ms, verify_ms, finish_ms);
}

static void deep(const char* way_name, unsigned files) {
  const struct way way = open_way(way_name);
  const struct kept kept = room_for(1, files);
  for (unsigned f = 0; f < files; ++f) kept.fds[f] = memfd_of(FILE_BYTES, seed_of(0, f));
  make_sessions(&way, kept.names, kept.held, 1);
  say_whose(&kept);
  const uint64_t began = now_ns();
  keep_files(&way, kept.session_of, kept.fds, kept.tokens, kept.count);
  printf("{\"way\": \"%s\", \"step\": \"deep\", \"preserve_ms\": %.3f}\n", way_name, ms_since(began));
}

static int by_size(const void* a, const void* b) {
  const uint64_t x = *(const uint64_t*)a, y = *(const uint64_t*)b;
  return x < y ? -1 : x > y;
}

/* Medians of eight stretches, each at the number that was there in its middle. */
static void print_curve(const char* what, uint64_t* ns, unsigned count) {
  printf("\"%s\": [", what);
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned first = count / 8 * i, n = count / 8;
    qsort(ns + first, n, sizeof *ns, by_size);
    printf("%s{\"at\": %u, \"median_us\": %.3f}", i == 0 ? "" : ", ", first + n / 2, (double)ns[first + n / 2] / 1e3);
  }
  printf("]");
}

static void curve_fill(const char* way_name, unsigned sessions, unsigned files) {
  const int waiting = go_behind();
  const struct way way = open_way(way_name);
  uint64_t* const session_ns = calloc(sessions, sizeof *session_ns);
  uint64_t* const file_ns = calloc(files, sizeof *file_ns);
  int* const fds = calloc(files, sizeof *fds);
  if (session_ns == NULL || file_ns == NULL || fds == NULL) die("calloc");
  char name[LUO_NAME_LENGTH];
  for (unsigned s = 0; s < sessions; ++s) {
    name_session(name, s);
    const uint64_t began = now_ns();
    make_session(&way, name);
    session_ns[s] = now_ns() - began;
  }
  for (unsigned f = 0; f < files; ++f) fds[f] = memfd_of(FILE_BYTES, seed_of(0, f));
  const int session = make_session(&way, CURVE_SESSION);
  for (unsigned f = 0; f < files; ++f) {
    const uint64_t began = now_ns();
    keep_file(&way, session, fds[f], f);
    file_ns[f] = now_ns() - began;
  }
  printf("{\"way\": \"%s\", \"step\": \"curve-fill\", ", way_name);
  print_curve("create", session_ns, sessions);
  printf(", ");
  print_curve("preserve", file_ns, files);
  printf("}\n");
  stay(&way, waiting, NULL);
}

static void curve_take(const char* way_name, unsigned files) {
  const struct way way = open_way(way_name);
  uint64_t* const ns = calloc(files, sizeof *ns);
  if (ns == NULL) die("calloc");
  const int session = take_session(&way, CURVE_SESSION);
  for (unsigned f = 0; f < files; ++f) {
    const uint64_t began = now_ns();
    const int fd = take_file(&way, session, f);
    ns[f] = now_ns() - began;
    verify(fd, FILE_BYTES, seed_of(0, f));
    close(fd);
  }
  printf("{\"way\": \"%s\", \"step\": \"curve-take\", ", way_name);
  print_curve("retrieve", ns, files);
  printf("}\n");
}

int main(int argc, char** argv) {
  const char* const step = argc > 2 ? argv[2] : "";
  unsigned long numbers[3] = {0, 0, 0};
  for (int i = 0; i < 3 && i + 3 < argc; ++i) numbers[i] = strtoul(argv[i + 3], NULL, 0);
  const unsigned first = (unsigned)numbers[0], second = (unsigned)numbers[1];
  if (strcmp(step, "fill") == 0 && argc == 6) fill(argv[1], first, second, numbers[2]);
  else if (strcmp(step, "take") == 0 && argc == 6) take(argv[1], first, second, numbers[2]);
  else if (strcmp(step, "deep") == 0 && argc == 4) deep(argv[1], first);
  else if (strcmp(step, "curve-fill") == 0 && argc == 5) curve_fill(argv[1], first, second);
  else if (strcmp(step, "curve-take") == 0 && argc == 4) curve_take(argv[1], first);
  else return fprintf(stderr, "usage: luo-timeline bare|luod fill|take|deep|curve-fill|curve-take ...\n"), 2;
  return 0;
}
