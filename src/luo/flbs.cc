// What several files need together: counted over all sessions, on each side, in the arena.
#include <algorithm>
#include <bit>

#include "luo/engine_impl.h"

namespace luo {
namespace {

constexpr std::uint64_t bit(std::size_t i) noexcept { return std::uint64_t{1} << i; }
constexpr FlbPhase phase(const FlbSideRecord& side) noexcept { return static_cast<FlbPhase>(side.state); }
constexpr std::uint32_t raw(FlbPhase phase) noexcept { return static_cast<std::uint32_t>(phase); }
std::string_view flb_name(const FlbRecord& record) noexcept {
  return {record.name, strnlen(record.name, sizeof record.name)};
}

}  // namespace

// --- opening ------------------------------------------------------------------------------------------

Result<> Engine::Impl::read_flbs() {
  if (root->magic == kRootMagic1 || !root->flbs) return {};
  const FlbsRecord* records = arena.checked(root->flbs);
  if (records == nullptr || records->magic != kFlbsMagic || records->count > kMaxFlbs)
    return fail(EBADMSG, "no list of FLBs at {:#x}", root->flbs.at);
  for (const std::uint64_t held : records->held)
    if (held >> records->count != 0) return fail(EBADMSG, "a handler holds FLBs that are not there");
  for (std::uint64_t i = 0; i < records->count; ++i) {
    const FlbRecord& record = records->flb[i];
    const std::string_view name = flb_name(record);
    if (name.empty() || name.size() == sizeof record.name)
      return fail(EBADMSG, "FLB {} at {:#x} has no name", i, root->flbs.at);
    Flb* flb = registry.find_flb(name);
    if (flb != nullptr && std::ranges::find(flbs, flb) != flbs.end())
      return fail(EBADMSG, "FLB {} at {:#x} is named twice", name, root->flbs.at);
    bool lives = false;
    for (const FlbSideRecord* side : {&record.outgoing, &record.incoming, &record.dropped}) {
      if (side->state > raw(FlbPhase::Finished) || side->error < 0 || side->error > 4095)
        return fail(EBADMSG, "FLB {} at {:#x}: phase {}, error {}", name, root->flbs.at, side->state, side->error);
      lives = lives || phase(*side) == FlbPhase::Kept || phase(*side) == FlbPhase::Retrieved;
    }
    if (flb == nullptr && lives) return fail(ENOTSUP, "files need the FLB {}, which is not there", name);
    flbs.push_back(flb);
  }
  objects.resize(flbs.size());
  flbs_due = true;  // a predecessor may have died while somebody had one
  return {};
}

/// Gives each registered FLB its index, and each handler one for the set that it is tied to.
Result<> Engine::Impl::name_flbs(kho::Tx& tx) {
  if (registry.flbs().empty()) return {};
  if (!root->flbs) {
    const Ref<FlbsRecord> fresh = LUO_TRY(tx.make<FlbsRecord>());
    at(fresh)->magic = kFlbsMagic;
    tx.set(root->flbs, fresh);
  }
  FlbsRecord& records = *flb_records();
  for (Flb* flb : registry.flbs()) {
    if (std::ranges::find(flbs, flb) != flbs.end()) continue;
    if (records.count == kMaxFlbs) return fail(ENOSPC, "the arena knows {} FLBs already", kMaxFlbs);
    FlbRecord& record = records.flb[records.count];
    tx.save(&record, sizeof record);
    record = FlbRecord{};
    flb->name().copy(record.name, sizeof record.name - 1);
    tx.set(records.count, records.count + 1);
    flbs.push_back(flb);
  }
  objects.resize(flbs.size());
  return {};
}

std::uint64_t Engine::Impl::tied_to(const Handler& handler) const noexcept {
  std::uint64_t tied = 0;
  const std::uint64_t wanted = registry.flbs_of(handler);
  for (std::size_t i = 0; wanted != 0 && i < registry.flbs().size(); ++i)
    if ((wanted & bit(i)) != 0)
      tied |= bit(static_cast<std::size_t>(std::ranges::find(flbs, registry.flbs()[i]) - flbs.begin()));
  return tied;
}

// --- preserving -----------------------------------------------------------------------------------------

Result<bool> Engine::Impl::take_flb(kho::Tx& tx, std::size_t i, std::uint64_t files) {
  FlbSideRecord& side = flb_records()->flb[i].outgoing;
  FlbObject& mine = objects[i][0];
  const bool begins = phase(side) == FlbPhase::None;
  if (begins) {
    if (!mine.attached) {  // else: begun in a step that was taken back
      const Flb::State state = LUO_TRY_DURING(fmt::format("FLB {}", flbs[i]->name()), flbs[i]->preserve());
      mine = {state.object, true, mine.gets, state.data, 0};
    }
    flbs_due = true;  // should this step be taken back
    tx.set(side, FlbSideRecord{0, mine.data, raw(FlbPhase::Kept), 0});
  }
  tx.set(side.files, side.files + files);
  return begins;
}

Result<std::uint64_t> Engine::Impl::take_flbs(kho::Tx& tx, std::uint64_t which) {
  std::uint64_t begun = 0;
  for (; which != 0; which &= which - 1) {
    const auto i = static_cast<std::size_t>(std::countr_zero(which));
    const auto begins = take_flb(tx, i, 1);
    if (!begins) {
      undo_flbs(begun);
      return std::unexpected(begins.error());
    }
    if (*begins) begun |= bit(i);
  }
  return begun;
}

Result<> Engine::Impl::renew_flbs(kho::Tx& tx, const SessionRecord& session) {
  if (!root->flbs) return {};
  std::vector<std::uint64_t> files(flbs.size());
  for (const FileRecord* f = at(session.files.first); f != nullptr; f = at(f->links.next))
    for (std::uint64_t held = held_by(f->handler); held != 0; held &= held - 1)
      ++files[static_cast<std::size_t>(std::countr_zero(held))];
  std::uint64_t begun = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    if (files[i] == 0) continue;
    const auto begins = take_flb(tx, i, files[i]);
    if (!begins) {
      undo_flbs(begun);
      return std::unexpected(begins.error());
    }
    if (*begins) begun |= bit(i);
  }
  for (std::size_t i = files.size(); i-- > 0;) {
    if (files[i] == 0) continue;
    FlbSideRecord& incoming = flb_records()->flb[i].incoming;
    tx.set(incoming.files, incoming.files - std::min(files[i], incoming.files));
    if (incoming.files == 0) end_flb(tx, i, FlbSide::Incoming);
  }
  return {};
}

