// What luoctl shows, as JSON.
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "daemon/server.h"
#include "daemon/version.h"
#include "kho/image.h"

namespace luo::daemon {
namespace {

using nlohmann::json;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

json session_json(const SessionView& session) {
  const Holder& owner = session.holder[0];
  return {
      {"name", printable_name(session.name)},
      {"id", session.id.raw()},
      {"state", to_string(session.state)},
      {"pid", session.owner.pid},
      {"uid", session.owner.uid},
      {"files", session.files},
      {"created_ms", session.created_ms},
      {"on_close", session.hold == Hold::Off ? "unpreserve" : "hold"},
      {"held_for", session.hold == Hold::Off    ? json(nullptr)
                   : session.hold == Hold::User ? json("user")
                                                : json{{to_string(session.hold), printable_name(session.held_for)}}},
      {"holder", owner.write_fd < 0 ? "none"
                 : owner.accepted   ? "held"
                                    : "handed out"},
      {"successor", session.holder[1].write_fd >= 0},
      {"transient", (session.carry & kCarryTransient) != 0 ? "allow" : "refuse"},
      {"grow", (session.carry & kCarryGrow) != 0 ? "allow" : "refuse"}};
}

}  // namespace

Result<Next> Server::query(Request& request, Reply& reply, Change&) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::QueryArg>(request.payload));
  switch (static_cast<wire::QueryKind>(arg.kind)) {
    case wire::QueryKind::Status: LUO_TRY(attach_text(reply, status_json())); break;
    case wire::QueryKind::List: LUO_TRY(attach_text(reply, list_json())); break;
    case wire::QueryKind::Preflight: LUO_TRY(attach_text(reply, preflight_json())); break;
    case wire::QueryKind::Files: LUO_TRY(attach_text(reply, files_json(wire::text_in(arg.name)))); break;
    case wire::QueryKind::Show: {
      const std::string text = LUO_TRY_DURING("show", show_json(wire::text_in(arg.name)));
      LUO_TRY(attach_text(reply, text));
      break;
    }
    default: return fail(EINVAL, "query {} is not known", arg.kind);
  }
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

/// Between two transactions, so that it is one moment's state: nobody who reads the live arena could know that. It has
/// the key of the hash tables and everybody's names and tokens: for those who may do anything here in any case.
Result<Next> Server::inspect(Request& request, Reply& reply, Change&) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::PlainArg>(request.payload));
  if (arg.reserved != 0) return fail(EINVAL, "inspect: reserved is {}", arg.reserved);
  LUO_TRY(may_administer(request));
  Fd image = LUO_TRY_DURING("inspect", kho::seal(arena_, "luod-inspect", {.control = true}));
  reply.fds.push_back(image.release());
  reply.owned = true;
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

