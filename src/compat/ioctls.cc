#include "compat/ioctls.h"

#include <fcntl.h>
#include <linux/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <vector>

#include "sys/process.h"

namespace luo::compat {
namespace {

using client::Answer;
using wire::Command;

constexpr int kContinue = -1;  // not ours: the kernel answers
constexpr std::size_t kMostHandles = 1 << 16;

constexpr Command kDeviceCommands[] = {Command::CreateSession, Command::RetrieveSession};
constexpr Command kSessionCommands[] = {Command::PreserveFd, Command::RetrieveFd, Command::Finish, Command::GetName};

std::uint32_t command_of(const Call& call) noexcept { return static_cast<std::uint32_t>(call.argument(1)); }
std::uint64_t address_of(const Call& call) noexcept { return call.argument(2); }

template <class T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span{&value, 1});
}

/// The steps that come before everything else: the number, the size's place, the command bit by bit. For a command that
/// is right in every bit whoever reads the argument finds whether the size can be read.
Result<> check_command(const Call& call, std::span<const Command> table) {
  const std::uint32_t command = command_of(call);
  const auto same_number = [command](Command one) {
    return _IOC_NR(command) == _IOC_NR(static_cast<std::uint32_t>(one));
  };
  if (std::ranges::none_of(table, same_number)) return fail(EINVAL, "no such number here");
  if (std::ranges::any_of(table, [command](Command one) { return command == static_cast<std::uint32_t>(one); }))
    return {};
  std::uint32_t size = 0;
  if (!call.read(address_of(call), bytes_of(size))) return fail(EFAULT, "size");
  return fail(ENOTTY, "other bits");
}

/// What lies beyond the struct that we know has to be zero. As long as the target says, there is no limit.
Result<> check_tail(const Call& call, std::uint64_t known, std::uint32_t size) {
  std::array<std::byte, 4096> piece;
  for (std::uint64_t at = known; at < size;) {
    const std::uint64_t address = address_of(call) + at;
    const std::size_t n = std::min<std::uint64_t>({piece.size() - address % piece.size(), size - at});
    const auto bytes = std::span{piece}.first(n);
    if (!call.read(address, bytes)) return fail(EFAULT, "tail");
    if (std::ranges::any_of(bytes, [](std::byte b) { return b != std::byte{0}; })) return fail(E2BIG, "tail");
    at += n;
  }
  return {};
}

template <class Arg>
bool write_back(const Call& call, const Arg& arg) {
  return call.write(address_of(call), std::as_bytes(std::span{&arg, 1}));
}

/// The kernel takes a number before it looks at anything else, so a full table is what the target hears of first.
Error error_with_number(const Call& call, Error error) {
  if (call.table_is_full()) return Error{EMFILE, "no free descriptor number"};
  return error;
}

/// A copy of the target's descriptor as a preserve gets it; if it cannot be had or sent, the errno to report.
struct Offered {
  Fd fd;
  int error = 0;
};
Result<Offered> fetch(const Call& call, int number, Caller& last) {
  auto copy = number < 0 ? Result<Fd>{fail(EBADF, "a negative number")} : call.descriptor(number, last);
  if (!copy && copy.error().code == EBADF) return Offered{{}, EBADF};
  Fd fd = LUO_TRY(std::move(copy));
  const int flags = ::fcntl(fd.raw(), F_GETFL);
  if (flags < 0 || (flags & O_PATH) != 0) return Offered{{}, EBADF};
  // No message carries one, and no handler knows it.
  if (const auto link = read_link(fd); link && link->starts_with("anon_inode:[io_uring")) return Offered{{}, ENOENT};
  return Offered{std::move(fd), 0};
}

}  // namespace

Result<> Ioctls::carry_out(const Call& call) {
  const Result<int> done = [&]() -> Result<int> {
    Fd fd = LUO_TRY(call.descriptor(static_cast<int>(call.argument(0)), caller_));
    struct stat info;
    const int flags = ::fcntl(fd.raw(), F_GETFL);
    if (flags < 0 || (flags & O_PATH) != 0 || ::fstat(fd.raw(), &info) != 0) return kContinue;
    if (device_.is(info)) {
      fd.close();
      return on_device(call);
    }
    if (S_ISFIFO(info.st_mode)) return on_session(call, std::move(fd), info.st_ino);
    return kContinue;
  }();
  if (done && *done == kContinue) call.go_on();
  else if (done) call.answer(0);
  else if (done.error().code == ECONNRESET || done.error().code == EPROTO) call.answer(EIO);
  else if (done.error().code == EPERM) call.go_on();  // not dumpable: nothing of it can be had
  else call.answer(done.error().code);
  if (!done && (done.error().code == ECONNRESET || done.error().code == EPROTO)) return std::unexpected(done.error());
  return {};
}

