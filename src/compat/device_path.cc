#include "compat/device_path.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string_view>

namespace luo::compat {
namespace {

constexpr std::string_view kDevicePath = "/dev/liveupdate";
constexpr int kMostLinks = 40;  // the kernel's limit

std::optional<std::string> link_at(const std::string& path) {
  std::array<char, PATH_MAX> text;
  const ssize_t n = ::readlink(path.c_str(), text.data(), text.size());
  if (n < 0) return std::nullopt;
  return std::string{text.data(), static_cast<std::size_t>(n)};
}

/// What "self" means is the target's matter.
std::string without_self(const Call& call, std::string path) {
  const auto replace = [&path](std::string_view what, std::string with) {
    if (path.starts_with(what)) path = std::move(with) + path.substr(what.size());
  };
  const std::string own = fmt::format("/proc/{}/", call.thread());
  if (path.starts_with("/dev/")) {
    replace("/dev/fd/", "/proc/self/fd/");
    for (const char* stream : {"/dev/stdin", "/dev/stdout", "/dev/stderr"})
      if (path == stream) path = fmt::format("/proc/self/fd/{}", stream[8] == 'n' ? 0 : stream[9] == 'u' ? 1 : 2);
  }
  if (path.starts_with("/proc/")) {
    replace("/proc/self/", own);
    replace("/proc/thread-self/", own);
  }
  return path;
}

/// The path that the kernel would come to in the target's root, as far as it exists. Nothing: it would not get there.
std::optional<std::string> resolve(const Call& call, const std::string& from, const std::string& path,
                                   bool follow_last) {
  const std::string root = fmt::format("/proc/{}/root", call.thread());
  std::string done = from, left = path;
  for (int links = 0; links <= kMostLinks;) {
    if (left.starts_with('/')) {
      left = without_self(call, left);
      done.clear();
    }
    const std::size_t begin = std::min(left.find_first_not_of('/'), left.size());
    if (begin == left.size()) return done.empty() ? "/" : done;
    const std::size_t end = std::min(left.find('/', begin), left.size());
    const std::string name = left.substr(begin, end - begin);
    left.erase(0, std::min(left.find_first_not_of('/', end), left.size()));  // what is left is relative
    if (name == ".") continue;
    if (name == "..") {
      done.resize(done.empty() ? 0 : done.rfind('/'));
      continue;
    }
    const auto link = left.empty() && !follow_last ? std::nullopt : link_at(root + done + "/" + name);
    if (link && !(done.starts_with("/proc/") && !link->starts_with('/'))) {
      ++links;
      left = left.empty() ? *link : *link + "/" + left;
    } else {
      done += "/" + name;
    }
  }
  return std::nullopt;
}

/// A folder of the target as a path in its root.
std::string folder_path(const Call& call, int folder) {
  const std::string here = folder == AT_FDCWD ? fmt::format("/proc/{}/cwd", call.thread())
                                              : fmt::format("/proc/{}/fd/{}", call.thread(), folder);
  std::string path = link_at(here).value_or("");
  const std::string root = link_at(fmt::format("/proc/{}/root", call.thread())).value_or("/");
  if (root != "/" && path.starts_with(root)) path.erase(0, root.size());
  return path == "/" ? "" : path;
}

/// The real device of this kernel, if it has one.
bool is_real_device(const struct stat& info) {
  struct stat real;
  return S_ISCHR(info.st_mode) && ::stat(std::string{kDevicePath}.c_str(), &real) == 0 && S_ISCHR(real.st_mode) &&
         real.st_rdev == info.st_rdev;
}

bool has_own_root(const Call& call) {
  struct stat here, there;
  return ::stat("/", &here) == 0 && ::stat(fmt::format("/proc/{}/root", call.thread()).c_str(), &there) == 0 &&
         (here.st_ino != there.st_ino || here.st_dev != there.st_dev);
}

bool leads_to_device(const Call& call, const OpenRequest& request, const Device& device) {
  if ((request.flags & (O_PATH | O_DIRECTORY)) != 0) return false;  // those do not open it
  const auto given = call.read_path(request.path);
  if (!given || given->empty() || given->ends_with('/')) return false;  // a device is no directory
  const bool absolute = given->starts_with('/');
  if (request.resolve != 0) {
    // What these forbid, the kernel finds as well: in a path that is not ours.
    if (absolute && (request.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)) != 0) return false;
    if ((request.resolve & ~std::uint64_t{RESOLVE_CACHED}) != 0 && given->find("..") != std::string::npos) return false;
  }
  const bool follow = (request.flags & O_NOFOLLOW) == 0 && (request.resolve & RESOLVE_NO_SYMLINKS) == 0;
  const std::string path = absolute ? without_self(call, *given)
                           : request.folder == AT_FDCWD
                               ? fmt::format("/proc/{}/cwd/{}", call.thread(), *given)
                               : fmt::format("/proc/{}/fd/{}/{}", call.thread(), request.folder, *given);
  const bool called_so = std::string_view{path}.substr(path.rfind('/') + 1) == "liveupdate";
  if (!called_so && !(absolute && has_own_root(call))) {
    // Nearly every open ends here: not called so, and no symbolic link.
    std::array<char, 1> some;
    if (!follow || ::readlink(path.c_str(), some.data(), some.size()) < 0) return false;
    struct stat info;
    if (::stat(path.c_str(), &info) == 0) return device.is(info) || is_real_device(info);
  }
  return resolve(call, absolute ? "" : folder_path(call, request.folder), *given, follow) == kDevicePath;
}

}  // namespace

std::optional<OpenRequest> open_request(const Call& call) {
  const auto flags_at = [&](unsigned i) { return call.argument(i) & 0xffffffff; };
  switch (call.data().nr) {
#ifdef SYS_open
    case SYS_open: return OpenRequest{AT_FDCWD, call.argument(0), flags_at(1)};
    case SYS_creat: return OpenRequest{AT_FDCWD, call.argument(0), O_CREAT | O_WRONLY | O_TRUNC};
#endif
    case SYS_openat: return OpenRequest{static_cast<int>(call.argument(0)), call.argument(1), flags_at(2)};
    default: break;
  }
  open_how how{};
  if (call.argument(3) < sizeof how || !call.read(call.argument(2), std::as_writable_bytes(std::span{&how, 1})))
    return std::nullopt;
  return OpenRequest{static_cast<int>(call.argument(0)), call.argument(1), how.flags, how.resolve};
}

bool names_device(const Call& call, const OpenRequest& request, const Device& device) {
  return leads_to_device(call, request, device) && call.is_pending();
}

}  // namespace luo::compat
