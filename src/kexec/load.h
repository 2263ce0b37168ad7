// Putting a kernel where reboot(LINUX_REBOOT_CMD_KEXEC) finds it.
#pragma once
#include <string>
#include <utility>

#include "base/error.h"
#include "base/fd.h"

namespace luo::kexec {

/// The machine's one slot for a kernel to start next. One thread at a time.
class Slot {
 public:
  virtual ~Slot() = default;
  /// kexec_file_load(2); an initrd that is not valid() means none. What was loaded before is replaced, but stays if
  /// this fails. The error is the kernel's: see advice_on_load().
  virtual Result<> load(FdRef kernel, const Fd& initrd, const std::string& command_line) = 0;
  /// Empties the slot.
  virtual Result<> unload() = 0;
  /// Whether there is a kernel in it. ENOENT: this kernel knows no kexec.
  virtual Result<bool> loaded() = 0;
};

/// The real one. It needs CAP_SYS_BOOT.
class KernelSlot final : public Slot {
 public:
  Result<> load(FdRef kernel, const Fd& initrd, const std::string& command_line) override;
  Result<> unload() override;
  Result<bool> loaded() override;
};

/// The kernel that we have loaded, until somebody else is responsible for it.
class Loaded {
 public:
  /// `slot` outlives it.
  explicit Loaded(Slot& slot) noexcept : slot_{&slot} {}
  /// On ways out that nobody has thought of: unloads it, and logs if it stays.
  ~Loaded();
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;
  void keep() noexcept { slot_ = nullptr; }
  /// Tried once; for whoever gets the error: advice_on_unload().
  Result<> unload() { return slot_ == nullptr ? Result<>{} : std::exchange(slot_, nullptr)->unload(); }

 private:
  Slot* slot_;
};

/// What someone should do to whom load() gave that errno; may be empty. Looks into /proc and /sys to tell causes apart.
std::string advice_on_load(int code);
/// That the kernel stays loaded, why, and what to do; empty if it does not.
std::string advice_on_unload(const Result<>& unloaded);

}  // namespace luo::kexec
