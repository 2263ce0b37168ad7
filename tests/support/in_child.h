// Recovery in a process of its own, which may close descriptors and die as it likes.
#pragma once
#include <functional>
#include <string>

#include "base/error.h"

namespace luo::test {

/// Forks, runs `work` there and gives its text or its error. ECHILD with how it died, if it did. Up to 64 KiB.
Result<std::string> in_child(const std::function<Result<std::string>()>& work);

}  // namespace luo::test
