// What Linux 7.3 does not bring back of a memfd over a kexec, or brings back wrong: mode, late seals, and every
// MFD_NOEXEC_SEAL memfd, which returns sealed against writing (docs/differences.md, D2 and D5); and whether it was open
// for reading only.
#pragma once
#include <fcntl.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/fd.h"

namespace luo::handlers {

struct Properties {
  unsigned seals;     ///< F_SEAL_*; 0 also for files that cannot have any
  unsigned mode;      ///< permission bits
  int open = O_RDWR;  ///< of the open file: O_RDONLY, O_WRONLY, O_RDWR; and O_APPEND
};
Properties properties_of(int fd, mode_t mode) noexcept;

/// `file`, with these properties. One that came back with seals that it did not have is copied into a new memfd, as
/// nobody can take them off: O(size), and for that moment the memory twice. One that was not open for reading and
/// writing is opened anew, through /proc. Errors: ENOMEM, ENOSPC, EMFILE.
Result<Fd> mend(Fd file, const struct stat& now, Properties before);

}  // namespace luo::handlers
