// luo.h: the same for many sessions at once. Requests go out without waiting for each other's answers, so that a
// thousand sessions take a few turns of luod's and ours, not thousands.
#include <algorithm>
#include <vector>

#include "client/batches.h"
#include "client/instance.h"

using namespace luo;
using namespace luo::client;

namespace {

constexpr std::size_t kSessionsAtOnce = 32;  ///< handed out, and then accepted: what a crash of ours gives back

/// A name is cut as luo_session_create() cuts it: one without a NUL is refused by luod, as by the kernel.
wire::NameArg name_arg(const char* name) {
  wire::NameArg arg{};
  if (name != nullptr) std::string_view{name}.copy(arg.name, sizeof arg.name);
  return arg;
}

/// CREATE_SESSION or RETRIEVE_SESSION of each, then ACCEPT of those that came.
Result<> obtain_some(luo_connection& c, wire::Command command, std::span<const char* const> names,
                     std::span<int> sessions) {
  struct Pending {
    std::size_t at;
    luo_connection::HandedOut session;
  };
  std::vector<Pending> came;
  came.reserve(names.size());
  LUO_TRY(c.connection->call_each(
      names.size(),
      [&](std::size_t i) -> wire::Builder& { return c.request.start(command, 0, 0).arg(name_arg(names[i])); },
      [&](std::size_t i, Result<Answer> sent) {
        auto answer = sent ? verdict(*std::move(sent)) : std::move(sent);
        auto session = answer ? c.session_in(*std::move(answer), names[i]) : std::unexpected(answer.error());
        if (session) came.push_back({i, *std::move(session)});
        else sessions[i] = -session.error().code;
      }));
  return c.connection->call_each(
      came.size(),
      [&](std::size_t i) -> wire::Builder& {
        return c.request.start(wire::Command::Accept, 0, came[i].session.known.handle).arg(wire::PlainArg{});
      },
      [&](std::size_t i, Result<Answer> sent) {
        auto answer = sent ? verdict(*std::move(sent)) : std::move(sent);
        sessions[came[i].at] = answer ? c.remember(std::move(came[i].session)).release() : -answer.error().code;
      });
}

/// What `obtain` fills `fds` with is given back if it fails, also for want of memory.
template <class Obtain>
Result<> or_nothing(std::span<int> fds, const Obtain& obtain) {
  Result<> done{};
  try {
    done = obtain();
  } catch (const std::bad_alloc&) {
    done = std::unexpected(Error{ENOMEM, ""});
  }
  if (!done) give_back(fds, done.error().code);
  return done;
}

int obtain_each(luo_connection* c, Operation operation, const char* verb, wire::Command command,
                const char* const* names, int* sessions, size_t count) noexcept {
  if (sessions != nullptr) std::fill_n(sessions, count, -ECANCELED);
  return api_call(
      c, operation, [&] { return fmt::format("{} {} sessions", verb, count); },
      [&]() -> Result<int> {
        if (count != 0 && (names == nullptr || sessions == nullptr)) return fail(EFAULT, "names or sessions is NULL");
        if (count > INT32_MAX) return fail(EINVAL, "{} sessions at once", count);
        if (c->is_kernel()) return only_luod();
        const auto all = [&]() -> Result<> {
          for (std::size_t from = 0; from < count; from += kSessionsAtOnce) {
            const std::size_t n = std::min(count - from, kSessionsAtOnce);
            LUO_TRY(obtain_some(*c, command, {names + from, n}, {sessions + from, n}));
          }
          return {};
        };
        LUO_TRY(or_nothing({sessions, count}, all));
        return static_cast<int>(std::count_if(sessions, sessions + count, [](int fd) { return fd >= 0; }));
      });
}

/// Files of one session that stand beside each other, at most what one message carries.
struct Group {
  std::size_t first, count;
  std::uint64_t handle;
};

bool is_over(const Error& error) noexcept { return error.code == ECONNRESET || error.code == EPROTO; }

/// The groups of `sessions`, one element for each file. refuse(first, count, errno): luod does not know the session.
template <class Refuse>
Result<std::vector<Group>> groups_of(luo_connection& c, std::span<const int> sessions, const Refuse& refuse) {
  std::vector<Group> groups;
  for (std::size_t first = 0, end = 0; first < sessions.size(); first = end) {
    while (end < sessions.size() && sessions[end] == sessions[first] && end - first < wire::kMaxFds) ++end;
    const auto handle = c.handle_of(sessions[first]);
    if (handle) groups.push_back({first, end - first, handle->number});
    else if (is_over(handle.error())) return std::unexpected(handle.error());
    else refuse(first, end - first, handle.error().code);
  }
  return groups;
}

/// build(group) starts the request, take(group, answer) reads the answer. alone(group) does all of it again by itself:
/// luod does not know the handle any more, or a descriptor cannot be sent.
template <class Build, class Take, class Alone>
Result<> ask_each(luo_connection& c, std::span<const Group> groups, const Build& build, const Take& take,
                  const Alone& alone) {
  std::vector<std::size_t> again;
  LUO_TRY(c.connection->call_each(
      groups.size(),
      [&](std::size_t i) -> wire::Builder& {
        build(groups[i]);
        return c.request.set_session(groups[i].handle);
      },
      [&](std::size_t i, Result<Answer> sent) {
        if (sent && sent->header.error != EBADF) take(groups[i], verdict(*std::move(sent)));
        else again.push_back(i);
      }));
  for (const std::size_t i : again) LUO_TRY(alone(groups[i]));
  return {};
}

Result<> check(std::size_t count, bool all_there) {
  if (count != 0 && !all_there) return fail(EFAULT, "an array is NULL");
  if (count > INT32_MAX) return fail(EINVAL, "{} files at once", count);
  return {};
}

}  // namespace

