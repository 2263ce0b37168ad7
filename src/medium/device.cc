#include "medium/device.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "luo/uapi.h"
#include "sys/luo_device.h"

namespace luo::medium {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSessionLink = "anon_inode:[luo_session] ";

/// What a descriptor is, as /proc says it; empty: it is gone, or not ours to see.
std::string link_at(const fs::path& path) {
  std::error_code error;
  const fs::path link = fs::read_symlink(path, error);
  return error ? std::string{} : link.string();
}

/// "luod (pid 17)": who has the device open.
std::string who_has_it() {
  std::error_code error;
  for (fs::directory_iterator process{"/proc", error}, end; !error && process != end; process.increment(error)) {
    const std::string pid = process->path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    std::error_code gone;
    for (fs::directory_iterator fd{process->path() / "fd", gone}; !gone && fd != end; fd.increment(gone)) {
      if (link_at(fd->path()) != LUO_UAPI_DEVICE) continue;
      std::string name = "?";
      std::ifstream comm{process->path() / "comm"};
      std::getline(comm, name);
      return fmt::format("{} (pid {})", name, pid);
    }
  }
  return "a process that cannot be seen from here (another container, perhaps)";
}

}  // namespace

Result<Fd> LuoDevice::create_session(const std::string& name) { return kernel::create_session(device_, name); }
Result<Fd> LuoDevice::retrieve_session(const std::string& name) { return kernel::retrieve_session(device_, name); }
Result<> LuoDevice::preserve(FdRef session, int fd, std::uint64_t token) {
  return kernel::preserve(session, fd, token);
}
Result<Fd> LuoDevice::retrieve(FdRef session, std::uint64_t token) { return kernel::retrieve(session, token); }
Result<> LuoDevice::finish(FdRef session) { return kernel::finish(session); }

bool LuoDevice::is_session(FdRef fd, const std::string& name) {
  const std::string link = link_at(fmt::format("/proc/self/fd/{}", fd.raw));
  if (link.starts_with(kSessionLink)) return link.substr(kSessionLink.size()) == name;
  std::array<char, 64> has{};  // without /proc; not known to Linux 6.19
  return kernel::get_name(fd, has) && name == std::string_view{has.data(), strnlen(has.data(), has.size())};
}

std::unordered_map<std::string, int> session_descriptors() {
  std::unordered_map<std::string, int> found;
  std::error_code error;
  for (fs::directory_iterator entry{"/proc/self/fd", error}, end; !error && entry != end; entry.increment(error)) {
    const std::string link = link_at(entry->path());
    if (!link.starts_with(kSessionLink)) continue;
    const std::string text = entry->path().filename();
    int fd = -1;
    std::from_chars(text.data(), text.data() + text.size(), fd);
    found.emplace(link.substr(kSessionLink.size()), fd);
  }
  return found;
}

Result<Fd> open_device() {
  Fd device = Fd::adopt(open(LUO_UAPI_DEVICE, O_RDWR | O_CLOEXEC));
  if (device.valid()) {
    fcntl(device.raw(), F_SETFD, 0);
    return device;
  }
  const int code = errno;
  switch (code) {
    case ENOENT:
      return fail(code,
                  "open {}: this kernel has no LUO, or it is not turned on; it takes Linux 6.19 or later, built with "
                  "LIVEUPDATE and booted with kho=on liveupdate=on. `--medium exec` needs neither",
                  LUO_UAPI_DEVICE);
    case EBUSY:
      return fail(
          code,
          "open {}: {} has it, and only one process can; stop that one, or start luod with --medium exec, which "
          "does without the kernel's LUO",
          LUO_UAPI_DEVICE, who_has_it());
    case EIO:
      return fail(
          code,
          "open {}: this kernel could not read what the kernel before it left (see dmesg), and what was preserved "
          "is lost; --medium exec works until the next boot",
          LUO_UAPI_DEVICE);
    default: return fail(code, "open {}", LUO_UAPI_DEVICE);
  }
}

}  // namespace luo::medium
