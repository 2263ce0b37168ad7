/* Does what the kernel's LUO has defects in, and prints what came of it: one "name=value" a line. Judges nothing: what
 * is expected is in defects.py, of the bare kernel and of luod (under `luoctl run`), for this same program.
 *
 *   luo-defects before|after        what is done before a kexec (a child stays and holds it), and after it
 *   luo-defects many N [duplicate]  N sessions, and then one of a name that is taken; stays likewise
 *   luo-defects came N              how many of them are there
 *   luo-defects hold BYTES COMMAND ARGUMENT...    runs a command while a file of so many bytes is preserved
 */
#include <sys/stat.h>

#include "calls.h"

enum { kTooLate = 41, kSecond = 42 };

static const char* name_of(int result) {
  if (result >= 0) return "done";
  switch (errno) {
    case EFAULT: return "EFAULT";
    case EEXIST: return "EEXIST";
    case ENOENT: return "ENOENT";
    case EINVAL: return "EINVAL";
    case EPERM: return "EPERM";
    case EBUSY: return "EBUSY";
    default: return strerror(errno);
  }
}
static void say(const char* name, const char* value) { printf("%s=%s\n", name, value); }
static void say_number(const char* name, unsigned long value) { printf("%s=%#lx\n", name, value); }

/* A copy of an argument where the kernel can read but not write. */
static void* unwritable(const void* argument, size_t bytes) {
  void* const page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) die("mmap");
  memcpy(page, argument, bytes);
  must(mprotect(page, 4096, PROT_READ), "mprotect");
  return page;
}

static unsigned long seals(int fd) { return (unsigned long)must(fcntl(fd, F_GET_SEALS), "F_GET_SEALS"); }
static unsigned long mode(int fd) {
  struct stat of;
  must(fstat(fd, &of), "fstat");
  return of.st_mode & 07777;
}
static uint64_t seed_of(int fd) {
  uint64_t seed = 0;
  if (pread(fd, &seed, sizeof seed, 0) != sizeof seed) die("pread");
  return seed;
}

/* The caller ends; a child keeps what it holds until the machine goes down. */
static void stay(void) {
  fflush(stdout);
  if (must(fork(), "fork") != 0) exit(0);
  setsid();
  for (int fd = 0; fd < 3; ++fd) close(fd);
  for (;;) pause();
}

static void before(void) {
  const int dev = device();

  const int d2 = must(memfd_create("d2", MFD_NOEXEC_SEAL), "memfd_create");
  if (write(d2, "written", 7) != 7) die("write");
  say_number("d2.seals.before", seals(d2));
  say_number("d2.mode.before", mode(d2));
  must(preserve(must(create(dev, "d2"), "create d2"), d2, 2), "preserve d2");

  must(preserve(must(create(dev, "d3"), "create d3"), memfd_of(4096, 3), 3), "preserve d3");

  const int d4 = must(create(dev, "d4"), "create d4");
  const struct luo_uapi_file refused = {.size = sizeof refused, .fd = memfd_of(4096, kTooLate), .token = 4};
  say("d4.preserve", name_of(ioctl(d4, LUO_UAPI_PRESERVE_FD, unwritable(&refused, sizeof refused))));
  say("d4.token", name_of(preserve(d4, memfd_of(4096, kSecond), 4)));

  const int d5 = must(memfd_create("d5", MFD_ALLOW_SEALING), "memfd_create");
  must(ftruncate(d5, 4096), "ftruncate");
  must(preserve(must(create(dev, "d5"), "create d5"), d5, 5), "preserve d5");
  say("d5.seal", name_of(fcntl(d5, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK)));
  say_number("d5.seals.before", seals(d5));
  stay();
}

static void after(void) {
  const int dev = device();

  const int s2 = must(retrieve_session(dev, "d2"), "retrieve session d2");
  const int d2 = must(retrieve(s2, 2), "retrieve d2");
  say_number("d2.seals.after", seals(d2));
  say_number("d2.mode.after", mode(d2));
  say("d2.write", name_of((int)pwrite(d2, "Written", 7, 0)));

  struct luo_uapi_session third = {.size = sizeof third, .name = "d3"};
  say("d3.retrieve", name_of(ioctl(dev, LUO_UAPI_RETRIEVE_SESSION, unwritable(&third, sizeof third))));
  const int s3 = retrieve_session(dev, "d3");
  say("d3.again", name_of(s3));
  say("d3.file", s3 < 0 ? "gone" : name_of(retrieve(s3, 3)));

  const int s4 = must(retrieve_session(dev, "d4"), "retrieve session d4");
  const uint64_t came = seed_of(must(retrieve(s4, 4), "retrieve d4"));
  say("d4.came", came == kTooLate ? "the refused one" : came == kSecond ? "the second" : "something else");
  const struct luo_uapi_finish end = {.size = sizeof end};
  say("d4.finish", name_of(ioctl(s4, LUO_UAPI_FINISH, unwritable(&end, sizeof end))));
  say("d4.after_finish", name_of(retrieve(s4, 4)));

  const int s5 = must(retrieve_session(dev, "d5"), "retrieve session d5");
  say_number("d5.seals.after", seals(must(retrieve(s5, 5), "retrieve d5")));
  for (int session = 0; session < 4; ++session) finish((int[]){s2, s3, s4, s5}[session]);
}

static void many(int count, int duplicate) {
  const int dev = device();
  char name[32];
  for (int i = 0; i < count; ++i) {
    snprintf(name, sizeof name, "many-%d", i);
    must(create(dev, name), "create");
  }
  if (duplicate) say("d1.duplicate", name_of(create(dev, "many-0")));
  stay();
}

static void came(int count) {
  const int dev = device();
  char name[32];
  int there = 0;
  for (int i = 0; i < count; ++i) {
    snprintf(name, sizeof name, "many-%d", i);
    const int session = retrieve_session(dev, name);
    if (session >= 0 && finish(session) == 0) ++there;
  }
  printf("d1.came=%d\n", there);
}

static void hold(uint64_t bytes, char** command) {
  const int session = must(create(device(), "hold"), "create");
  must(preserve(session, memfd_of(bytes, 1), 1), "preserve");
  must(fcntl(session, F_SETFD, 0), "F_SETFD");
  execvp(command[0], command);
  die(command[0]);
}

int main(int argc, char** argv) {
  const char* const what = argc > 1 ? argv[1] : "";
  if (strcmp(what, "before") == 0) before();
  else if (strcmp(what, "after") == 0) after();
  else if (strcmp(what, "many") == 0 && argc > 2) many(atoi(argv[2]), argc > 3);
  else if (strcmp(what, "came") == 0 && argc > 2) came(atoi(argv[2]));
  else if (strcmp(what, "hold") == 0 && argc > 3) hold(strtoull(argv[2], NULL, 0), argv + 3);
  else return fprintf(stderr, "usage: luo-defects before|after|many|came|hold ...\n"), 2;
  return 0;
}
