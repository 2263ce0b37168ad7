// luoctl update kernel, with the kernel's slot for kexec as a parameter.
#pragma once
#include "cli/commands.h"
#include "kexec/load.h"

namespace luo::cli {

/// Text goes to stdout as it comes, because nothing can be said any more once the reboot works; with --json there is
/// one object at the end. What was loaded is unloaded again, unless luod says that the reboot is under way or its word
/// is missing.
Outcome update_kernel(const Options& options, Style style, kexec::Slot& slot);

}  // namespace luo::cli
