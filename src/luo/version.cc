// From one version of the records to the next, and back. What a version adds lies in tables of its own, so
// that only the root record has to be replaced: one transaction, whatever there is.
#include <cstring>

#include "luo/engine_impl.h"

namespace luo {

/// Version 1 → 2.
Result<> Engine::Impl::upgrade() {
  if (root->magic != kRootMagic1) return {};
  // Slack of version 1, which does not read it: no need to log it, and doing it again does no harm.
  const auto clear = [&](const SessionRecord& session) {
    for (FileRecord* f = at(session.files.first); f != nullptr; f = at(f->links.next))
      f->charge_kib = f->preserved_s = 0;
  };
  for (const auto* list : {&root->outgoing.sessions, &root->incoming.sessions, &root->dropped})
    for (const SessionRecord* s = at(list->first); s != nullptr; s = at(s->links.next)) clear(*s);
  for (const SessionRecord* s = at(root->doomed); s != nullptr; s = at(s->next_doomed)) clear(*s);

  Change change{arena};
  const Ref<RootRecord> old = arena.ref_of(root);
  const Ref<RootRecord> fresh = LUO_TRY(change.tx.make<RootRecord>());
  std::memcpy(static_cast<void*>(at(fresh)), root, kRootBytes1);
  at(fresh)->magic = kRootMagic;
  change.tx.set_root(0, fresh.addr());
  change.tx.release(old);
  change.commit();
  root = at(fresh);
  return {};
}

/// Version 2 → 1, unless something would be lost.
Result<> Engine::write_version_before(Change& change) const {
  const Impl& impl = *impl_;
  const auto refuse = [&](const SessionRecord& session, std::string_view what) {
    return fail(ENOTSUP, "version 1 of the records knows nothing of {}, as session '{}' has", what,
                shown(impl.name_of(session)));
  };
  for (const auto* list : {&impl.root->outgoing.sessions, &impl.root->incoming.sessions})
    for (const SessionRecord* s = impl.at(list->first); s != nullptr; s = impl.at(s->links.next)) {
      if (impl.root->options.count == 0 && impl.root->relations.count == 0) break;
      if (impl.hold_of(*s) != Hold::Off) return refuse(*s, "sessions that are held");
      if (const OptionsRecord* options = impl.options_of(*s))
        return refuse(*s, options->carry != 0 ? "how sessions cross to another kernel"
                                              : "sessions that their owner has prepared");
      for (Ref<FileRecord> f = s->files.first; f; f = impl.at(f)->links.next)
        if (impl.relation_of(f) != nullptr) return refuse(*s, "files that depend on others");
    }
  if (const FlbsRecord* flbs = impl.flb_records())
    for (std::uint64_t i = 0; i < flbs->count; ++i)
      for (const FlbSideRecord* side : {&flbs->flb[i].outgoing, &flbs->flb[i].incoming, &flbs->flb[i].dropped})
        if (side->state == static_cast<std::uint32_t>(FlbPhase::Kept) ||
            side->state == static_cast<std::uint32_t>(FlbPhase::Retrieved))
          return fail(ENOTSUP, "version 1 of the records knows nothing of state that files share, as of FLB {}",
                      flbs->flb[i].name);
  if (impl.root->options.count != 0 || impl.root->relations.count != 0)
    return fail(ENOTSUP, "sessions that nobody claimed are still being swept");
  kho::Tx& tx = change.tx;
  const Ref<RootRecord> old = impl.arena.ref_of(impl.root);
  const Ref<RootRecord> fresh{LUO_TRY(tx.allocate(kRootBytes1)).raw()};
  if (const FlbsRecord* flbs = impl.flb_records()) {
    // There a handler has one index; no file is under those with FLBs.
    HandlersRecord& names = *impl.at(impl.root->handlers);
    for (std::uint64_t i = 0; i < names.count; ++i) {
      if (flbs->held[i] == 0) continue;
      tx.save(names.name[i], sizeof names.name[i]);
      const std::string other = fmt::format("(with shared state {}-{})", i, impl.root->generation);
      std::ranges::fill(names.name[i], '\0');
      other.copy(names.name[i], sizeof names.name[i] - 1);
    }
    tx.release(impl.root->flbs);
  }
  impl.table(impl.root->options).release(tx);
  impl.table(impl.root->relations).release(tx);
  std::memcpy(static_cast<void*>(impl.at(fresh)), impl.root, kRootBytes1);
  impl.at(fresh)->magic = kRootMagic1;
  tx.set_root(0, fresh.addr());
  tx.release(old);
  return {};
}

}  // namespace luo