std::string Server::status_json() const {
  const auto kernel_json = [this]() -> json {
    if (!kernel_) return nullptr;
    const medium::Kernel::Counts counts = kernel_->counts();
    return {{"sessions", counts.sessions}, {"files", counts.files}, {"lacking", counts.lacking}};
  };
  std::uint64_t outgoing = 0, incoming = 0, open_files = 0;
  engine_->for_each_session(
      [&](const SessionView& session) { ++(session.state < SessionState::Incoming ? outgoing : incoming); });
  struct stat table {};
  if (stat("/proc/self/fd", &table) == 0) open_files = static_cast<std::uint64_t>(table.st_size);  // since Linux 6.2
  std::error_code ignored;
  if (open_files == 0)
    open_files = static_cast<std::uint64_t>(std::distance(std::filesystem::directory_iterator{"/proc/self/fd", ignored},
                                                          std::filesystem::directory_iterator{}));
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  json handlers = json::array();
  for (const Handler* handler : handler_set_->registry().all()) handlers.push_back(handler->name());
  json flbs = json::array();
  engine_->for_each_flb([&](const Engine::FlbView& flb) {
    flbs.push_back({{"name", flb.name},
                    {"outgoing", flb.outgoing},
                    {"outgoing_files", flb.outgoing_files},
                    {"incoming", flb.incoming},
                    {"incoming_files", flb.incoming_files}});
  });
  json updates = json::array();
  state_->for_each_update([&](const UpdateRec& update) { updates.push_back(json::parse(update_report(update))); });
  json clients = json::array();
  state_->for_each_peer([&](const PeerRec& peer) {
    clients.push_back({{"name", wire::text_in(peer.name)}, {"pid", peer.pid}, {"uid", peer.uid}});
  });
  const kho::ArenaStats arena = arena_.stats();
  return dump({{"version", kVersion},
               {"pid", control_.keeper_pid.load()},
               {"keeper_pid", control_.keeper_pid.load()},
               {"worker_pid", control_.worker_pid.load()},
               {"socket", control_.socket_path},
               {"state_dir", control_.state_dir},
               {"medium", kernel_ ? "kernel" : "exec"},
               {"kernel", kernel_json()},
               {"handlers", handlers},
               {"flbs", flbs},
               {"sessions", {{"outgoing", outgoing}, {"incoming", incoming}}},
               {"files", engine_->file_count()},
               {"connections", state_->peer_count()},
               {"clients", clients},
               {"generation", engine_->generation()},
               {"uptime_ms", realtime_ms() - control_.started_ms},
               {"requests", requests_},
               {"worker_restarts", control_.worker_starts.load() - 1},
               {"keeper_restarts", control_.keeper_starts.load() - 1},
               {"updates", control_.luod_updates.load()},
               {"arena", {{"used_bytes", arena.used_bytes}, {"committed_bytes", arena.committed_bytes}}},
               {"last_update", updates.empty() ? json(nullptr) : updates.back()},
               {"history", updates},
               {"open_files", open_files},
               {"open_files_limit", limit.rlim_cur}});
}

std::string Server::list_json() const {
  json sessions = json::array();
  engine_->for_each_session([&](const SessionView& session) { sessions.push_back(session_json(session)); });
  return dump({{"sessions", std::move(sessions)}});
}

Result<std::string> Server::show_json(std::string_view name) const {
  auto id = engine_->find_outgoing(name);
  if (!id) id = engine_->find_incoming(name);
  // A name as `list` shows it.
  if (!id)
    engine_->for_each_session([&](const SessionView& session) {
      if (!id && printable_name(session.name) == name) id = session.id;
    });
  if (!id) return fail(ENOENT, "no session '{}' (see luoctl list)", name);
  json out = session_json(*engine_->find(*id));
  json files = json::array();
  engine_->for_each_file(*id, [&](const FileView& file) {
    json shown_file = {{"token", file.token.raw()},
                       {"handler", file.handler},
                       {"status", file.retrieve_status == 0  ? "kept"
                                  : file.retrieve_status > 0 ? "given out"
                                                             : "failed"},
                       {"inode", file.inode},
                       {"device", file.device},
                       {"charge_bytes", file.charge_bytes},
                       {"preserved_s", file.preserved_s}};
    json after = json::array();
    for (const Token token : engine_->depends_on(*id, file.token)) after.push_back(token.raw());
    if (!after.empty()) shown_file["after"] = std::move(after);
    if (struct stat st{}; fstat(file.fd, &st) == 0 && S_ISREG(st.st_mode)) shown_file["size"] = st.st_size;
    files.push_back(std::move(shown_file));
  });
  out["files_list"] = std::move(files);
  return dump(out);
}

/// What is kept for a handler, before anybody retrieves it. O(files).
std::string Server::files_json(std::string_view handler) const {
  json files = json::array();
  engine_->for_each_session([&](const SessionView& session) {
    engine_->for_each_file(session.id, [&](const FileView& file) {
      if (!handler.empty() && file.handler != handler) return;
      files.push_back({{"session", printable_name(session.name)},
                       {"state", to_string(session.state)},
                       {"token", file.token.raw()},
                       {"handler", file.handler},
                       {"data", file.data}});
    });
  });
  return dump({{"files", std::move(files)}});
}

}  // namespace luo::daemon
