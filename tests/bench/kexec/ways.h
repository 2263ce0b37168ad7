/* The two ways to do the same: the bare kernel's ioctls, one for each file, and libluo, whose batches luod passes on.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "luo/luo.h"

struct way {
  const char* name;
  int device;                  /* bare */
  struct luo_connection* luod; /* libluo */
};

/* "bare", "luod" (waits until it serves). Ends the program if there is none. */
struct way open_way(const char* name);

int is_bare(const struct way* way);
/* These end the program if it does not work. */
int make_session(const struct way* way, const char* name);
void make_sessions(const struct way* way, const char* const* names, int* sessions, size_t count);
int take_session(const struct way* way, const char* name);
void take_sessions(const struct way* way, const char* const* names, int* sessions, size_t count);
void keep_file(const struct way* way, int session, int fd, uint64_t token);
/* File i into sessions[i], or out of it. */
void keep_files(const struct way* way, const int* sessions, const int* fds, const uint64_t* tokens, size_t count);
int take_file(const struct way* way, int session, uint64_t token);
void take_files(const struct way* way, const int* sessions, const uint64_t* tokens, int* fds, size_t count);
void finish_session(const struct way* way, int session);
