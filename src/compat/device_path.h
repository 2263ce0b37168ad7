// Is it /dev/liveupdate that a target opens?
#pragma once
#include <sys/stat.h>

#include <optional>

#include "compat/call.h"
#include "compat/device.h"

namespace luo::compat {

/// What a trapped open asks for.
struct OpenRequest {
  int folder;  ///< AT_FDCWD or a descriptor of the target
  std::uint64_t path;
  std::uint64_t flags;
  std::uint64_t resolve = 0;  ///< RESOLVE_ of openat2
};
/// Nothing: its arguments are not what the kernel would accept, which it will say.
std::optional<OpenRequest> open_request(const Call& call);

/// Whether the path leads to the device, however it is spelled: relative to the working directory or a descriptor,
/// through symbolic links, through /proc/self/fd. Costs one system call for a path that is no symbolic link and is not
/// called "liveupdate". Not seen: hard links and nodes of the same numbers elsewhere.
bool names_device(const Call& call, const OpenRequest& request, const Device& device);

}  // namespace luo::compat
