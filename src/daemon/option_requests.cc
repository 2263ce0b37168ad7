// What a session can be beyond the kernel's: held for its owner, dropped by the operator, taken forward by its
// owner itself, crossing to another kernel in a way of its own.
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>

#include "base/text.h"
#include "daemon/server.h"
#include "sys/memfd.h"

namespace luo::daemon {
namespace {

/// The path that a process runs; an executable that was replaced under it keeps its name.
Result<std::string> executable_of(std::int32_t pid) {
  std::error_code error;
  std::string path = std::filesystem::read_symlink(fmt::format("/proc/{}/exe", pid), error);
  if (error) return fail(error.value(), "learn which executable process {} runs", pid);
  constexpr std::string_view kDeleted = " (deleted)";
  if (path.ends_with(kDeleted)) path.resize(path.size() - kDeleted.size());
  return path;
}

/// The control group of the unified hierarchy; systemd makes one for each unit.
Result<std::string> unit_of(std::int32_t pid) {
  const std::string path = fmt::format("/proc/{}/cgroup", pid);
  const Fd file = Fd::adopt(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return sys_fail("learn the unit of process {}: open('{}')", pid, path);
  std::string text(4096, '\0');
  const ssize_t n = read(file.raw(), text.data(), text.size());
  if (n < 0) return sys_fail("learn the unit of process {}: read('{}')", pid, path);
  text.resize(static_cast<std::size_t>(n));
  const auto at = text.starts_with("0::") ? 0 : text.find("\n0::");
  if (at == std::string::npos) return fail(EOPNOTSUPP, "process {} is in no control group of version 2", pid);
  const std::size_t begin = text.find("0::", at) + 3;
  return text.substr(begin, text.find('\n', begin) - begin);
}

Result<std::string> what_holds(Hold hold, const PeerRec& peer) {
  if (hold == Hold::Executable) return executable_of(peer.pid);
  if (hold == Hold::Unit) return unit_of(peer.pid);
  return std::string{};
}

}  // namespace

/// Whether this process is the owner whom a held session waits for. Root may have everybody's.
Result<> Server::may_get_back(const SessionView& session, const PeerRec& peer) const {
  if (session.hold == Hold::Off) return {};
  const auto refuse = [&](std::string_view why) {
    return fail(EACCES, "retrieve session '{}': it is held for {}; {}", session.name,
                session.hold == Hold::User
                    ? fmt::format("uid {}", session.owner.uid)
                    : fmt::format("the {} {} of uid {}", to_string(session.hold), session.held_for, session.owner.uid),
                why);
  };
  if (peer.uid != session.owner.uid) {
    if (peer.uid == 0) return {};
    return refuse(fmt::format("uid {} asks", peer.uid));
  }
  const auto actual = what_holds(session.hold, peer);
  if (!actual) return refuse(to_string(actual.error()));
  if (*actual != session.held_for) return refuse(fmt::format("{} asks", *actual));
  return {};
}

Result<Next> Server::hold(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  if (handle.role == Role::Successor)
    return fail(EBUSY, "hold session '{}': the handover is not complete", handle.session.name);
  auto arg = LUO_TRY(wire::parse_arg<wire::HoldArg>(request.payload));
  const auto hold = static_cast<Hold>(arg.hold);
  const std::string held_for = LUO_TRY(what_holds(hold, request.peer));
  LUO_TRY(engine_->set_hold(change, handle.id, hold, held_for));
  arg.size = sizeof arg;
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::drop(Request& request, Reply& reply, Change& change) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::NameArg>(request.payload));
  const std::string_view name = wire::text_in(arg.name);
  auto id = engine_->find_outgoing(name);
  if (!id) id = engine_->find_incoming(name);
  if (!id) return fail(ENOENT, "drop session '{}': there is none (see luoctl list)", name);
  const SessionView session = *engine_->find(*id);
  if (request.peer.uid != session.owner.uid) LUO_TRY(may_administer(request));
  if (const UpdateRec* update = state_->running_update_of(*id))
    return fail(EBUSY, "drop session '{}': update {} of it is {}", name, update->id,
                to_string(static_cast<Phase>(update->phase)));
  LUO_TRY(engine_->drop(change, *id));
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::set_option(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  if (handle.role == Role::Successor)
    return fail(EBUSY, "set an option of session '{}': the handover is not complete", handle.session.name);
  const auto arg = LUO_TRY(wire::parse_arg<wire::OptionArg>(request.payload));
  const std::string_view key = wire::text_in(arg.key), value = wire::text_in(arg.value);
  const bool allow = value == "allow";
  const std::uint16_t bit = key == "transient" ? kCarryTransient : key == "grow" ? kCarryGrow : 0;
  if (bit == 0 || (!allow && value != "refuse"))
    return fail(EINVAL, "set option '{}' of session '{}' to '{}': there are transient and grow, each refuse or allow",
                printable_name(key), printable_name(handle.session.name), printable_name(value));
  LUO_TRY(engine_->set_carry(change, handle.id, allow ? bit : std::uint16_t{0}, allow ? std::uint16_t{0} : bit));
  reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
  return Next::Answer;
}

Result<Next> Server::set_event(Request& request, Reply& reply, Change& change) {
  const Handle handle = LUO_TRY(handle_of(request));
  if (handle.role == Role::Successor)
    return fail(EBUSY, "change session '{}': the handover is not complete", handle.session.name);
  auto arg = LUO_TRY(wire::parse_arg<wire::EventArg>(request.payload));
  const auto event = static_cast<wire::OwnEvent>(arg.event);
  arg.size = sizeof arg;
  if (event != wire::OwnEvent::Finish) {
    bool updating = state_->running_update_of(handle.id) != nullptr;
    state_->for_each_update([&](const UpdateRec& update) {
      updating = updating || (!update.over() && wire::takes_everything(update.kind));
    });
    if (updating) return fail(EBUSY, "change session '{}': an update is under way", handle.session.name);
  }
  switch (event) {
    case wire::OwnEvent::Prepare: LUO_TRY(engine_->owner_prepare(change, handle.id)); break;
    case wire::OwnEvent::Freeze:
      if (auto frozen = engine_->owner_freeze(change, handle.id); !frozen)
        return std::unexpected(std::move(frozen).error().error);
      break;
    case wire::OwnEvent::Cancel: LUO_TRY(engine_->owner_cancel(change, handle.id)); break;
    case wire::OwnEvent::Finish: LUO_TRY(engine_->finish(change, handle.id)); break;
    default: return fail(EINVAL, "event {} is not known", arg.event);
  }
  reply.put(arg);
  return Next::Answer;
}

Result<Next> Server::get_state(Request& request, Reply& reply, Change&) {
  const Handle handle = LUO_TRY(handle_of(request));
  auto arg = LUO_TRY(wire::parse_arg<wire::StateArg>(request.payload));
  const auto state = [&] {
    switch (handle.session.state) {
      case SessionState::Outgoing:
      case SessionState::Finished: return wire::OwnState::Normal;
      case SessionState::Preparing: return wire::OwnState::Prepared;
      case SessionState::Frozen: return wire::OwnState::Frozen;
      case SessionState::Incoming:
      case SessionState::Retrieved: return wire::OwnState::Updated;
    }
    return wire::OwnState::Undefined;
  };
  arg.size = sizeof arg;
  arg.state = static_cast<std::uint32_t>(state());
  reply.put(arg);
  return Next::Answer;
}

}  // namespace luo::daemon
