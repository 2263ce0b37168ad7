/* libluo: keep files alive across updates, through luod or through the kernel's own /dev/liveupdate.
 *
 * A *session* is a named set of preserved files; its descriptor is a capability: whoever holds it may
 * use the session, and the session lives as long as the descriptor is open somewhere (dup, fork and
 * SCM_RIGHTS count). Closing the last one gives the session up. Close it with close(2).
 *
 * A `struct luo_connection` is a connection to luod. A process needs one; it may be used from several threads
 * (calls are serialised inside: one that waits, as luo_session_retrieve_wait, holds the others up, except
 * luo_fd and luo_dispatch; open a second connection for long waits). After fork(2) the child makes its
 * own with luo_open(); the parent's is of no use to it (calls on it give -EOWNERDEAD).
 *
 * Functions return 0 or a new descriptor (CLOEXEC), or a negative errno. The errno are those that
 * Linux 7.3 gives for the ioctl of the same name, in the same order of checks; what luod adds is said.
 * luo_last_error() has a sentence for people.
 *
 * When luod is killed or updated, calls wait until it serves again; no call fails or takes effect
 * twice because of that. -ECONNRESET means that luod is gone for good.
 */
#ifndef LUO_LUO_H
#define LUO_LUO_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LUO_API __attribute__((visibility("default")))
#define LUO_NAME_LENGTH 64 /* of a session's name, with its NUL */

struct luo_connection; /* a connection (not "struct luo": in C++ that is the namespace) */

/* Connects. `where` is the path of luod's socket, or of a liveupdate character device; NULL: $LUO_SOCKET,
 * else $XDG_RUNTIME_DIR/luo/luod.sock (root: /run/luo/luod.sock). A process started by
 * `luoctl update service` is introduced as the successor (LUO_TICKET in its environment).
 * -ENOENT, -ECONNREFUSED: nobody serves there. -EACCES. -EPROTO: not a luod. -EBUSY: the device is in use. */
LUO_API int luo_open(const char* where, struct luo_connection** out);
LUO_API void luo_close(struct luo_connection* luo); /* NULL is allowed. Sessions live on. */

/* A sentence about the last call of this thread that failed; valid until the next call. Never NULL. */
LUO_API const char* luo_last_error(void);

/* --- sessions ------------------------------------------------------------------------------------- */

/* A new outgoing session. `name`: 1 to 63 bytes, any but NUL. -EINVAL name; -EEXIST; -EMFILE; -ENOSPC. */
LUO_API int luo_session_create(struct luo_connection* luo, const char* name);
/* An incoming session that the side before left, or one that is held for its next owner (luo_session_hold), or, for a
 * successor, the session that it succeeds. -ENOENT: none of that name; -EINVAL: retrieved already; -EACCES: it is
 * held for somebody else. */
LUO_API int luo_session_retrieve(struct luo_connection* luo, const char* name);
/* Likewise, but waits until there is one. timeout_ms < 0: for ever. -ETIMEDOUT. (luod only) */
LUO_API int luo_session_retrieve_wait(struct luo_connection* luo, const char* name, int timeout_ms);
/* Name of a session, any descriptor of it. `name` has LUO_NAME_LENGTH bytes. */
LUO_API int luo_session_get_name(struct luo_connection* luo, int session, char* name);
/* The new owner is whole: gives up what was kept. Idempotent. -EINVAL: an outgoing session; -EBUSY. */
LUO_API int luo_session_finish(struct luo_connection* luo, int session);
/* Turns a retrieved session, with all its files and tokens, into an outgoing one in one step: at no
 * moment does nobody hold the data. For a successor this is what completes the handover.
 * -EINVAL: not retrieved; -EEXIST: an outgoing one of that name exists. (luod only) */
LUO_API int luo_session_renew(struct luo_connection* luo, int session);

/* What becomes of an outgoing session when its last descriptor closes, because its owner crashed, say. */
enum luo_hold {
  LUO_HOLD_OFF = 0,  /* it is given up, as in the kernel; so every session begins */
  LUO_HOLD_USER = 1, /* it stays, through every update: a process of the same uid (or root) retrieves it by name */
  LUO_HOLD_EXECUTABLE = 2, /* likewise, a process that also runs the executable of this path */
  LUO_HOLD_UNIT = 3        /* likewise, a process that is also in this control group, as of a systemd unit */
};
/* What is retrieved so is outgoing, and stays outgoing: its files can be retrieved and more be preserved at once;
 * luo_session_renew() succeeds and has nothing to do. After an update, one that has come in is held as well: it is
 * kept until it is finished, renewed, or dropped.
 * -EINVAL: it is not yet retrieved, or finished; -EBUSY: frozen; -EOPNOTSUPP: no control group. (luod only) */
