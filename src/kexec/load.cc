#include "kexec/load.h"

#include <fcntl.h>
#include <linux/kexec.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/strong.h"
#include "sys/memfd.h"

namespace luo::kexec {
namespace {

/// The first character of a file of /proc or /sys; NUL if it cannot be read.
char first_of(const char* path) {
  const Fd file = Fd::adopt(open(path, O_RDONLY | O_CLOEXEC));
  char c = 0;
  return file.valid() && read(file.raw(), &c, 1) == 1 ? c : '\0';
}

bool is_locked_down() {
  const Fd file = Fd::adopt(open("/sys/kernel/security/lockdown", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return false;
  const auto text = read_all(file, 4_KiB);
  return text && !text->starts_with("[none]");
}

}  // namespace

Result<> KernelSlot::load(FdRef kernel, const Fd& initrd, const std::string& command_line) {
  unsigned long flags = initrd.valid() ? 0 : KEXEC_FILE_NO_INITRAMFS;
  const long done =
      syscall(SYS_kexec_file_load, kernel.raw, initrd.raw(), command_line.size() + 1, command_line.c_str(), flags);
  if (done != 0) return sys_fail("kexec_file_load");
  return {};
}

Result<> KernelSlot::unload() {
  if (syscall(SYS_kexec_file_load, -1, -1, 0UL, nullptr, static_cast<unsigned long>(KEXEC_FILE_UNLOAD)) != 0)
    return sys_fail("kexec_file_load(KEXEC_FILE_UNLOAD)");
  return {};
}

Result<bool> KernelSlot::loaded() {
  constexpr const char* kPath = "/sys/kernel/kexec_loaded";
  const char state = first_of(kPath);
  if (state == '\0') return fail(ENOENT, "read {}: this kernel knows no kexec", kPath);
  return state == '1';
}

Loaded::~Loaded() {
  if (const std::string advice = advice_on_unload(unload()); !advice.empty()) log(Level::Error, "{}", advice);
}

std::string advice_on_load(int code) {
  switch (code) {
    case EPERM:
      if (first_of("/proc/sys/kernel/kexec_load_disabled") == '1')
        return "kernel.kexec_load_disabled is 1, and only a reboot makes it 0: look for who sets it (sysctl.d)";
      if (geteuid() != 0) return "loading a kernel takes CAP_SYS_BOOT: try as root";
      if (is_locked_down())
        return "this kernel is locked down (/sys/kernel/security/lockdown): it loads only signed kernels";
      return "loading a kernel takes CAP_SYS_BOOT, which this process has not (a container?), or a limit on how many "
             "kernels may be loaded is used up (kernel.kexec_load_limit_reboot)";
    case ENOSYS: return "this kernel cannot load another one: it needs CONFIG_KEXEC_FILE";
    case ENOEXEC:
      return "this kernel does not take that file for a kernel: is it one for this machine, and whole? (x86: bzImage, "
             "arm64: Image)";
    case EINVAL: return "the running kernel refuses the image or the command line: is the line too long?";
    case EADDRNOTAVAIL:
    case ENOMEM:
      return "there is no room for kernel and initrd. With kho=on it must be in the scratch areas: make the initrd "
             "smaller, or start the running kernel with larger areas (kho_scratch=200%, or kho_scratch=64M,256M,128M)";
    case EBUSY: return "another kexec operation is under way: try again";
    case ETXTBSY: return "somebody has the file open for writing: try again when it is closed";
    case EFBIG: return "the file is too large for a kernel or an initrd";
    case EKEYREJECTED:
    case ENOKEY:
    case ENODATA:
    case ENOPKG:
    case EBADMSG:
      return "this kernel loads only kernels with a signature that it knows (CONFIG_KEXEC_SIG): sign it, or add its "
             "key (.machine, .secondary_trusted_keys)";
    default: return {};
  }
}

std::string advice_on_unload(const Result<>& unloaded) {
  if (unloaded) return {};
  return fmt::format("the kernel is still loaded for kexec: {} (kexec -u unloads it)", unloaded.error());
}

}  // namespace luo::kexec
