#include "wire/paths.h"

#include <unistd.h>

#include <cstdlib>

namespace luo::wire {

Result<std::string> runtime_folder() {
  if (geteuid() == 0) return "/run/luo";
  const char* folder = secure_getenv("XDG_RUNTIME_DIR");
  if (folder == nullptr || *folder == '\0')
    return fail(ENOENT, "XDG_RUNTIME_DIR is not set: set it, or LUO_SOCKET to the path of luod's socket");
  return fmt::format("{}/luo", folder);
}

Result<std::string> socket_path() {
  // secure_: a setuid program does not let its caller choose whom it trusts.
  if (const char* path = secure_getenv("LUO_SOCKET"); path != nullptr && *path != '\0') return path;
  return LUO_TRY(runtime_folder()) + "/luod.sock";
}

}  // namespace luo::wire
