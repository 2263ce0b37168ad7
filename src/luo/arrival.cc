// Records that come from another system: what they name of it is forgotten, their files are brought, and then it is as
// after a crossing here.
#include <sys/stat.h>

#include "luo/engine_impl.h"

namespace luo {
namespace {

constexpr std::uint64_t kPerStep = 256;  ///< records that one transaction is about

}  // namespace

/// Pipes' inodes, and who had them.
Result<> Engine::Impl::forget_holders() {
  {
    Change change{arena};
    table(root->inodes).release(change.tx);
    change.commit();
  }
  for (const ListRecord<SessionRecord>* list : {&root->outgoing.sessions, &root->incoming.sessions, &root->dropped}) {
    for (SessionRecord* s = at(list->first); s != nullptr;) {
      Change change{arena};
      for (std::uint64_t n = 0; s != nullptr && n < kPerStep; ++n, s = at(s->links.next)) {
        for (HolderRecord& holder : s->holder) {
          HolderRecord nobody = kNobody;
          nobody.uid = holder.uid;  // stays visible, and is what a held session is given back by
          nobody.pid = holder.pid;
          change.tx.set(holder, nobody);
        }
      }
      change.commit();
    }
  }
  return {};
}

/// Which file is which is told by inodes and by kcmp(2): both are this system's own.
Result<> Engine::Impl::forget_identities() {
  const auto forget = [&](const SessionRecord& session) {
    for (FileRecord* f = at(session.files.first); f != nullptr;) {
      Change change{arena};
      for (std::uint64_t n = 0; f != nullptr && n < kPerStep; ++n, f = at(f->links.next)) {
        if (f->tree && --at(f->tree)->count == 0) change.tx.release(f->tree);  // nobody reads the trees any more
        change.tx.save(f, sizeof *f);
        f->fd = -1;
        f->indexed = 0;
        f->tree = {};
        f->left = f->right = f->up = {};
        f->priority = 0;
      }
      change.commit();
    }
  };
  for (const ListRecord<SessionRecord>* list : {&root->outgoing.sessions, &root->incoming.sessions, &root->dropped})
    for (const SessionRecord* s = at(list->first); s != nullptr; s = at(s->links.next)) forget(*s);
  for (const SessionRecord* s = at(root->doomed); s != nullptr; s = at(s->next_doomed))
    if (s->state == static_cast<std::uint32_t>(kGone)) forget(*s);
  Change change{arena};
  table(root->identities).release(change.tx);
  table(root->trees).release(change.tx);
  change.commit();
  return {};
}

Result<> Engine::Impl::bring_file(Change& change, SessionRecord& session, FileRecord& file, const Arrival& arrival) {
  change.tx.save(&file, sizeof file);
  file.fd = arrival.fd;
  file.data = arrival.data;
  if (arrival.fd < 0) {
    // Remembered for those who ask on the side that this becomes.
    file.status = arrival.error != 0 ? -arrival.error : -EIO;
    // keep_held() begins another epoch.
    const std::uint64_t epoch = side_of(session) == Side::Incoming ? session.epoch + 1 : session.epoch;
    file.status_of = (root->generation + 1) << 32 | epoch;
    return {};
  }
  FileInfo info{arrival.fd, {}};
  if (fstat(arrival.fd, &info.st) != 0) return sys_fail("fstat(fd {}) of token {}", arrival.fd, file.token);
  const Identity identity = handler_of(file).identity(info);
  LUO_TRY(identities().reserve(change.tx));
  const Identities::Spot spot = LUO_TRY(identities().find(identity, arrival.fd));
  if (!spot.same) LUO_TRY(identities().insert(change.tx, spot, identity, arena.ref_of(&file)));
  return {};
}

Result<> Engine::Impl::bring_files(SessionRecord& session, const Bring& bring) {
  const SessionView seen = view(session);
  for (FileRecord* f = at(session.files.first); f != nullptr;) {
    Change change{arena};
    for (std::uint64_t n = 0; f != nullptr && n < kPerStep; ++n) {
      FileRecord& file = *f;
      f = at(f->links.next);
      const Arrival arrival = bring(seen, {Token{file.token}, handler_of(file).name(), -1, 0, file.object, file.group,
                                           file.data, std::uint64_t{file.charge_kib} * 1024, file.preserved_s});
      if (arrival.later) return fail(arrival.error, "token {} of session '{}'", file.token, shown(seen.name));
      if (arrival.gone) continue;  // fd -1 and no errno: arrive() takes it out
      LUO_TRY(bring_file(change, session, file, arrival));
    }
    change.commit();
  }
  return {};
}

Result<> Engine::arrive(const Bring& bring) {
  Impl& impl = *impl_;
  LUO_TRY(impl.upgrade());
  LUO_TRY(impl.forget_identities());
  LUO_TRY(impl.forget_holders());
  for (SessionRecord* s = impl.at(impl.root->outgoing.sessions.first); s != nullptr; s = impl.at(s->links.next))
    LUO_TRY(impl.bring_files(*s, bring));
  for (SessionRecord* s = impl.at(impl.root->incoming.sessions.first); s != nullptr; s = impl.at(s->links.next))
    if (impl.hold_of(*s) != Hold::Off && impl.state_of(*s) != SessionState::Finished)
      LUO_TRY(impl.bring_files(*s, bring));
  {
    Change change{impl.arena};
    LUO_TRY(cross(change));
    change.commit();
  }
  LUO_TRY(impl.take_over());  // sweeps what nobody had claimed; what is held is incoming from here on
  // What did not cross. From the end: what depends on others goes before them.
  for (SessionRecord* s = impl.at(impl.root->incoming.sessions.first); s != nullptr; s = impl.at(s->links.next)) {
    for (FileRecord* f = impl.at(s->files.last); f != nullptr;) {
      FileRecord& file = *f;
      f = impl.at(f->links.prev);
      if (file.fd >= 0 || impl.status(*s, file) < 0) continue;
      Change change{impl.arena};
      if (const RelationRecord* relation = impl.relation_of(impl.arena.ref_of(&file));
          relation != nullptr && relation->dependents != 0) {
        // Others that are here name it: it stays, as one that cannot be had.
        change.tx.set(file.status, -EOPNOTSUPP);
        change.tx.set(file.status_of, impl.status_key(*s));
      } else {
        Impl::FlbRelease{impl, change.tx, Impl::FlbSide::Incoming}.file(file);
        impl.remove_file(change, file);
        change.tx.set(impl.root->incoming.files, impl.root->incoming.files - 1);
      }
      change.commit();
    }
  }
  return {};
}

}  // namespace luo
