#include "base/error.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace luo {

std::string errno_text(int code) {
  const char* name = strerrorname_np(code);
  const char* text = strerrordesc_np(code);
  if (name == nullptr || text == nullptr) return fmt::format("error {}", code);
  return fmt::format("{} [{}]", text, name);
}

std::string to_string(const Error& error) { return fmt::format("{}: {}", error.what, errno_text(error.code)); }

void broken_invariant(std::string_view what, const char* file, int line) noexcept {
  // No allocation: the heap may be what is broken.
  char text[512];
  const auto end = fmt::format_to_n(text, sizeof text, "luo: broken invariant: {} at {}:{}\n", what, file, line);
  const std::size_t length = end.size < sizeof text ? end.size : sizeof text;
  if (write(STDERR_FILENO, text, length) < 0) _exit(134);
  std::abort();
}

}  // namespace luo
