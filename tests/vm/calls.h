/* The kernel's LUO as it is, for small C programs of the virtual machine: no library of ours is in between. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "luo/uapi.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

static inline void die(const char* what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(3);
}

static inline int must(int result, const char* what) {
  if (result < 0) die(what);
  return result;
}

/* The program ends for whoever waits for it, and goes on as its child. A byte written to what it returns ends
 * that waiting; without one it ends with 3. */
static inline int go_behind(void) {
  int ends[2];
  must(pipe(ends), "pipe");
  if (must(fork(), "fork") != 0) {
    char byte;
    close(ends[1]);
    exit(read(ends[0], &byte, 1) == 1 ? 0 : 3);
  }
  setsid();
  return ends[1];
}

static inline int device(void) { return must(open("/dev/liveupdate", O_RDWR | O_CLOEXEC), "open /dev/liveupdate"); }

/* These give a descriptor or 0, else -1 and errno. */
static inline int create(int dev, const char* name) {
  struct luo_uapi_session a = {.size = sizeof a};
  snprintf((char*)a.name, sizeof a.name, "%s", name);
  return ioctl(dev, LUO_UAPI_CREATE_SESSION, &a) < 0 ? -1 : a.fd;
}
static inline int retrieve_session(int dev, const char* name) {
  struct luo_uapi_session a = {.size = sizeof a};
  snprintf((char*)a.name, sizeof a.name, "%s", name);
  return ioctl(dev, LUO_UAPI_RETRIEVE_SESSION, &a) < 0 ? -1 : a.fd;
}
static inline int preserve(int session, int fd, uint64_t token) {
  struct luo_uapi_file a = {.size = sizeof a, .fd = fd, .token = token};
  return ioctl(session, LUO_UAPI_PRESERVE_FD, &a);
}
static inline int retrieve(int session, uint64_t token) {
  struct luo_uapi_file a = {.size = sizeof a, .token = token};
  return ioctl(session, LUO_UAPI_RETRIEVE_FD, &a) < 0 ? -1 : a.fd;
}
static inline int finish(int session) {
  struct luo_uapi_finish a = {.size = sizeof a};
  return ioctl(session, LUO_UAPI_FINISH, &a);
}

/* A memfd of that many bytes, each page of which begins with `seed` and its number. */
static inline int memfd_of(uint64_t bytes, uint64_t seed) {
  const int fd = must(memfd_create("vm", MFD_CLOEXEC), "memfd_create");
  must(ftruncate(fd, (off_t)bytes), "ftruncate");
  if (bytes == 0) return fd;
  uint64_t* const at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) die("mmap");
  for (uint64_t page = 0; page < bytes / 4096; ++page) at[page * 512] = seed, at[page * 512 + 1] = page;
  munmap(at, bytes);
  return fd;
}
