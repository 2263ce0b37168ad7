#include "handlers/device.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include "base/hash.h"
#include "handlers/proc.h"

namespace luo::handlers {
namespace {

/// By the name under which it was opened; what comes after a slash at the end is any ("/dev/vfio/17").
constexpr std::string_view kKept[] = {"/dev/vfio/",     "/dev/iommu",       "/dev/net/tun",
                                      "/dev/vhost-net", "/dev/vhost-vsock", "/dev/vhost-scsi"};

bool is_kept(std::string_view name) noexcept {
  for (const std::string_view known : kKept)
    if (known.ends_with('/') ? name.size() > known.size() && name.starts_with(known) : name == known) return true;
  return false;
}

std::uint64_t digest(std::string_view name) noexcept {
  return siphash13(HashKey{}, std::as_bytes(std::span{name.data(), name.size()}));  // only compared
}

/// Majors of terminals: tty, console and ptmx, pty slaves, serial lines.
bool is_terminal(dev_t device) noexcept {
  const unsigned number = major(device);
  return number == 4 || number == 5 || (number >= 136 && number <= 143);
}

/// Why, or nothing if it is not refused by name.
std::string_view reason(const FileInfo& file) noexcept {
  if (S_ISCHR(file.st.st_mode) && is_terminal(file.st.st_rdev))
    return "a terminal belongs to its login session, not to a service: let the next one open its own";
  if (S_ISCHR(file.st.st_mode) || (file.st.st_mode & S_IFMT) == 0) {
    const Link link = link_of(file.fd);
    if (link.view().starts_with("anon_inode:kvm-vm") || link.view().starts_with("anon_inode:kvm-vcpu"))
      return "a KVM virtual machine is bound to the address space of the process that made it: no other can use it "
             "(preserve the guest's memory and devices, make the machine anew)";
  }
  return {};
}

}  // namespace

bool DeviceHandler::can_preserve(const FileInfo& file) const noexcept {
  return S_ISCHR(file.st.st_mode) && is_kept(link_of(file.fd).view());
}

Result<HandlerData> DeviceHandler::preserve(const FileInfo& file, SessionId, Token) {
  return HandlerData{file.st.st_rdev, digest(link_of(file.fd).view()), 0, 0};
}

Result<> DeviceHandler::retrieve(const KeptFile& file) {
  struct stat st {};
  if (fstat(file.fd, &st) != 0) return sys_fail("fstat(fd {})", file.fd);
  const Link link = link_of(file.fd);
  if (!S_ISCHR(st.st_mode) || st.st_rdev != file.data[0] || digest(link.view()) != file.data[1])
    return fail(ESTALE, "fd {} is {} (device {}:{}), preserved was device {}:{}", file.fd, link.view(),
                major(st.st_rdev), minor(st.st_rdev), major(file.data[0]), minor(file.data[0]));
  return {};
}

bool RefusedHandler::can_preserve(const FileInfo& file) const noexcept { return !reason(file).empty(); }

Result<HandlerData> RefusedHandler::preserve(const FileInfo& file, SessionId, Token) {
  return fail(EOPNOTSUPP, "{}: {}", link_of(file.fd).view(), reason(file));
}

}  // namespace luo::handlers
