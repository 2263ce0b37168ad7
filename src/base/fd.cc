#include "base/fd.h"

#include <unistd.h>

#include "base/error.h"

namespace luo {

void close_number(int raw) noexcept {
  const int saved = errno;
  if (::close(raw) != 0 && errno == EBADF)
    broken_invariant("close of a descriptor that is not open", __FILE__, __LINE__);
  errno = saved;
}

void Fd::close_once(int raw) noexcept { close_number(raw); }

}  // namespace luo
