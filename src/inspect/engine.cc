// The engine's records: sessions, their files, FLBs. Read record by record, believing nothing.
#include <unordered_map>

#include "base/text.h"
#include "inspect/parts.h"
#include "luo/engine.h"
#include "luo/records.h"

namespace luo::inspect {
namespace {

using kho::Snapshot;

template <std::size_t N>
std::string text_in(const char (&field)[N]) {
  return printable_name({field, strnlen(field, N)});
}

template <class T>
Json table_of(const T& table) {
  return {{"entries", table.count}, {"capacity", table.capacity}};
}

class Reader {
 public:
  Reader(const Snapshot& arena, std::vector<Error>& faults) : arena_{arena}, faults_{faults} {}

  Json read() {
    Json out;
    if (auto root = read_root(); !root) {
      faults_.push_back(std::move(root).error());
      return out;
    }
    read_handlers();
    const bool extras = version_ != 1;
    if (extras) {
      read_side_table(root_.options, kOptionsMagic, "options of sessions", options_,
                      [](const OptionsRecord& record) { return record.session.at; });
      read_side_table(root_.relations, kRelationMagic, "relations of files", relations_,
                      [](const RelationRecord& record) { return record.file.at; });
    }
    out["version"] = version_;
    out["generation"] = root_.generation;
    out["next_session"] = root_.next_session;
    out["frozen_sessions"] = root_.frozen;
    out["handlers"] = handlers_;
    out["flbs"] = flbs();
    out["tables"] = {{"outgoing_names", table_of(root_.outgoing.names)},
                     {"incoming_names", table_of(root_.incoming.names)},
                     {"session_ids", table_of(root_.ids)},
                     {"pipe_inodes", table_of(root_.inodes)},
                     {"tokens", table_of(root_.tokens)},
                     {"file_identities", table_of(root_.identities)},
                     {"trees", table_of(root_.trees)}};
    if (extras) {
      out["tables"]["options"] = table_of(root_.options);
      out["tables"]["relations"] = table_of(root_.relations);
    }
    out["outgoing"] = side("outgoing sessions", root_.outgoing.sessions);
    out["incoming"] = side("incoming sessions", root_.incoming.sessions);
    out["dropped"] = side("dropped sessions", root_.dropped);
    return out;
  }

 private:
  Result<> read_root() {
    const Ref<std::uint64_t> at{arena_.state().roots[0]};
    if (!at) return fail(EBADMSG, "engine's root record: there is none");
    const std::uint64_t magic = LUO_TRY_DURING("engine's root record", arena_.get(at));
    version_ = magic == kRootMagic1 ? 1 : Engine::kVersion;
    if (magic != kRootMagic1 && magic != kRootMagic)
      return fail(EBADMSG, "engine's root record at {:#x}: magic is {:#x}; this program knows versions 1 and {}", at.at,
                  magic, Engine::kVersion);
    const auto bytes = std::as_writable_bytes(std::span{&root_, 1}).first(version_ == 1 ? kRootBytes1 : sizeof root_);
    LUO_TRY_DURING("engine's root record", arena_.read(at.addr(), bytes));
    return {};
  }

  void read_handlers() {
    auto record = arena_.get(root_.handlers);
    if (!record || record->magic != kHandlersMagic || record->count > kMaxHandlers) {
      faults_.push_back({EBADMSG, fmt::format("handlers' names at {:#x}: no such record", root_.handlers.at)});
      return;
    }
    for (std::uint64_t i = 0; i < record->count; ++i) handlers_.push_back(text_in(record->name[i]));
  }

  /// What a version added lies beside its sessions and files, found by their place.
  template <class Record, class KeyOf>
  void read_side_table(const TableRecord& table, std::uint64_t magic, std::string_view what,
                       std::unordered_map<std::uint64_t, Record>& out, KeyOf key_of) {
    if (table.capacity == 0) return;
    if (arena_.block_bytes(table.slots.addr()) / sizeof(TableSlot) < table.capacity)
      return faults_.push_back(
          {EBADMSG, fmt::format("{}: no table of {} slots at {:#x}", what, table.capacity, table.slots.at)});
    for (std::uint64_t i = 0; i < table.capacity; ++i) {
      const auto slot = arena_.get(Ref<TableSlot>{table.slots.at + i * sizeof(TableSlot)});
      if (!slot) return faults_.push_back(Error{slot.error()}.during(what));
      if (slot->ref == 0) continue;
      const auto record = arena_.get(Ref<Record>{slot->ref});
      if (!record || record->magic != magic)
        faults_.push_back({EBADMSG, fmt::format("{}: no record at {:#x}", what, slot->ref)});
      else out.emplace(key_of(*record), *record);
    }
  }

  Json flbs() {
    Json list = Json::array();
    if (version_ == 1 || !root_.flbs) return list;
    const auto record = arena_.get(root_.flbs);
    if (!record || record->magic != kFlbsMagic || record->count > kMaxFlbs) {
      faults_.push_back({EBADMSG, fmt::format("FLBs at {:#x}: no such record", root_.flbs.at)});
      return list;
    }
    constexpr std::string_view kPhases[] = {"none", "kept", "retrieved", "finished"};
    const auto side = [&](const FlbSideRecord& of) -> Json {
      Json out = {{"files", of.files}, {"data", hex(of.data)}, {"state", of.state < 4 ? kPhases[of.state] : "?"}};
      if (of.error != 0) out["error"] = of.error;
      return out;
    };
    for (std::uint64_t i = 0; i < record->count; ++i) {
      const FlbRecord& flb = record->flb[i];
      Json held_by = Json::array();
      for (std::size_t h = 0; h < handlers_.size(); ++h)
        if ((record->held[h] >> i & 1U) != 0) held_by.push_back(handlers_[h]);
      list.push_back({{"name", text_in(flb.name)},
                      {"handlers", std::move(held_by)},
                      {"outgoing", side(flb.outgoing)},
                      {"incoming", side(flb.incoming)},
                      {"dropped", side(flb.dropped)}});
    }
    return list;
  }

