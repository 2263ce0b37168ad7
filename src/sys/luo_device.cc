#include "sys/luo_device.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "luo/uapi.h"

namespace luo::kernel {
namespace {

/// Interrupted ioctls are not repeated: the kernel's LUO has no step that would give EINTR and be safe to repeat.
template <class T>
Result<> control(FdRef fd, unsigned long command, T& arg, const char* name) {
  arg.size = sizeof arg;
  if (ioctl(fd.raw, command, &arg) != 0) return sys_fail("ioctl({})", name);
  return {};
}

Result<Fd> session(FdRef device, unsigned long command, std::string_view name, const char* shown) {
  luo_uapi_session arg{};
  std::ranges::copy(name.substr(0, sizeof arg.name), arg.name);
  LUO_TRY(control(device, command, arg, shown));
  return Fd::adopt(arg.fd);
}

}  // namespace

Result<Fd> open_device(const char* path) {
  Fd device = Fd::adopt(open(path, O_RDWR | O_CLOEXEC));
  if (!device.valid()) return sys_fail("open('{}')", path);
  return device;
}

Result<Fd> create_session(FdRef device, std::string_view name) {
  return session(device, LUO_UAPI_CREATE_SESSION, name, "CREATE_SESSION");
}

Result<Fd> retrieve_session(FdRef device, std::string_view name) {
  return session(device, LUO_UAPI_RETRIEVE_SESSION, name, "RETRIEVE_SESSION");
}

Result<> preserve(FdRef session_fd, int fd, std::uint64_t token) {
  luo_uapi_file arg{};
  arg.fd = fd;
  arg.token = token;
  return control(session_fd, LUO_UAPI_PRESERVE_FD, arg, "PRESERVE_FD");
}

Result<Fd> retrieve(FdRef session_fd, std::uint64_t token) {
  luo_uapi_file arg{};
  arg.token = token;
  LUO_TRY(control(session_fd, LUO_UAPI_RETRIEVE_FD, arg, "RETRIEVE_FD"));
  return Fd::adopt(arg.fd);
}

Result<> finish(FdRef session_fd) {
  luo_uapi_finish arg{};
  return control(session_fd, LUO_UAPI_FINISH, arg, "FINISH");
}

Result<> get_name(FdRef session_fd, std::span<char, 64> name) {
  luo_uapi_name arg{};
  LUO_TRY(control(session_fd, LUO_UAPI_GET_NAME, arg, "GET_NAME"));
  std::memcpy(name.data(), arg.name, name.size());
  return {};
}

}  // namespace luo::kernel
