// luo.h: connections and sessions.
#include <errno.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <memory>

#include "client/instance.h"
#include "sys/luo_device.h"
#include "sys/memfd.h"
#include "wire/paths.h"

using namespace luo;
using namespace luo::client;

namespace {

/// A ticket introduces one connection. Its process's children inherit the variable, but it means the parent.
std::atomic<bool> ticket_used{false};

std::uint64_t take_ticket() {
  const char* text = secure_getenv("LUO_TICKET");
  if (text == nullptr || ticket_used.exchange(true)) return 0;
  std::uint64_t ticket = 0;
  const char* end = text + strlen(text);
  const auto [stopped, error] = std::from_chars(text, end, ticket, 16);
  return error == std::errc{} && stopped == end ? ticket : 0;
}

Result<std::unique_ptr<luo_connection>> connect_to(const std::string& where) {
  struct stat info;
  if (stat(where.c_str(), &info) == 0 && S_ISCHR(info.st_mode))
    return std::make_unique<luo_connection>(LUO_TRY(kernel::open_device(where.c_str())));
  const Introduction who{program_invocation_short_name, take_ticket()};
  auto connection = Connection::open(where, who);
  if (!connection) {
    if (who.ticket != 0) ticket_used = false;
    return std::unexpected(std::move(connection).error());
  }
  return std::make_unique<luo_connection>(std::move(*connection));
}

/// The kernel takes a number for the new descriptor before it looks at the name, so a full table is
/// reported first. (Another thread may still take the number: receive_session() copes.)
Result<> expect_free_number() {
  const Fd probe = Fd::adopt(dup(STDIN_FILENO));
  if (!probe.valid() && errno == EMFILE) return std::unexpected(Error{EMFILE, ""});
  if (probe.valid()) return {};
  const Fd other = Fd::adopt(epoll_create1(EPOLL_CLOEXEC));  // 0 is closed: any new descriptor will do
  if (!other.valid() && errno == EMFILE) return std::unexpected(Error{EMFILE, ""});
  return {};
}

/// Name as the uAPI has it. 64 bytes or more keep no NUL, so that luod answers as the kernel does.
template <class Arg>
void put_name(Arg& arg, std::string_view name) {
  name.copy(arg.name, sizeof arg.name);
}

int obtain(luo_connection* c, Operation operation, const char* verb, const char* name, wire::Command command,
           Result<Fd> (*in_kernel)(FdRef, std::string_view)) noexcept {
  const std::string_view text = name == nullptr ? std::string_view{} : name;
  return api_call(
      c, operation, [&] { return fmt::format("{} session '{}'", verb, text); },
      [&]() -> Result<int> {
        if (c->is_kernel()) return LUO_TRY(in_kernel(c->device, text)).release();
        LUO_TRY(expect_free_number());
        wire::NameArg arg{};
        put_name(arg, text);
        c->request.start(command, 0, 0).arg(arg);
        Answer answer = LUO_TRY(c->ask(c->request));
        return LUO_TRY(c->receive_session(std::move(answer), text)).release();
      });
}

/// A request about a session with a PlainArg and an answer that only says whether it worked.
int simple(luo_connection* c, Operation operation, const char* verb, int session, wire::Command command,
           Result<> (*in_kernel)(FdRef)) noexcept {
  return api_call(
      c, operation, [&] { return fmt::format("{} {}", verb, c->describe(session)); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) {
          if (in_kernel == nullptr) return only_luod();
          LUO_TRY(in_kernel(FdRef::borrow(session)));
          return 0;
        }
        c->request.start(command, 0, 0).arg(wire::PlainArg{});
        LUO_TRY(c->ask_about(session, c->request));
        return 0;
      });
}

}  // namespace

const char* luo_last_error(void) { return last_failure(); }

