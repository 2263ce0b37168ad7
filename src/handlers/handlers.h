// The handlers that luod has, and the choice among them.
#pragma once
#include <memory>
#include <string_view>

#include "luo/handler.h"

namespace luo {

/// Owns the chosen handlers; must outlive the engine that uses them.
class HandlerSet {
 public:
  virtual ~HandlerSet() = default;
  virtual const HandlerRegistry& registry() const noexcept = 0;
};

/// `list`: "all", or names separated by commas: memfd, socket, eventfd, pipe, timerfd,
/// signalfd, inotify, pidfd, device, refused, file ("memfd" alone is the kernel's
/// set), and shared objects (luo/plugin.h) by their absolute paths. A file goes to the first in the order of the list
/// that can preserve it. Errors: EINVAL, naming those that are known; ELIBACC, ELIBBAD: a shared object cannot be
/// loaded, or is none of ours; what it says itself.
Result<std::unique_ptr<HandlerSet>> make_handlers(std::string_view list);

}  // namespace luo
