#include "luo/handler.h"

namespace luo {

Result<> HandlerRegistry::add(Handler& handler) {
  const std::string_view name = handler.name();
  if (name.empty() || name.size() > 47)
    return fail(EINVAL, "register handler '{}': a name has 1 to 47 bytes, this one {}", name, name.size());
  if (find(name) != nullptr) return fail(EEXIST, "register handler '{}': the name is taken", name);
  handlers_.push_back(&handler);
  return {};
}

Handler* HandlerRegistry::find(std::string_view name) const noexcept {
  for (Handler* handler : handlers_)
    if (handler->name() == name) return handler;
  return nullptr;
}

Handler* HandlerRegistry::for_file(const FileInfo& file) const noexcept {
  for (Handler* handler : handlers_)
    if (handler->can_preserve(file)) return handler;
  return nullptr;
}

}  // namespace luo
