#include "sys/pipe.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace luo {

Result<Pipe> make_pipe(OverExec over) {
  int ends[2];
  if (pipe2(ends, (over == OverExec::Close ? O_CLOEXEC : 0) | O_NONBLOCK) != 0) return sys_fail("pipe2");
  return Pipe{Fd::adopt(ends[0]), Fd::adopt(ends[1])};
}

bool reader_gone(int write_fd) noexcept {
  pollfd poll_fd{write_fd, 0, 0};
  return poll(&poll_fd, 1, 0) == 1 && (poll_fd.revents & POLLERR) != 0;
}

namespace {

/// Takes one byte without ever blocking: the other holders share the description and may clear its
/// O_NONBLOCK, or take the byte before us.
void take_byte(FdRef read_end) noexcept {
  char byte;
  iovec part{&byte, 1};
  if (preadv2(read_end.raw, &part, 1, -1, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP) return;
  // Before Linux 6.4 pipes did not know RWF_NOWAIT.
  const int flags = fcntl(read_end.raw, F_GETFL);
  if (flags < 0 || fcntl(read_end.raw, F_SETFL, flags | O_NONBLOCK) != 0) return;
  (void)!read(read_end.raw, &byte, 1);
}

}  // namespace

Result<bool> same_pipe(int write_fd, FdRef presented) {
  struct stat ours, theirs;
  if (fstat(write_fd, &ours) != 0) return sys_fail("fstat(write end {})", write_fd);
  if (fstat(presented.raw, &theirs) != 0) return false;
  if (!S_ISFIFO(theirs.st_mode) || theirs.st_ino != ours.st_ino || theirs.st_dev != ours.st_dev) return false;
  const int flags = fcntl(presented.raw, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH) != 0) return false;

  int before = 0, after = 0;
  if (ioctl(presented.raw, FIONREAD, &before) != 0) return false;
  if (write(write_fd, "", 1) != 1) {
    if (errno == EAGAIN) return false;  // a holder reopened the pipe for writing and filled it
    return sys_fail("write(write end {}, 1 byte)", write_fd);
  }
  if (ioctl(presented.raw, FIONREAD, &after) != 0 || after != before + 1) return false;
  take_byte(presented);
  return true;
}

}  // namespace luo
