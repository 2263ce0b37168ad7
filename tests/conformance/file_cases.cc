#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "conformance/cases.h"

namespace conformance {
namespace {

void tokens(Checker& c) {
  const int s = c.session("tokens"), other = c.session("tokens-2");
  c.expect("token 0", c.side.preserve(s, c.memfd(), 0), 0);
  c.expect("token 2^64-1", c.side.preserve(s, c.memfd(), UINT64_MAX), 0);
  c.expect("token 0 again", c.side.preserve(s, c.memfd(), 0), EEXIST);
  c.expect("the token comes before the descriptor", c.side.preserve(s, 999, 0), EEXIST);
  c.expect("the same token in another session", c.side.preserve(other, c.memfd(), 0), 0);
}

void bad_descriptors(Checker& c) {
  const int s = c.session("bad-fds");
  c.expect("not open", c.side.preserve(s, 999, 1), EBADF);
  c.expect("negative", c.side.preserve(s, -1, 1), EBADF);
  const int file = c.memfd();
  const int path = c.keep(::open(("/proc/self/fd/" + std::to_string(file)).c_str(), O_PATH | O_CLOEXEC));
  c.expect("O_PATH", c.side.preserve(s, path, 1), EBADF);
  const int null = c.keep(::open("/dev/null", O_RDWR | O_CLOEXEC));
  c.expect("/dev/null", c.side.preserve(s, null, 1), ENOENT);
  c.expect("the session itself", c.side.preserve(s, s, 1), ENOENT);
  if (c.device() >= 0) c.expect("the device", c.side.preserve(s, c.device(), 1), ENOENT);
  c.expect("the token is still free", c.side.preserve(s, file, 1), 0);
}

void same_file(Checker& c) {
  const int s = c.session("same"), other = c.session("same-2");
  const int file = c.memfd();
  c.expect("preserve", c.side.preserve(s, file, 1), 0);
  c.expect("under another token", c.side.preserve(s, file, 2), EBUSY);
  c.expect("in another session", c.side.preserve(other, file, 1), EBUSY);
  const int reopened = c.keep(::open(("/proc/self/fd/" + std::to_string(file)).c_str(), O_RDWR | O_CLOEXEC));
  c.expect("the same inode opened again", c.side.preserve(s, reopened, 3), EBUSY);
  c.close(s);
  c.expect("after the session's end", c.side.preserve(other, reopened, 1), 0);
}

void closed_after_preserve(Checker& c) {
  const int s = c.session("closed-after");
  for (std::uint64_t token = 0; token < 3; ++token) {
    const int file = c.memfd();
    c.expect("preserve", c.side.preserve(s, file, token), 0);
    c.close(file);
  }
  c.expect("its token is still used", c.side.preserve(s, c.memfd(), 1), EEXIST);
}

void empty_memfd(Checker& c) {
  const int s = c.session("empty");
  c.expect("an empty memfd", c.side.preserve(s, c.memfd(""), 1), 0);
}

void too_large(Checker& c) {
  const int s = c.session("large");
  const int file = c.memfd("");
  if (::ftruncate(file, off_t{1} << 44) != 0) return;
  c.expect("2^32 pages", c.side.preserve(s, file, 1), EFBIG);
}

}  // namespace

std::vector<Case> file_cases() {
  return {
      {"tokens", "2.6 step 1", Needs::Anything, tokens},
      {"what cannot be preserved", "2.6 steps 3, 4", Needs::Anything, bad_descriptors},
      {"a file twice", "2.6 step 5", Needs::Anything, same_file},
      {"closed after its preserve", "3.1", Needs::Anything, closed_after_preserve},
      {"an empty memfd", "2.6", Needs::Anything, empty_memfd},
      {"a memfd that is too large", "3.10", Needs::Anything, too_large},
  };
}

}  // namespace conformance
