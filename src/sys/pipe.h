// Pipes as capabilities: the read end is what a client holds, the write end is how luod notices that
// nobody holds it any more.
#pragma once
#include "base/error.h"
#include "base/fd.h"

namespace luo {

struct Pipe {
  Fd read, write;
};

/// Both ends O_NONBLOCK. EMFILE, ENFILE.
Result<Pipe> make_pipe(OverExec over = OverExec::Close);

/// Whether every descriptor of the read end is closed, everywhere (forks, messages in flight), right now.
bool reader_gone(int write_fd) noexcept;

/// Whether `presented`, which came from somebody else, is a read end of the pipe that `write_fd` writes to.
/// Equal inodes suggest it (their numbers wrap); a byte that arrives in `presented` proves it, and is
/// taken out again. Never blocks, whatever the other holders do to the pipe. false also if they filled it.
/// Errors: only those of our own write end.
Result<bool> same_pipe(int write_fd, FdRef presented);

}  // namespace luo
