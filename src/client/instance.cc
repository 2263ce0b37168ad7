#include "client/instance.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

using luo::Error;
using luo::Fd;
using luo::Result;
using luo::client::Answer;
using luo::client::SessionRef;
namespace wire = luo::wire;

luo_connection::luo_connection(Fd kernel_device)
    : owner{getpid()}, successor{false}, device{std::move(kernel_device)} {}

luo_connection::luo_connection(luo::client::Connection to_luod)
    : owner{getpid()}, successor{to_luod.hello().ticket != 0}, connection{std::move(to_luod)} {}

Result<Answer> luo_connection::ask(wire::Builder& message) {
  Answer answer = LUO_TRY(connection->call(message));
  return luo::client::verdict(std::move(answer));
}

Result<Answer> luo_connection::ask_about(int session, wire::Builder& message) {
  Answer answer = LUO_TRY(exchange_about(session, message));
  return luo::client::verdict(std::move(answer));
}

Result<> luo_connection::expect(wire::Capability capability) const {
  if ((connection->capabilities() & capability) != 0) return {};
  return luo::fail(EOPNOTSUPP, "luod was too old for that when this connection began; update it, and connect anew");
}

Result<SessionRef> luo_connection::look_at(int session) const {
  struct stat info;
  if (fstat(session, &info) != 0) return luo::sys_fail("fstat(session fd {})", session);
  if (is_kernel() || !S_ISFIFO(info.st_mode)) return SessionRef{.in_kernel = true};
  return SessionRef{.in_kernel = false, .inode = info.st_ino, .device = info.st_dev};
}

Result<std::uint64_t> luo_connection::present(int session, const SessionRef& ref) {
  sessions_.erase(session);
  const int flags = fcntl(session, F_GETFL);
  if (flags < 0 || (flags & O_PATH) != 0) return luo::fail(EBADF, "session fd {} is O_PATH", session);
  wire::Builder message;
  message.start(wire::Command::Present, 0, 0).arg(wire::PlainArg{}).add_fd(session);
  Answer answer = LUO_TRY(connection->call(message));
  // luod says "no session of mine" with EBADF; an ioctl on such a descriptor says ENOTTY.
  if (answer.header.error == EBADF) return luo::fail(ENOTTY, "luod does not know fd {} as a session", session);
  const Answer good = LUO_TRY(luo::client::verdict(std::move(answer)));
  const std::uint64_t handle = good.header.session;
  sessions_[session] = {ref.inode, ref.device, handle, {}};
  return handle;
}

Result<luo_connection::Handle> luo_connection::handle_of(int session) {
  const SessionRef ref = LUO_TRY(look_at(session));
  if (ref.in_kernel) return luo::fail(ENOTTY, "fd {} is not a pipe", session);
  const auto known = sessions_.find(session);
  if (known != sessions_.end() && known->second.inode == ref.inode && known->second.device == ref.device)
    return Handle{known->second.handle, true};
  return Handle{LUO_TRY(present(session, ref)), false};
}

Result<Answer> luo_connection::exchange_about(int session, wire::Builder& message) {
  const Handle handle = LUO_TRY(handle_of(session));
  auto answer = connection->call(message.set_session(handle.number));
  if (!answer || answer->header.error != EBADF || !handle.from_memory) return answer;
  // Either luod does not know the handle (any more), or it reports what we said of an argument; only if
  // the handle changes was it the former.
  const std::string name = sessions_[session].name;
  const SessionRef ref = LUO_TRY(look_at(session));
  const std::uint64_t anew = LUO_TRY(present(session, ref));
  sessions_[session].name = name;
  if (anew == handle.number) return answer;
  return connection->call(message.set_session(anew));
}

Result<luo_connection::HandedOut> luo_connection::session_in(Answer answer, std::string_view name) const {
  // Without ACCEPT luod takes the session back as soon as the descriptor that got lost is gone.
  if (answer.fds_missing) return luo::fail(EMFILE, "no free descriptor number for the session");
  struct stat info;
  if (answer.fds.size() != 1 || fstat(answer.fds[0].raw(), &info) != 0 || !S_ISFIFO(info.st_mode))
    return luo::fail(EPROTO, "luod sent {} descriptors, none of them a session", answer.fds.size());
  return HandedOut{std::move(answer.fds[0]), {info.st_ino, info.st_dev, answer.header.session, std::string{name}}};
}

Fd luo_connection::remember(HandedOut session) {
  sessions_[session.fd.raw()] = std::move(session.known);
  return std::move(session.fd);
}

Result<Fd> luo_connection::receive_session(Answer answer, std::string_view name) {
  HandedOut session = LUO_TRY(session_in(std::move(answer), name));
  wire::Builder message;
  message.start(wire::Command::Accept, 0, session.known.handle).arg(wire::PlainArg{});
  LUO_TRY_DURING("accept the session", ask(message));
  return remember(std::move(session));
}

std::string luo_connection::describe(int session) const {
  const auto known = sessions_.find(session);
  struct stat info;
  if (known != sessions_.end() && !known->second.name.empty() && fstat(session, &info) == 0 &&
      known->second.inode == info.st_ino && known->second.device == info.st_dev)
    return fmt::format("session '{}'", known->second.name);
  return fmt::format("session fd {}", session);
}