Result<int> Ioctls::on_device(const Call& call) {
  LUO_TRY(check_command(call, kDeviceCommands));
  std::uint32_t size = 0;
  if (!call.read(address_of(call), bytes_of(size))) return fail(EFAULT, "size");
  if (size < sizeof(wire::NameArg)) return fail(EINVAL, "size");
  LUO_TRY(check_tail(call, sizeof(wire::NameArg), size));
  return hand_out(call);
}

Result<int> Ioctls::hand_out(const Call& call) {
  wire::NameArg arg{};
  if (!call.read(address_of(call), bytes_of(arg))) return fail(EFAULT, "argument");
  const std::uint32_t size_given = arg.size;
  arg.size = sizeof arg;
  request_.start(command_of(call), 0, 0).add(arg);
  arg.size = size_given;
  auto asked = ask();
  if (!asked) return std::unexpected(error_with_number(call, std::move(asked).error()));
  Answer answer = *std::move(asked);
  if (answer.fds_missing || answer.fds.size() != 1) return fail(EMFILE, "the supervisor has no free number");
  const Fd session = std::move(answer.fds[0]);
  // Until it is accepted, luod takes it back when its last descriptor closes, and finishes nothing.
  if (!write_back(call, arg)) return std::unexpected(error_with_number(call, Error{EFAULT, "answer"}));
  arg.fd = LUO_TRY(call.give(session, true));
  if (!write_back(call, arg)) return fail(EFAULT, "answer");
  request_.start(Command::Accept, 0, answer.header.session).arg(wire::PlainArg{});
  LUO_TRY(ask());
  struct stat info;
  if (::fstat(session.raw(), &info) == 0) {
    if (handles_.size() >= kMostHandles) handles_.clear();
    handles_[info.st_ino] = answer.header.session;
  }
  return 0;
}

Result<int> Ioctls::on_session(const Call& call, Fd session, std::uint64_t inode) {
  auto known = handle_of(session, inode);
  if (!known && known.error().code == ENOTTY) return kContinue;
  LUO_TRY(std::move(known));
  LUO_TRY(check_command(call, kSessionCommands));
  switch (static_cast<Command>(command_of(call))) {
    case Command::PreserveFd: return preserve(call, session, inode);
    case Command::RetrieveFd: return retrieve(call, session, inode);
    case Command::Finish: return finish(call, session, inode);
    default: return get_name(call, session, inode);
  }
}

/// Direction comes before size and arguments: asks luod for what cannot succeed, and gives its answer if it is about
/// direction.
Result<> Ioctls::wrong_direction(const Call& call, std::uint64_t known, FdRef session, std::uint64_t inode) {
  if (static_cast<Command>(command_of(call)) == Command::GetName) return {};
  std::vector<std::byte> impossible(known + 8, std::byte{1});
  const auto size = static_cast<std::uint32_t>(impossible.size());
  std::memcpy(impossible.data(), &size, sizeof size);
  request_.start(command_of(call), 0, 0).add_bytes(impossible);
  if (static_cast<Command>(command_of(call)) == Command::PreserveFd)
    request_.start(command_of(call), 0, 0, EBADF).add_bytes(impossible);
  auto answer = about(session, inode);
  if (!answer && answer.error().code != E2BIG) return std::unexpected(std::move(answer).error());
  return {};
}

template <class Arg>
Result<Arg> Ioctls::read_arg(const Call& call, FdRef session, std::uint64_t inode) {
  Arg arg{};
  // At once, nearly always: so that what is checked is what is used, and because a read costs more than a microsecond.
  const bool whole = call.read(address_of(call), bytes_of(arg));
  std::uint32_t size = arg.size;
  if (!whole && !call.read(address_of(call), bytes_of(size))) return fail(EFAULT, "size");
  if (size < sizeof arg) return fail(EINVAL, "size");  // as a wrong direction would be
  Result<> good = check_tail(call, sizeof arg, size);
  if (good && !whole) good = fail(EFAULT, "argument");
  if (!good) {
    LUO_TRY(wrong_direction(call, sizeof arg, session, inode));
    return std::unexpected(good.error());
  }
  arg.size = size;
  return arg;
}

