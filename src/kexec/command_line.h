// What a kernel's command line says of live updates, read as the kernel reads it. Any thread.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "kexec/configuration.h"

namespace luo::kexec {

/// Nothing: the line does not say.
struct Switches {
  std::optional<bool> handover;     ///< kho=
  std::optional<bool> live_update;  ///< liveupdate=
};

/// The last one wins; a value that the kernel does not understand counts as not given; quotes keep blanks together;
/// what follows "--" is for init.
Switches switches_in(std::string_view line);

struct Turned {
  Verdict handover = Verdict::NotKnown;  ///< NotKnown: it hangs on a default that is not known
  Verdict live_update = Verdict::No;
};
/// What `line` turns on in a kernel for `machine` of that configuration, with the line that is built into it.
Turned turned_on(std::string_view line, const Configuration& target, std::string_view machine);

}  // namespace luo::kexec