/// Of a step that is about to be taken back; its records will be.
void Engine::Impl::undo_flbs(std::uint64_t begun) noexcept {
  for (; begun != 0; begun &= ~bit(static_cast<std::size_t>(std::bit_width(begun)) - 1)) {
    const auto i = static_cast<std::size_t>(std::bit_width(begun)) - 1;
    FlbObject& mine = objects[i][0];
    if (mine.gets != 0) continue;  // settle_flbs() does it after the put
    flbs[i]->unpreserve({mine.data, mine.object});
    mine = {};
  }
}

// --- giving up ------------------------------------------------------------------------------------------

Engine::Impl::FlbRelease::FlbRelease(Impl& impl, kho::Tx& tx, FlbSide side)
    : impl_{impl}, tx_{tx}, side_{side}, gone_(impl.root->flbs ? impl.flbs.size() : 0) {}

void Engine::Impl::FlbRelease::file(const FileRecord& file) noexcept {
  for (std::uint64_t held = impl_.held_by(file.handler); held != 0;) {
    const auto i = static_cast<std::size_t>(std::bit_width(held)) - 1;
    held &= ~bit(i);
    FlbSideRecord& record = flb_side(impl_.flb_records()->flb[i], side_);
    if (++gone_[i] != record.files) continue;
    gone_[i] = 0;
    tx_.set(record.files, std::uint64_t{0});
    impl_.end_flb(tx_, i, side_);
  }
}

Engine::Impl::FlbRelease::~FlbRelease() {
  for (std::size_t i = 0; i < gone_.size(); ++i) {
    if (gone_[i] == 0) continue;
    FlbSideRecord& record = flb_side(impl_.flb_records()->flb[i], side_);
    tx_.set(record.files, record.files - std::min(gone_[i], record.files));
  }
}

