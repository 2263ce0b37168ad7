// Opening: a fresh arena gets the tables, one that was left is checked and taken over.
#include "luo/engine.h"

#include <algorithm>

#include "luo/check.h"
#include "luo/engine_impl.h"

namespace luo {
namespace {

constexpr std::uint64_t kSampled = 1000;  ///< sessions and files that are looked at if a predecessor is trusted

}  // namespace

Engine::Engine(std::unique_ptr<Impl> impl) noexcept : impl_{std::move(impl)} {}
Engine::Engine(Engine&&) noexcept = default;
Engine::~Engine() = default;

Result<Engine> Engine::open(kho::Arena& arena, const HandlerRegistry& handlers, IsClosed is_closed, Take take,
                            Trust trust) {
  if (!is_closed) is_closed = [](int) { return false; };
  auto impl = std::make_unique<Impl>(arena, handlers, std::move(is_closed));
  if (arena.root(0) == PhysAddr{}) {
    LUO_TRY_DURING("make the engine's tables", impl->make_root());
  } else {
    LUO_TRY_DURING("open the engine", impl->read_root(trust));
    if (take == Take::Now) LUO_TRY_DURING("open the engine", impl->take_over());
  }
  return Engine{std::move(impl)};
}

Result<> Engine::take_over() { return impl_->take_over(); }

Result<> Engine::check() const {
  auto result = Checker{*impl_, true}.run();
  if (!result) return std::unexpected(std::move(result).error().during("check the engine"));
  return {};
}

Result<> Engine::Impl::make_root() {
  Change change{arena};
  const Ref<RootRecord> ref = LUO_TRY(change.tx.make<RootRecord>());
  root = at(ref);
  root->magic = kRootMagic;
  root->next_session = 1;
  root->key = random_hash_key();
  root->handlers = LUO_TRY(change.tx.make<HandlersRecord>());
  at(root->handlers)->magic = kHandlersMagic;
  LUO_TRY(name_flbs(change.tx));
  LUO_TRY(name_handlers(change.tx));
  change.tx.set_root(0, PhysAddr{ref.at});
  change.commit();
  return {};
}

Result<> Engine::Impl::read_root(Trust trust) {
  const Ref<RootRecord> ref{arena.root(0).raw()};
  root = ref.at % alignof(RootRecord) == 0 && arena.usable_size(ref.addr()) >= kRootBytes1 ? at(ref) : nullptr;
  if (root == nullptr || (root->magic != kRootMagic && root->magic != kRootMagic1) ||
      (root->magic == kRootMagic && arena.usable_size(ref.addr()) < sizeof(RootRecord)))
    return fail(EBADMSG, "no root record at {:#x}", ref.at);
  LUO_TRY(read_flbs());
  const HandlersRecord* names = arena.checked(root->handlers);
  if (names == nullptr || names->magic != kHandlersMagic || names->count > kMaxHandlers)
    return fail(EBADMSG, "no list of handlers at {:#x}", root->handlers.at);
  for (std::uint64_t i = 0; i < names->count; ++i) {
    const std::string_view name{names->name[i], strnlen(names->name[i], sizeof names->name[i])};
    if (name.empty() || name.size() == sizeof names->name[i])
      return fail(EBADMSG, "handler {} at {:#x} has no name", i, root->handlers.at);
    Handler* handler = registry.find(name);
    const bool flbs_apart = root->magic != kRootMagic1 && root->flbs;
    for (std::uint64_t j = 0; handler != nullptr && j < i; ++j)
      if (handlers[j] == handler && (!flbs_apart || at(root->flbs)->held[i] == at(root->flbs)->held[j]))
        return fail(EBADMSG, "handler {} at {:#x} is named twice", name, root->handlers.at);
    handlers.push_back(handler);
  }
  const bool known = root->magic == kRootMagic && std::ranges::find(handlers, nullptr) == handlers.end();
  if (trust == Trust::Predecessor && known) LUO_TRY((Checker{*this, false}.sample(kSampled)));
  else LUO_TRY((Checker{*this, false}.run()));
  std::uint64_t all = names->count;
  for (Handler* handler : registry.all()) all += std::ranges::find(handlers, handler) == handlers.end() ? 1 : 0;
  if (all > kMaxHandlers) return fail(ENOSPC, "{} handlers are more than an arena can know in its life", all);
  return {};
}

Result<> Engine::Impl::take_over() {
  LUO_TRY(upgrade());
  const auto known = [&](const Flb* flb) { return std::ranges::find(flbs, flb) != flbs.end(); };
  if (!std::ranges::all_of(registry.flbs(), known) ||
      !std::ranges::all_of(registry.all(), [&](const Handler* h) { return index_of(*h).has_value(); })) {
    Change change{arena};
    LUO_TRY(name_flbs(change.tx));
    LUO_TRY(name_handlers(change.tx));
    change.commit();
  }
  sweep();
  return {};
}

/// Gives each registered handler its index.
Result<> Engine::Impl::name_handlers(kho::Tx& tx) {
  HandlersRecord& names = *at(root->handlers);
  for (Handler* handler : registry.all()) {
    if (index_of(*handler)) continue;
    if (names.count == kMaxHandlers) return fail(ENOSPC, "the arena knows {} handlers already", kMaxHandlers);
    char* name = names.name[names.count];
    tx.save(name, sizeof names.name[0]);
    std::fill_n(name, sizeof names.name[0], '\0');
    handler->name().copy(name, sizeof names.name[0] - 1);
    if (root->flbs) tx.set(flb_records()->held[names.count], tied_to(*handler));
    tx.set(names.count, names.count + 1);
    handlers.push_back(handler);
  }
  return {};
}

}  // namespace luo
