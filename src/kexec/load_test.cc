// Nothing is loaded here: that is tried in the virtual machine (tests/vm).
#include "kexec/load.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace luo::kexec {
namespace {

/// What load() gives a process without CAP_SYS_BOOT.
int refused_load() {
  const pid_t child = fork();
  if (child == 0) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct none[2]{};
    if (syscall(SYS_capset, &header, none) != 0) _exit(255);
    const Fd kernel = Fd::adopt(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    const auto loaded = KernelSlot{}.load(kernel, Fd{}, "quiet");
    _exit(loaded ? 0 : loaded.error().code);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Load, IsRefusedWithoutTheCapability) {
  const int code = refused_load();
  EXPECT_TRUE(code == EPERM || code == ENOSYS) << code;
}

TEST(Load, EveryRefusalThatTheKernelHasComesWithAdvice) {
  for (const int code : {EPERM, ENOSYS, ENOEXEC, EINVAL, EADDRNOTAVAIL, ENOMEM, EBUSY, ETXTBSY, EFBIG, EKEYREJECTED,
                         ENOKEY, ENODATA, ENOPKG, EBADMSG})
    EXPECT_NE(advice_on_load(code), "") << code;
  EXPECT_EQ(advice_on_load(EXDEV), "");
}

/// A slot whose kernel does not come out of it any more.
struct StuckSlot final : Slot {
  int unloads = 0;
  Result<> load(FdRef, const Fd&, const std::string&) override { return {}; }
  Result<> unload() override {
    ++unloads;
    return fail(EBUSY, "unload");
  }
  Result<bool> loaded() override { return true; }
};

TEST(Loaded, SaysOnTheWayOutThatTheKernelStays) {
  StuckSlot slot;
  testing::internal::CaptureStderr();
  { const Loaded loaded{slot}; }
  EXPECT_EQ(slot.unloads, 1);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::HasSubstr("the kernel is still loaded for kexec: unload: " + errno_text(EBUSY) +
                                 " (kexec -u unloads it)"));
}

TEST(Loaded, IsQuietOnTheWayOutAboutWhatWasToldOrIsToStay) {
  StuckSlot slot;
  testing::internal::CaptureStderr();
  {
    Loaded told{slot}, kept{slot};
    EXPECT_NE(advice_on_unload(told.unload()), "");
    kept.keep();
  }
  EXPECT_EQ(slot.unloads, 1);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(advice_on_unload({}), "");
}

}  // namespace
}  // namespace luo::kexec
