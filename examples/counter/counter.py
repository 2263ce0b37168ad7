#!/usr/bin/env python3
"""The same as counter.c, in Python, with nothing but ctypes: libluo's C API has no structs to fill in for this."""
import ctypes
import errno
import mmap
import os
import select
import sys

TOKEN, BYTES = 1, 4096

luo = ctypes.CDLL("libluo.so.0")
luo.luo_last_error.restype = ctypes.c_char_p
luo.luo_open.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
luo.luo_session_create.argtypes = luo.luo_session_retrieve.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
luo.luo_session_renew.argtypes = [ctypes.c_void_p, ctypes.c_int]
luo.luo_preserve_fd.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
luo.luo_retrieve_fd.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64]


def checked(result, what):
    if result < 0:
        sys.exit(f"counter: {what}: {luo.luo_last_error().decode()}")
    return result


def main():
    name = (sys.argv[1] if len(sys.argv) > 1 else "counter").encode()
    luod = ctypes.c_void_p()
    checked(luo.luo_open(None, ctypes.byref(luod)), "connect to luod")
    session = luo.luo_session_retrieve(luod, name)
    if session == -errno.ENOENT:
        session = checked(luo.luo_session_create(luod, name), "create a session")
        memfd = os.memfd_create("counter")
        os.ftruncate(memfd, BYTES)
        checked(luo.luo_preserve_fd(luod, session, memfd, TOKEN), "preserve the memory")
    else:
        checked(session, "retrieve the session")
        memfd = checked(luo.luo_retrieve_fd(luod, session, TOKEN), "get the memory back")
        checked(luo.luo_session_renew(luod, session), "keep the session")

    memory = mmap.mmap(memfd, BYTES)
    count = int.from_bytes(memory[:8], sys.byteorder) + 1
    memory[:8] = count.to_bytes(8, sys.byteorder)
    print(count, flush=True)

    ends = select.poll()
    ends.register(session, 0)  # hangs up when everything has crossed
    ends.register(0, select.POLLIN)
    ends.poll()


if __name__ == "__main__":
    main()