  Json side(std::string_view what, const ListRecord<SessionRecord>& sessions) {
    Json list = Json::array();
    walk_list(
        arena_, what, sessions.first, sessions.count, faults_,
        [](const SessionRecord& record) { return record.links.next; },
        [&](Ref<SessionRecord> at, const SessionRecord& record) {
          if (record.magic != kSessionMagic) {
            faults_.push_back({EBADMSG, fmt::format("{}: the record at {:#x} is no session", what, at.at)});
            return false;
          }
          list.push_back(session(at, record));
          return true;
        });
    return list;
  }

  /// Crossing rewrites no record: what was frozen on the side before is incoming on this one.
  std::string_view state_of(const SessionRecord& record) const {
    const auto state = static_cast<SessionState>(record.state);
    const bool crossed = state == SessionState::Frozen && record.generation + 1 == root_.generation;
    return to_string(crossed ? SessionState::Incoming : state);
  }

  Json session(Ref<SessionRecord> at, const SessionRecord& record) {
    Json out = {{"name", text_in(record.name)},
                {"id", record.id},
                {"at", at.at},
                {"state", state_of(record)},
                {"generation", record.generation},
                {"epoch", record.epoch},
                {"uid", record.holder[0].uid},
                {"pid", record.holder[0].pid},
                {"created_ms", record.created_ms}};
    const auto options = options_.find(at.at);
    const bool held = options != options_.end() && options->second.hold != 0;
    out["on_close"] = held ? "hold" : "unpreserve";
    if (held) out["hold_for"] = to_string(static_cast<Hold>(options->second.hold));
    if (held && options->second.held_for[0] != '\0') out["held_for"] = text_in(options->second.held_for);
    if (options != options_.end() && options->second.event != 0)
      out["prepared_by_owner"] = options->second.event == 1 ? "prepared" : "frozen";
    const unsigned carry = options == options_.end() ? 0U : options->second.carry;
    out["transient"] = (carry & kCarryTransient) != 0 ? "allow" : "refuse";
    out["grow"] = (carry & kCarryGrow) != 0 ? "allow" : "refuse";
    Json holders = Json::array();
    for (unsigned role = 0; role < 2; ++role) {
      const HolderRecord& holder = record.holder[role];
      if (holder.write_fd < 0 || holder.generation != root_.generation) continue;  // of the side before
      holders.push_back({{"role", role == 0 ? "owner" : "successor"},
                         {"holds", holder.accepted != 0 ? "held" : "handed out"},
                         {"pipe_fd", holder.write_fd},
                         {"pipe_inode", holder.inode},
                         {"connection", holder.peer},
                         {"uid", holder.uid},
                         {"pid", holder.pid}});
    }
    out["holders"] = std::move(holders);
    out["files"] = files(record);
    return out;
  }

  Json files(const SessionRecord& session) {
    Json list = Json::array();
    walk_list(
        arena_, fmt::format("files of session {}", session.id), session.files.first, session.files.count, faults_,
        [](const FileRecord& record) { return record.links.next; },
        [&](Ref<FileRecord> at, const FileRecord& record) {
          if (record.magic != kFileMagic) {
            faults_.push_back(
                {EBADMSG, fmt::format("files of session {}: the record at {:#x} is no file", session.id, at.at)});
            return false;
          }
          list.push_back(file(session, at, record));
          return true;
        });
    return list;
  }

  Json file(const SessionRecord& session, Ref<FileRecord> at, const FileRecord& record) {
    const bool asked = record.status_of == (root_.generation << 32 | session.epoch) && record.status != 0;
    Json out = {{"token", record.token},
                {"at", at.at},
                {"handler", record.handler < handlers_.size() ? handlers_[record.handler]
                                                              : fmt::format("handler {}", record.handler)},
                {"status", !asked              ? "kept"
                           : record.status > 0 ? "given out"
                                               : "failed"},
                {"fd", record.fd},
                {"device", record.group},
                {"inode", record.object},
                {"data", record.data},
                {"charge_bytes", std::uint64_t{record.charge_kib} * 1024},
                {"preserved_s", record.preserved_s}};
    if (asked && record.status < 0) out["error"] = -record.status;
    const auto relation = relations_.find(at.at);
    if (relation == relations_.end()) return out;
    Json after = Json::array();
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(relation->second.count, kMaxDependencies); ++i)
      if (const auto other = arena_.get(relation->second.on[i]); other && other->magic == kFileMagic)
        after.push_back(other->token);
      else
        faults_.push_back({EBADMSG, fmt::format("token {} of session {} depends on {:#x}, which is no file",
                                                record.token, session.id, relation->second.on[i].at)});
    if (!after.empty()) out["after"] = std::move(after);
    if (relation->second.dependents != 0) out["dependents"] = relation->second.dependents;
    return out;
  }

  const Snapshot& arena_;
  std::vector<Error>& faults_;
  std::uint32_t version_ = 0;
  RootRecord root_{};
  std::vector<std::string> handlers_;
  std::unordered_map<std::uint64_t, OptionsRecord> options_;
  std::unordered_map<std::uint64_t, RelationRecord> relations_;
};

}  // namespace

Json engine_of(const kho::Snapshot& arena, std::vector<Error>& faults) { return Reader{arena, faults}.read(); }

}  // namespace luo::inspect
