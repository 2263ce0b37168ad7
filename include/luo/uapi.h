/* The ioctls of the kernel's own Live Update Orchestrator (Linux >= 6.19): numbers and layouts, for
 * systems whose kernel headers do not have them. Names differ from the kernel's header, so that both can
 * be included. All numbers are _IO(0xBA, nr). A struct starts with its size; the kernel accepts a larger
 * one whose unknown part is zero (else E2BIG) and refuses a smaller one (EINVAL).
 */
#ifndef LUO_UAPI_H
#define LUO_UAPI_H
#include <stdint.h>
#include <sys/ioctl.h>

#define LUO_UAPI_DEVICE "/dev/liveupdate"
#define LUO_UAPI_NAME_LENGTH 64 /* with the NUL */

/* On the device. */
#define LUO_UAPI_CREATE_SESSION _IO(0xBA, 0x00)
#define LUO_UAPI_RETRIEVE_SESSION _IO(0xBA, 0x01)
/* On a session. */
#define LUO_UAPI_PRESERVE_FD _IO(0xBA, 0x40)
#define LUO_UAPI_RETRIEVE_FD _IO(0xBA, 0x41)
#define LUO_UAPI_FINISH _IO(0xBA, 0x42)
#define LUO_UAPI_GET_NAME _IO(0xBA, 0x43)

struct luo_uapi_session { /* CREATE_SESSION, RETRIEVE_SESSION: 72 bytes */
  uint32_t size;
  int32_t fd; /* out */
  uint8_t name[LUO_UAPI_NAME_LENGTH];
};

struct luo_uapi_file { /* PRESERVE_FD, RETRIEVE_FD: 16 bytes */
  uint32_t size;
  int32_t fd; /* in for PRESERVE_FD, out for RETRIEVE_FD */
  uint64_t token __attribute__((aligned(8)));
};

struct luo_uapi_finish { /* FINISH: 8 bytes */
  uint32_t size;
  uint32_t reserved; /* 0 */
};

struct luo_uapi_name { /* GET_NAME: 72 bytes */
  uint32_t size;
  uint32_t reserved;                  /* 0 */
  uint8_t name[LUO_UAPI_NAME_LENGTH]; /* out */
};

#endif
