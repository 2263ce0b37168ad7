#include "luo/handler.h"

#include <algorithm>

namespace luo {

Result<> HandlerRegistry::add(Handler& handler) {
  const std::string_view name = handler.name();
  if (name.empty() || name.size() > 47)
    return fail(EINVAL, "register handler '{}': a name has 1 to 47 bytes, this one {}", name, name.size());
  if (find(name) != nullptr) return fail(EEXIST, "register handler '{}': the name is taken", name);
  handlers_.push_back(&handler);
  tied_.push_back(0);
  return {};
}

Result<> HandlerRegistry::add_flb(Handler& handler, Flb& flb) {
  const std::string_view name = flb.name();
  const auto at = std::ranges::find(handlers_, &handler);
  if (at == handlers_.end()) return fail(EINVAL, "tie FLB '{}' to {}: that is not registered", name, handler.name());
  if (name.empty() || name.size() > 47)
    return fail(EINVAL, "register FLB '{}': a name has 1 to 47 bytes, this one {}", name, name.size());
  std::uint64_t& tied = tied_[static_cast<std::size_t>(at - handlers_.begin())];
  const Flb* known = find_flb(name);
  if (known != nullptr && known != &flb) return fail(EEXIST, "register FLB '{}': the name is taken", name);
  if (known == nullptr && flbs_.size() == kMaxFlbs)
    return fail(ENOSPC, "register FLB '{}': there are {} already", name, kMaxFlbs);
  if (known == nullptr) flbs_.push_back(&flb);
  const auto bit = std::uint64_t{1} << (std::ranges::find(flbs_, &flb) - flbs_.begin());
  if ((tied & bit) != 0) return fail(EEXIST, "tie FLB '{}' to {}: it is already", name, handler.name());
  tied |= bit;
  return {};
}

Flb* HandlerRegistry::find_flb(std::string_view name) const noexcept {
  for (Flb* flb : flbs_)
    if (flb->name() == name) return flb;
  return nullptr;
}

std::uint64_t HandlerRegistry::flbs_of(const Handler& handler) const noexcept {
  const auto at = std::ranges::find(handlers_, &handler);
  return at == handlers_.end() ? 0 : tied_[static_cast<std::size_t>(at - handlers_.begin())];
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
