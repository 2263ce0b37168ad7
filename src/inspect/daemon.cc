// The daemon's records: connections, what they may use, updates; and its control page.
#include <cstring>

#include "base/text.h"
#include "daemon/control.h"
#include "daemon/state.h"
#include "inspect/parts.h"

namespace luo::inspect {
namespace {

using daemon::Control;
using daemon::GrantRec;
using daemon::PeerRec;
using daemon::State;
using daemon::UpdateRec;

template <std::size_t N>
std::string text_in(const char (&field)[N]) {
  return printable_name({field, strnlen(field, N)});
}

Json connections(const kho::Snapshot& arena, const State::Root& root, std::vector<Error>& faults) {
  Json list = Json::array();
  walk_list(
      arena, "connections", root.peers.first, root.peers.count, faults, [](const PeerRec& peer) { return peer.next; },
      [&](auto, const PeerRec& peer) {
        list.push_back({{"id", peer.id},
                        {"program", text_in(peer.name)},
                        {"fd", peer.fd},
                        {"uid", peer.uid},
                        {"pid", peer.pid},
                        {"hello", peer.hello != 0},
                        {"subscribed", peer.subscribed != 0},
                        {"capabilities", hex(peer.capabilities)}});
        const auto answer = arena.get(peer.answer[peer.active & 1U]);
        if (answer) list.back()["last_nonce"] = answer->nonce;
        else faults.push_back(Error{answer.error()}.during(fmt::format("last answer of connection {}", peer.id)));
        if (peer.update != 0) list.back()["update"] = peer.update;
        return true;
      });
  return list;
}

Json grants(const kho::Snapshot& arena, const State::Root& root, std::vector<Error>& faults) {
  Json list = Json::array();
  walk_list(
      arena, "grants", root.grants.first, root.grants.count, faults, [](const GrantRec& grant) { return grant.next; },
      [&](auto, const GrantRec& grant) {
        list.push_back({{"connection", grant.peer},
                        {"session", grant.session},
                        {"role", grant.role == 1                      ? "owner"
                                 : grant.role == 2                    ? "successor"
                                 : grant.role == daemon::kFormerOwner ? "former owner"
                                                                      : "?"}});
        return true;
      });
  return list;
}

Json updates(const kho::Snapshot& arena, const State::Root& root, std::vector<Error>& faults) {
  constexpr std::string_view kKinds[] = {"?", "luod", "service", "simulated", "kernel"};
  constexpr std::string_view kPhases[] = {"?", "offered", "warming", "preparing", "quiesced", "done", "failed"};
  Json list = Json::array();
  walk_list(
      arena, "updates", root.updates.first, root.updates.count, faults,
      [](const UpdateRec& update) { return update.next; },
      [&](auto, const UpdateRec& update) {
        list.push_back({{"id", update.id},
                        {"kind", update.kind < std::size(kKinds) ? kKinds[update.kind] : "?"},
                        {"phase", update.phase < std::size(kPhases) ? kPhases[update.phase] : "?"},
                        {"sessions", update.sessions},
                        {"files", update.files}});
        Json& out = list.back();
        if (update.session != 0) out["session"] = update.session;
        if (update.name[0] != '\0') out["session_name"] = text_in(update.name);
        if (update.error != 0) out["error"] = update.error;
        if (update.text[0] != '\0') out["text"] = text_in(update.text);
        return true;
      });
  return list;
}

/// A copy of one field; the page was written by other processes, word by word.
template <class T>
T field(std::span<const std::byte, kho::Arena::kControlBytes> page, std::size_t at) {
  T value;
  std::memcpy(&value, page.data() + at, sizeof value);
  return value;
}
std::string text_at(std::span<const std::byte, kho::Arena::kControlBytes> page, std::size_t at, std::size_t size) {
  const auto* text = reinterpret_cast<const char*>(page.data() + at);
  return printable_name({text, strnlen(text, size)});
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winvalid-offsetof"
Json control(std::span<const std::byte, kho::Arena::kControlBytes> page, std::vector<Error>& faults) {
  if (field<std::uint64_t>(page, offsetof(Control, magic)) != Control::kMagic) {
    faults.push_back({EBADMSG, "control page: it is not luod's"});
    return Json::object();
  }
  constexpr std::string_view kTrials[] = {"none", "trying", "serving", "abandoned"};
  const auto trial = field<std::uint32_t>(page, offsetof(Control, trial));
  return {{"instance", hex(field<std::uint64_t>(page, offsetof(Control, instance)))},
          {"started_ms", field<std::uint64_t>(page, offsetof(Control, started_ms))},
          {"keeper_pid", field<std::int32_t>(page, offsetof(Control, keeper_pid))},
          {"worker_pid", field<std::int32_t>(page, offsetof(Control, worker_pid))},
          {"arena_fd", field<std::int32_t>(page, offsetof(Control, arena_fd))},
          {"listen_fd", field<std::int32_t>(page, offsetof(Control, listen_fd))},
          {"worker_starts", field<std::uint64_t>(page, offsetof(Control, worker_starts))},
          {"keeper_starts", field<std::uint64_t>(page, offsetof(Control, keeper_starts))},
          {"luod_updates", field<std::uint64_t>(page, offsetof(Control, luod_updates))},
          {"stopping", field<std::uint32_t>(page, offsetof(Control, stopping)) != 0},
          {"damaged", field<std::uint32_t>(page, offsetof(Control, damaged)) != 0},
          {"last_luod_update", trial < std::size(kTrials) ? kTrials[trial] : "?"},
          {"state_dir", text_at(page, offsetof(Control, state_dir), sizeof(Control::state_dir))},
          {"socket", text_at(page, offsetof(Control, socket_path), sizeof(Control::socket_path))},
          {"handlers", text_at(page, offsetof(Control, handlers), sizeof(Control::handlers))}};
}
#pragma GCC diagnostic pop

}  // namespace

Json daemon_of(const kho::Snapshot& arena, std::vector<Error>& faults) {
  Json out = Json::object();
  if (const auto page = arena.control()) out["control"] = control(*page, faults);
  const kho::Ref<State::Root> at{arena.state().roots[State::kRootSlot]};
  if (!at) return out;  // a luod that was killed before it had made it
  const auto root = arena.get(at);
  if (!root) {
    faults.push_back(Error{root.error()}.during("root of the daemon's records"));
    return out;
  }
  out["connections"] = connections(arena, *root, faults);
  out["grants"] = grants(arena, *root, faults);
  out["updates"] = updates(arena, *root, faults);
  return out;
}

}  // namespace luo::inspect