int luo_open(const char* where, struct luo_connection** out) {
  if (out == nullptr) return report(Operation::Open, "luo_open", Error{EINVAL, "no place for the result (NULL)"});
  *out = nullptr;
  try {
    std::string path;
    if (where != nullptr) {
      path = where;
    } else {
      auto found = wire::socket_path();
      if (!found) return report(Operation::Open, "find luod", found.error());
      path = *std::move(found);
    }
    auto made = connect_to(path);
    if (!made) return report(Operation::Open, fmt::format("connect to luod at '{}'", path), made.error());
    *out = made->release();
    return 0;
  } catch (const std::bad_alloc&) {
    return report(Operation::Open, "luo_open", Error{ENOMEM, ""});
  }
}

void luo_close(struct luo_connection* c) { delete c; }

int luo_is_successor(const struct luo_connection* c) { return c != nullptr && c->successor ? 1 : 0; }

int luo_session_create(struct luo_connection* c, const char* name) {
  return obtain(c, Operation::Create, "create", name, wire::Command::CreateSession, kernel::create_session);
}

int luo_session_retrieve(struct luo_connection* c, const char* name) {
  return obtain(c, Operation::Retrieve, "retrieve", name, wire::Command::RetrieveSession, kernel::retrieve_session);
}

int luo_session_retrieve_wait(struct luo_connection* c, const char* name, int timeout_ms) {
  const std::string_view text = name == nullptr ? std::string_view{} : name;
  return api_call(
      c, Operation::Retrieve, [&] { return fmt::format("wait for session '{}'", text); },
      [&]() -> Result<int> {
        if (c->is_kernel()) return only_luod();
        LUO_TRY(expect_free_number());
        wire::WaitArg arg{};
        arg.timeout_ms = timeout_ms < 0 ? UINT32_MAX : static_cast<std::uint32_t>(timeout_ms);
        put_name(arg, text);
        c->request.start(wire::Command::RetrieveWait, 0, 0).arg(arg);
        Answer answer = LUO_TRY(c->ask(c->request));
        return LUO_TRY(c->receive_session(std::move(answer), text)).release();
      });
}

int luo_session_get_name(struct luo_connection* c, int session, char* name) {
  return api_call(
      c, Operation::Name, [&] { return "name of " + c->describe(session); },
      [&]() -> Result<int> {
        if (name == nullptr) return fail(EFAULT, "no place for the name (NULL)");
        const std::span<char, LUO_NAME_LENGTH> out{name, LUO_NAME_LENGTH};
        if (LUO_TRY(c->look_at(session)).in_kernel) {
          LUO_TRY(kernel::get_name(FdRef::borrow(session), out));
          return 0;
        }
        c->request.start(wire::Command::GetName, 0, 0).arg(wire::GetNameArg{});
        const Answer answer = LUO_TRY(c->ask_about(session, c->request));
        const auto arg = wire::parse_arg<wire::GetNameArg>(answer.payload);
        if (!arg || wire::text_in(arg->name).size() == sizeof arg->name)
          return fail(EPROTO, "luod sent a name that is none");
        std::memcpy(out.data(), arg->name, out.size());
        return 0;
      });
}

int luo_session_finish(struct luo_connection* c, int session) {
  return simple(c, Operation::Finish, "finish", session, wire::Command::Finish, kernel::finish);
}

int luo_session_renew(struct luo_connection* c, int session) {
  return simple(c, Operation::Renew, "renew", session, wire::Command::Renew, nullptr);
}

int luo_session_hold(struct luo_connection* c, int session, enum luo_hold hold) {
  return api_call(
      c, Operation::Hold, [&] { return "hold " + c->describe(session); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        LUO_TRY(c->expect(wire::kCapHold));
        c->request.start(wire::Command::Hold, 0, 0)
            .arg(wire::HoldArg{.size = 0, .hold = static_cast<std::uint32_t>(hold)});
        LUO_TRY(c->ask_about(session, c->request));
        return 0;
      });
}