Result<int> Ioctls::preserve(const Call& call, FdRef session, std::uint64_t inode) {
  const auto given = LUO_TRY(read_arg<wire::TokenArg>(call, session, inode));
  const Offered offered = LUO_TRY(fetch(call, given.fd, caller_));
  request_.start(Command::PreserveFd, 0, 0, offered.error)
      .arg(wire::TokenArg{.size = 0, .fd = 0, .token = given.token});
  if (offered.error == 0) request_.add_fd(offered.fd.raw());
  LUO_TRY(about(session, inode));
  if (write_back(call, given)) return 0;
  // The kernel leaves it preserved, which its caller does not expect.
  request_.start(Command::UnpreserveFd, 0, 0).arg(wire::TokenArg{.size = 0, .fd = 0, .token = given.token});
  LUO_TRY(about(session, inode));
  return fail(EFAULT, "answer");
}

Result<int> Ioctls::retrieve(const Call& call, FdRef session, std::uint64_t inode) {
  auto given = LUO_TRY(read_arg<wire::TokenArg>(call, session, inode));
  request_.start(Command::RetrieveFd, 0, 0).arg(wire::TokenArg{.size = 0, .fd = 0, .token = given.token});
  auto asked = about(session, inode);
  if (!asked) {
    if (asked.error().code == EINVAL) return std::unexpected(std::move(asked).error());  // direction comes first
    return std::unexpected(error_with_number(call, std::move(asked).error()));
  }
  Answer answer = *std::move(asked);
  if (answer.fds_missing || answer.fds.size() != 1) return fail(EMFILE, "the supervisor has no free number");
  if (!write_back(call, given)) return std::unexpected(error_with_number(call, Error{EFAULT, "answer"}));
  given.fd = LUO_TRY(call.give(answer.fds[0], true));
  if (!write_back(call, given)) return fail(EFAULT, "answer");
  return 0;
}

Result<int> Ioctls::finish(const Call& call, FdRef session, std::uint64_t inode) {
  const auto given = LUO_TRY(read_arg<wire::PlainArg>(call, session, inode));
  if (given.reserved == 0 && !write_back(call, given)) {  // what is finished does not come back
    LUO_TRY(wrong_direction(call, sizeof given, session, inode));
    return fail(EFAULT, "answer");
  }
  request_.start(Command::Finish, 0, 0).arg(wire::PlainArg{.size = 0, .reserved = given.reserved});
  LUO_TRY(about(session, inode));
  return 0;
}

Result<int> Ioctls::get_name(const Call& call, FdRef session, std::uint64_t inode) {
  auto given = LUO_TRY(read_arg<wire::GetNameArg>(call, session, inode));
  request_.start(Command::GetName, 0, 0).arg(wire::GetNameArg{.size = 0, .reserved = given.reserved, .name = {}});
  const Answer answer = LUO_TRY(about(session, inode));
  const auto named = wire::parse_arg<wire::GetNameArg>(answer.payload);
  if (!named) return fail(EPROTO, "luod sent a name that is none");
  std::memcpy(given.name, named->name, sizeof given.name);
  if (!write_back(call, given)) return fail(EFAULT, "answer");
  return 0;
}

Result<Answer> Ioctls::ask() {
  Answer answer = LUO_TRY(luod_.call(request_));
  return client::verdict(std::move(answer));
}

/// Sends request_ about that session. luod may have forgotten the handle, or the inode be another pipe's by now.
Result<Answer> Ioctls::about(FdRef session, std::uint64_t inode) {
  const std::uint64_t handle = LUO_TRY(handle_of(session, inode));
  Answer answer = LUO_TRY(luod_.call(request_.set_session(handle)));
  if (answer.header.error == EBADF) {
    handles_.erase(inode);
    wire::Builder again = request_;
    const std::uint64_t anew = LUO_TRY(handle_of(session, inode));
    if (anew != handle) answer = LUO_TRY(luod_.call(again.set_session(anew)));
  }
  return client::verdict(std::move(answer));
}

Result<std::uint64_t> Ioctls::handle_of(FdRef session, std::uint64_t inode) {
  if (const auto known = handles_.find(inode); known != handles_.end()) return known->second;
  wire::Builder request;
  request.start(Command::Present, 0, 0).arg(wire::PlainArg{}).add_fd(session.raw);
  Answer answer = LUO_TRY(luod_.call(request));
  if (answer.header.error == EBADF) return fail(ENOTTY, "no session of this luod");
  const Answer good = LUO_TRY(client::verdict(std::move(answer)));
  if (handles_.size() >= kMostHandles) handles_.clear();
  return handles_[inode] = good.header.session;
}

}  // namespace luo::compat