LUO_API int luo_session_hold(struct luo_connection* luo, int session, enum luo_hold hold);
/* How the session crosses to another kernel (kexec); it stays so over every update. Each key has the values "refuse",
 * with which every session begins, and "allow":
 *   "transient": files that only an exec can carry (sockets, pipes, ...) are taken although luod drives the kernel's
 *     own LUO; updates of luod and of services carry them, an update of the kernel drops them with their tokens.
 *     Refused, luo_preserve_fd() of one is -EOPNOTSUPP there. It is about files to come: those in the session stay.
 *   "grow": memfds are given to the kernel only when an update of it is under way, so that they can grow and shrink
 *     until their owner has said that it is ready (luo_update_ready); what the kernel finds wrong with one stops that
 *     update, where it would have been the answer to luo_preserve_fd(). Refused, the kernel has each memfd at once, and
 *     its size is fixed from then on (-EPERM).
 * -EINVAL: no such key or value, or the session is not yet retrieved, or finished; -EBUSY: frozen; -ENOMEM;
 * -ENOTSUP: the kernel's own device, or a luod that knows no options. (luod only) */
LUO_API int luo_session_set_option(struct luo_connection* luo, int session, const char* key, const char* value);
/* Gives up the session of that name, which nobody has. Its owner's uid and administrators may.
 * -ENOENT; -EBUSY: somebody has it, or an update is under way; -EACCES. (luod only) */
LUO_API int luo_session_drop(struct luo_connection* luo, const char* name);

/* What an owner does with a session by itself; names and numbers of early versions of the kernel's LUO. */
enum luo_event { LUO_EVENT_PREPARE = 0, LUO_EVENT_FREEZE = 1, LUO_EVENT_FINISH = 2, LUO_EVENT_CANCEL = 3 };
enum luo_state {
  LUO_STATE_UNDEFINED = 0,
  LUO_STATE_NORMAL = 1,   /* outgoing, files come and go; or finished */
  LUO_STATE_PREPARED = 2, /* by its owner, or because an update is coming; files still come and go */
  LUO_STATE_FROZEN = 3,   /* changes get -EBUSY */
  LUO_STATE_UPDATED = 4   /* it came in, and is not finished */
};
/* PREPARE, then FREEZE, and CANCEL from either; FINISH as luo_session_finish(). An update that is called off leaves
 * the session where its owner had taken it. -EINVAL: not the next step; -EBUSY: an update is under way, or a
 * handler is not done; a handler's errno: it could not freeze a file, the session stays prepared. (luod only) */
LUO_API int luo_session_set_event(struct luo_connection* luo, int session, enum luo_event event);
/* A number of enum luo_state, or a negative errno. (luod only) */
LUO_API int luo_session_get_state(struct luo_connection* luo, int session);

/* --- files ---------------------------------------------------------------------------------------- */

/* Preserves `fd` under `token` (any value, unique in the session). luod holds the file from now on.
 * -EINVAL not an outgoing session; -EEXIST token used; -EBADF; -ENOENT no handler for this kind of
 * file; -EBUSY the file is preserved already; -EOPNOTSUPP; -EFBIG; -EMFILE, -ENOSPC: luod is full. */
LUO_API int luo_preserve_fd(struct luo_connection* luo, int session, int fd, uint64_t token);
/* Likewise for a file that depends on others (a device on its IOMMU): their tokens, at most 16, must be preserved
 * before it (-ENOLINK), and none of them can be given up before it (-EBUSY). A session ends in reverse order
 * anyway. count 0: as luo_preserve_fd(). (luod only) */
LUO_API int luo_preserve_fd_after(struct luo_connection* luo, int session, int fd, uint64_t token,
                                  const uint64_t* after, size_t count);
/* `count` at once (any count; sent in batches of 253, each one transaction). errors[i] becomes 0 or a
 * positive errno. Returns how many are preserved, or a negative errno if a batch as a whole failed
 * (then errors[] of the unsent ones is ECANCELED). (luod only) */
LUO_API int luo_preserve_many(struct luo_connection* luo, int session, const int* fds, const uint64_t* tokens,
                              int* errors, size_t count);