/// retrieve(), if it was not called in this process and has not failed before. What it says is recorded by
/// settle_flbs(): a callback that asks is inside a step that may be taken back.
void Engine::Impl::attach_incoming(std::size_t i, FlbSide side) noexcept {
  const FlbSideRecord& record = flb_side(flb_records()->flb[i], side);
  FlbObject& mine = objects[i][1];
  if (mine.attached) return;
  mine.attached = true;
  mine.data = record.data;
  mine.error = record.error;
  if (mine.error != 0) return;
  auto object = flbs[i]->retrieve(record.data);
  mine.object = object ? *object : nullptr;
  mine.error = object ? 0 : object.error().code;
  flbs_due = true;
}

/// No file holds it. Whoever has got it keeps it; settle_flbs() comes back after the put.
void Engine::Impl::end_flb(kho::Tx& tx, std::size_t i, FlbSide side) noexcept {
  FlbSideRecord& record = flb_side(flb_records()->flb[i], side);
  FlbObject& mine = objects[i][side == FlbSide::Outgoing ? 0 : 1];
  if (phase(record) != FlbPhase::Kept && phase(record) != FlbPhase::Retrieved) return;
  if (mine.gets != 0) return;
  if (side == FlbSide::Outgoing) {
    if (!mine.attached) {
      auto object = flbs[i]->reattach(record.data);
      mine.object = object ? *object : nullptr;
    }
    flbs[i]->unpreserve({record.data, mine.object});
    tx.set(record, FlbSideRecord{});
  } else {
    attach_incoming(i, side);
    flbs[i]->finish({record.data, mine.object});
    if (side == FlbSide::Dropped) tx.set(record, FlbSideRecord{});
    else tx.set(record, FlbSideRecord{0, record.data, raw(FlbPhase::Finished), mine.error});
  }
  mine = {};
}

/// What was outgoing is incoming; what was incoming waits for the sweep of the files that hold it.
void Engine::Impl::cross_flbs(kho::Tx& tx) noexcept {
  FlbsRecord* records = flb_records();
  if (records == nullptr) return;
  for (std::size_t i = 0; i < records->count; ++i) {
    FlbRecord& record = records->flb[i];
    if (flbs[i] == nullptr) continue;
    FlbObject& out = objects[i][0];
    FlbObject& in = objects[i][1];
    // The side that ends takes its gets with it.
    out.gets = in.gets = 0;
    if (record.outgoing.files == 0) end_flb(tx, i, FlbSide::Outgoing);
    if (record.incoming.files == 0) end_flb(tx, i, FlbSide::Incoming);
    if (out.attached) flbs[i]->forget(out.object);
    out = {};
    tx.set(record.dropped, record.incoming.files == 0 ? FlbSideRecord{} : record.incoming);
    tx.set(record.incoming, record.outgoing);
    tx.set(record.outgoing, FlbSideRecord{});
    if (record.dropped.state == 0) in = {};  // else the sweep needs it, and gives it up
  }
}

// --- the interface ------------------------------------------------------------------------------------

std::optional<std::size_t> Engine::Impl::index_of(const Flb& flb) const noexcept {
  const auto at = std::ranges::find(flbs, &flb);
  return at == flbs.end() ? std::nullopt : std::optional{static_cast<std::size_t>(at - flbs.begin())};
}

Result<void*> Engine::get_outgoing(const Flb& flb) {
  const auto i = impl_->index_of(flb);
  if (!i) return fail(ENOENT, "FLB {} is not registered", flb.name());
  const FlbSideRecord& record = impl_->flb_records()->flb[*i].outgoing;
  Impl::FlbObject& mine = impl_->objects[*i][0];
  if (phase(record) != FlbPhase::Kept) return fail(ENOENT, "FLB {}: no file is preserved", flb.name());
  if (!mine.attached) {
    auto object = impl_->flbs[*i]->reattach(record.data);
    if (!object) return std::unexpected(std::move(object).error().during(fmt::format("FLB {}", flb.name())));
    mine = {*object, true, 0, record.data, 0};
  }
  if (mine.object == nullptr) return fail(ENOENT, "FLB {} has no object", flb.name());
  ++mine.gets;
  return mine.object;
}