int luo_session_set_option(struct luo_connection* c, int session, const char* key, const char* value) {
  const std::string_view name = key == nullptr ? std::string_view{} : key;
  const std::string_view wanted = value == nullptr ? std::string_view{} : value;
  return api_call(
      c, Operation::Option, [&] { return fmt::format("set option '{}' of {}", name, c->describe(session)); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        LUO_TRY(c->expect(wire::kCapKernel));
        wire::OptionArg arg{};
        name.copy(arg.key, sizeof arg.key);  // a longer one is none that there is, cut or not
        wanted.copy(arg.value, sizeof arg.value);
        c->request.start(wire::Command::SetOption, 0, 0).arg(arg);
        LUO_TRY(c->ask_about(session, c->request));
        return 0;
      });
}

int luo_session_drop(struct luo_connection* c, const char* name) {
  const std::string_view text = name == nullptr ? std::string_view{} : name;
  return api_call(
      c, Operation::Drop, [&] { return fmt::format("drop session '{}'", text); },
      [&]() -> Result<int> {
        if (c->is_kernel()) return only_luod();
        LUO_TRY(c->expect(wire::kCapHold));
        wire::NameArg arg{};
        put_name(arg, text);
        c->request.start(wire::Command::Drop, 0, 0).arg(arg);
        LUO_TRY(c->ask(c->request));
        return 0;
      });
}

int luo_session_set_event(struct luo_connection* c, int session, enum luo_event event) {
  return api_call(
      c, Operation::Event,
      [&] { return fmt::format("event {} for {}", static_cast<int>(event), c->describe(session)); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        LUO_TRY(c->expect(wire::kCapEvents));
        c->request.start(wire::Command::SetEvent, 0, 0)
            .arg(wire::EventArg{.size = 0, .event = static_cast<std::uint32_t>(event)});
        LUO_TRY(c->ask_about(session, c->request));
        return 0;
      });
}

int luo_session_get_state(struct luo_connection* c, int session) {
  return api_call(
      c, Operation::State, [&] { return "state of " + c->describe(session); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        LUO_TRY(c->expect(wire::kCapEvents));
        c->request.start(wire::Command::GetState, 0, 0).arg(wire::StateArg{});
        const Answer answer = LUO_TRY(c->ask_about(session, c->request));
        const auto arg = wire::parse_arg<wire::StateArg>(answer.payload);
        if (!arg || arg->state > LUO_STATE_UPDATED) return fail(EPROTO, "luod sent a state that is none");
        return static_cast<int>(arg->state);
      });
}

int luo_session_tokens(struct luo_connection* c, int session, uint64_t* tokens, size_t room) {
  return api_call(
      c, Operation::Tokens, [&] { return "tokens of " + c->describe(session); },
      [&]() -> Result<int> {
        if (tokens == nullptr && room != 0) return fail(EFAULT, "no place for the tokens (NULL)");
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        c->request.start(wire::Command::ListTokens, 0, 0).arg(wire::PlainArg{});
        const Answer answer = LUO_TRY(c->ask_about(session, c->request));
        if (answer.fds_missing) return std::unexpected(Error{EMFILE, ""});
        const auto arg = wire::parse_arg<wire::ManyArg>(answer.payload);
        if (!arg || answer.fds.size() != 1) return fail(EPROTO, "luod sent no list of tokens");
        const std::uint64_t length = std::uint64_t{arg->count} * sizeof(wire::ManyEntry);
        const std::string list = LUO_TRY(read_all(answer.fds[0], Bytes{length}));
        if (list.size() != length || arg->count > INT32_MAX)
          return fail(EPROTO, "luod sent {} bytes for {} tokens", list.size(), arg->count);
        for (std::size_t i = 0; i < std::min<std::size_t>(room, arg->count); ++i) {
          wire::ManyEntry entry;
          std::memcpy(&entry, list.data() + i * sizeof entry, sizeof entry);
          tokens[i] = entry.token;
        }
        return static_cast<int>(arg->count);
      });
}