int luo_session_create_each(struct luo_connection* c, const char* const* names, int* sessions, size_t count) {
  return obtain_each(c, Operation::Create, "create", wire::Command::CreateSession, names, sessions, count);
}

int luo_session_retrieve_each(struct luo_connection* c, const char* const* names, int* sessions, size_t count) {
  return obtain_each(c, Operation::Retrieve, "retrieve", wire::Command::RetrieveSession, names, sessions, count);
}

int luo_preserve_each(struct luo_connection* c, const int* sessions, const int* fds, const uint64_t* tokens,
                      int* errors, size_t count) {
  if (errors != nullptr) std::fill_n(errors, count, ECANCELED);
  return api_call(
      c, Operation::Preserve, [&] { return fmt::format("preserve {} files", count); },
      [&]() -> Result<int> {
        LUO_TRY(check(count, sessions != nullptr && fds != nullptr && tokens != nullptr && errors != nullptr));
        if (c->is_kernel()) return only_luod();
        const auto fds_of = [&](const Group& g) { return std::span{fds + g.first, g.count}; };
        const auto tokens_of = [&](const Group& g) { return std::span{tokens + g.first, g.count}; };
        const auto errors_of = [&](const Group& g) { return std::span{errors + g.first, g.count}; };
        const auto settle = [&](const Group& g, const Result<>& done) {
          if (!done) std::ranges::fill(errors_of(g), done.error().code);
        };
        const auto groups = LUO_TRY(groups_of(*c, {sessions, count}, [&](std::size_t first, std::size_t n, int code) {
          std::fill_n(errors + first, n, code);
        }));
        LUO_TRY(ask_each(
            *c, groups,
            [&](const Group& g) {
              std::ranges::fill(errors_of(g), 0);
              put_preserve(c->request, fds_of(g), tokens_of(g), errors_of(g));
              std::ranges::fill(errors_of(g), ECANCELED);  // until its answer is here
            },
            [&](const Group& g, const Result<Answer>& answer) {
              settle(g, answer ? take_preserved(*answer, errors_of(g)) : std::unexpected(answer.error()));
            },
            [&](const Group& g) -> Result<> {
              const auto done = preserve_batch(*c, sessions[g.first], fds_of(g), tokens_of(g), errors_of(g));
              settle(g, done);
              return done || !is_over(done.error()) ? Result<>{} : done;
            }));
        return static_cast<int>(std::count(errors, errors + count, 0));
      });
}

int luo_retrieve_each(struct luo_connection* c, const int* sessions, const uint64_t* tokens, int* fds, size_t count) {
  if (fds != nullptr) std::fill_n(fds, count, -ECANCELED);
  return api_call(
      c, Operation::RetrieveFd, [&] { return fmt::format("retrieve {} files", count); },
      [&]() -> Result<int> {
        LUO_TRY(check(count, sessions != nullptr && tokens != nullptr && fds != nullptr));
        if (c->is_kernel()) return only_luod();
        const auto tokens_of = [&](const Group& g) { return std::span{tokens + g.first, g.count}; };
        const auto fds_of = [&](const Group& g) { return std::span{fds + g.first, g.count}; };
        const auto settle = [&](const Group& g, const Result<>& done) {
          if (!done) std::ranges::fill(fds_of(g), -done.error().code);
        };
        const auto all = [&]() -> Result<> {
          const auto groups = LUO_TRY(groups_of(*c, {sessions, count}, [&](std::size_t first, std::size_t n, int code) {
            std::fill_n(fds + first, n, -code);
          }));
          return ask_each(
              *c, groups, [&](const Group& g) { put_retrieve(c->request, tokens_of(g)); },
              [&](const Group& g, Result<Answer> answer) {
                settle(g, answer ? take_retrieved(*std::move(answer), fds_of(g)) : std::unexpected(answer.error()));
              },
              [&](const Group& g) -> Result<> {
                const auto done = retrieve_batch(*c, sessions[g.first], tokens_of(g), fds_of(g));
                settle(g, done);
                return done || !is_over(done.error()) ? Result<>{} : done;
              });
        };
        LUO_TRY(or_nothing({fds, count}, all));
        return static_cast<int>(std::count_if(fds, fds + count, [](int fd) { return fd >= 0; }));
      });
}