/* Gives one file up. -ENOENT no such token; -EINVAL not outgoing; -EBUSY another one depends on it. (luod only) */
LUO_API int luo_unpreserve_fd(struct luo_connection* luo, int session, uint64_t token);
/* A new descriptor of a preserved file; asking again gives the same open file. -ENOENT; -EINVAL. */
LUO_API int luo_retrieve_fd(struct luo_connection* luo, int session, uint64_t token);
/* fds[i] becomes a descriptor or a negative errno. Returns how many came. (luod only) */
LUO_API int luo_retrieve_many(struct luo_connection* luo, int session, const uint64_t* tokens, int* fds, size_t count);
/* The tokens of a session in order of preservation: fills at most `room`, returns how many there are. (luod only) */
LUO_API int luo_session_tokens(struct luo_connection* luo, int session, uint64_t* tokens, size_t room);

/* --- many sessions at once (luod only) -------------------------------------------------------------------------------
 * For one that owns hundreds of sessions: requests go out without waiting for the answer to the one before. Each stands
 * by itself, in order, as if it had been called alone; what becomes of one changes nothing for the others. Return how
 * many succeeded, or a negative errno (-ECONNRESET, -EPROTO, -EFAULT, -EINVAL: more than INT32_MAX): then nothing that
 * was obtained is kept. */

/* sessions[i] becomes what luo_session_create(), luo_session_retrieve() would have returned for names[i]. */
LUO_API int luo_session_create_each(struct luo_connection* luo, const char* const* names, int* sessions, size_t count);
LUO_API int luo_session_retrieve_each(struct luo_connection* luo, const char* const* names, int* sessions,
                                      size_t count);
/* File i is preserved in sessions[i], retrieved from it. Those of one session that stand beside each other travel
 * together (at most 253), as one transaction. errors[i] becomes 0 or a positive errno, fds[i] a descriptor or a
 * negative errno. After an error of luo_preserve_each, ECANCELED in errors[]: it may be preserved or not. */
LUO_API int luo_preserve_each(struct luo_connection* luo, const int* sessions, const int* fds, const uint64_t* tokens,
                              int* errors, size_t count);
LUO_API int luo_retrieve_each(struct luo_connection* luo, const int* sessions, const uint64_t* tokens, int* fds,
                              size_t count);

/* --- updates (luod only) -------------------------------------------------------------------------- */

enum luo_update_kind {
  LUO_UPDATE_LUOD = 1,
  LUO_UPDATE_SERVICE = 2,
  LUO_UPDATE_SIMULATED = 3,
  LUO_UPDATE_KERNEL = 4 /* nothing runs on the other side; of a dry run, resumed() tells the end */
};

struct luo_update {
  enum luo_update_kind kind;
  uint64_t id;
  int deadline_ms; /* to answer, from now */
};

struct luo_update_callbacks {
  /* An update is coming: bring what is kept into a state that the next side can take, stop changing it,
   * then call luo_update_ready or luo_update_refuse, from here or later, before the deadline. */
  void (*prepare)(void* context, const struct luo_update* update);
  /* It was called off (`why`): go on as before. Comes only after a prepare. */
  void (*resumed)(void* context, uint64_t id, const char* why);
  /* The successor owns the session now: nothing is left to do here but to exit. */
  void (*handed_over)(void* context, uint64_t id);
};

/* Says what to call when luod announces something (NULL: nothing any more). Callbacks run inside
 * luo_dispatch(), never elsewhere. The struct is copied. */
LUO_API int luo_on_update(struct luo_connection* luo, const struct luo_update_callbacks* callbacks, void* context);
/* A descriptor that polls readable (POLLIN) when luo_dispatch() has something to do. Owned by `luo`. */
LUO_API int luo_fd(struct luo_connection* luo);
/* Handles what has arrived; does not wait. Returns how many callbacks ran. -ECONNRESET. */
LUO_API int luo_dispatch(struct luo_connection* luo);
LUO_API int luo_update_ready(struct luo_connection* luo, uint64_t id);
LUO_API int luo_update_refuse(struct luo_connection* luo, uint64_t id, const char* reason);

/* Whether this process was started as a successor by `luoctl update service`. */
LUO_API int luo_is_successor(const struct luo_connection* luo);
/* The successor is warm: returns 0 when the old owner has quiesced. Everything that it preserved last is
 * there then. Complete with luo_session_renew(); until that returned 0, our death gives the session back.
 * -ECANCELED: the update was called off (see luo_last_error); -ETIMEDOUT; -EINVAL: not a successor's session. */
LUO_API int luo_session_take_over(struct luo_connection* luo, int session, int timeout_ms);

#ifdef __cplusplus
}
#endif
#endif