Result<void*> Engine::get_incoming(const Flb& flb) {
  const auto i = impl_->index_of(flb);
  if (!i) return fail(ENOENT, "FLB {} is not registered", flb.name());
  const FlbSideRecord& record = impl_->flb_records()->flb[*i].incoming;
  Impl::FlbObject& mine = impl_->objects[*i][1];
  if (phase(record) == FlbPhase::None) return fail(ENOENT, "FLB {}: nothing came in", flb.name());
  if (phase(record) == FlbPhase::Finished) return fail(ENODATA, "FLB {} was finished", flb.name());
  impl_->attach_incoming(*i, Impl::FlbSide::Incoming);
  if (mine.error != 0) return fail(mine.error, "FLB {}: its retrieval failed, and is not tried again", flb.name());
  ++mine.gets;
  return mine.object;
}

void Engine::put_outgoing(const Flb& flb) noexcept {
  const auto i = impl_->index_of(flb);
  if (!i || impl_->objects[*i][0].gets == 0) return;
  --impl_->objects[*i][0].gets;
  impl_->flbs_due = true;
}

void Engine::put_incoming(const Flb& flb) noexcept {
  const auto i = impl_->index_of(flb);
  if (!i || impl_->objects[*i][1].gets == 0) return;
  --impl_->objects[*i][1].gets;
  impl_->flbs_due = true;
}

void Engine::settle_flbs() {
  if (!std::exchange(impl_->flbs_due, false)) return;
  FlbsRecord* records = impl_->flb_records();
  if (records == nullptr) return;
  Change change{impl_->arena};
  for (std::size_t i = 0; i < records->count; ++i) {
    if (impl_->flbs[i] == nullptr) continue;
    if (records->flb[i].outgoing.files == 0) impl_->end_flb(change.tx, i, Impl::FlbSide::Outgoing);
    if (records->flb[i].incoming.files == 0) impl_->end_flb(change.tx, i, Impl::FlbSide::Incoming);
    if (records->flb[i].dropped.files == 0) impl_->end_flb(change.tx, i, Impl::FlbSide::Dropped);
    FlbSideRecord& incoming = records->flb[i].incoming;
    const Impl::FlbObject& mine = impl_->objects[i][1];
    if (phase(incoming) == FlbPhase::Kept && mine.attached) {
      change.tx.set(incoming.error, mine.error);
      change.tx.set(incoming.state, raw(FlbPhase::Retrieved));
    }
    // Begun in a step that was taken back, and not taken up by another.
    if (phase(records->flb[i].outgoing) == FlbPhase::None && impl_->objects[i][0].attached &&
        impl_->objects[i][0].gets == 0)
      impl_->undo_flbs(bit(i));
  }
  change.commit();
}

void Engine::for_each_incoming(const Handler& handler,
                               const std::function<void(std::string_view, const KeptFile&)>& visit) const {
  for (const SessionRecord* s = impl_->at(impl_->root->incoming.sessions.first); s != nullptr;
       s = impl_->at(s->links.next)) {
    if (impl_->is_dead(*s)) continue;
    for (const FileRecord* f = impl_->at(s->files.first); f != nullptr; f = impl_->at(f->links.next))
      if (&impl_->handler_of(*f) == &handler) visit(impl_->name_of(*s), impl_->kept(*f));
  }
}

void Engine::for_each_flb(const std::function<void(const FlbView&)>& visit) const {
  const FlbsRecord* records = impl_->root->magic == kRootMagic1 ? nullptr : impl_->flb_records();
  if (records == nullptr) return;
  const auto exists = [](const FlbSideRecord& side) {
    return phase(side) == FlbPhase::Kept || phase(side) == FlbPhase::Retrieved;
  };
  for (std::uint64_t i = 0; i < records->count; ++i) {
    const FlbRecord& record = records->flb[i];
    visit({flb_name(record), record.outgoing.files, record.incoming.files, exists(record.outgoing),
           exists(record.incoming)});
  }
}

}  // namespace luo
