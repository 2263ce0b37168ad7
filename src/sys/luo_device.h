// The kernel's own LUO, by ioctl. Each call is one ioctl; errors carry its errno. Any thread.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace luo::kernel {

/// ENOENT, EACCES, EBUSY (open elsewhere), EIO (what the kernel before left could not be read).
Result<Fd> open_device(const char* path);

/// `name` may be anything; a too long one gets the kernel's answer to 64 bytes without a NUL.
Result<Fd> create_session(FdRef device, std::string_view name);
Result<Fd> retrieve_session(FdRef device, std::string_view name);

Result<> preserve(FdRef session, int fd, std::uint64_t token);
Result<Fd> retrieve(FdRef session, std::uint64_t token);
Result<> finish(FdRef session);
Result<> get_name(FdRef session, std::span<char, 64> name);

}  // namespace luo::kernel
