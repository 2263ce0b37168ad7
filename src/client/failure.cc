#include "client/failure.h"

namespace luo::client {
namespace {

thread_local std::string sentence;

struct Hint {
  Operation operation;
  int code;
  std::string_view text;
};

constexpr Hint kHints[] = {
    {Operation::Open, ENOENT, "is luod running? start it, or set LUO_SOCKET to the path of its socket"},
    {Operation::Open, ECONNREFUSED, "the socket is there, but luod does not serve it: start luod"},
    {Operation::Open, EACCES, "this user may not use that luod"},
    {Operation::Open, EPROTO, "what listens there is not a luod that this library knows"},
    {Operation::Open, EBUSY, "another process has the device open"},
    {Operation::Create, EEXIST, "another process has an outgoing session of that name"},
    {Operation::Create, EINVAL, "a name has 1 to 63 bytes"},
    {Operation::Create, EMFILE, "no free descriptor number here (RLIMIT_NOFILE) or in luod"},
    {Operation::Retrieve, ENOENT, "the side before left no session of that name"},
    {Operation::Retrieve, EINVAL, "it is retrieved already"},
    {Operation::Retrieve, ETIMEDOUT, "no session of that name came in time"},
    {Operation::Finish, EINVAL, "only a retrieved session can be finished"},
    {Operation::Finish, EBUSY, "a file in it is still needed"},
    {Operation::Renew, EINVAL, "only a retrieved session can be renewed"},
    {Operation::Renew, EEXIST, "an outgoing session of that name exists: close or rename that one first"},
    {Operation::Option, EINVAL, "there are transient and grow, each refuse or allow"},
    {Operation::Drop, EBUSY, "somebody has it, or an update is under way"},
    {Operation::Event, EINVAL, "not the next step: prepare, then freeze; cancel takes either back"},
    {Operation::Preserve, ENOLINK, "preserve first what it depends on"},
    {Operation::Preserve, EINVAL, "files are preserved in outgoing sessions only (created, or renewed)"},
    {Operation::Preserve, EEXIST, "the token is in use in this session"},
    {Operation::Preserve, ENOENT, "no handler for this kind of file"},
    {Operation::Preserve, EBUSY, "the file is preserved already, or an update is under way"},
    {Operation::Preserve, EBADF, "the descriptor is not open, or O_PATH"},
    {Operation::Unpreserve, ENOENT, "no such token in this session"},
    {Operation::Unpreserve, EINVAL, "files are given up one by one in outgoing sessions only"},
    {Operation::RetrieveFd, ENOENT, "no such token in this session"},
    {Operation::RetrieveFd, EINVAL, "files come out of retrieved sessions only"},
    {Operation::RetrieveFd, EMFILE, "no free descriptor number here (RLIMIT_NOFILE)"},
    {Operation::TakeOver, EINVAL, "only a session retrieved by a successor can be taken over"},
    {Operation::TakeOver, ECANCELED, "the update was called off, the old owner goes on"},
    {Operation::TakeOver, ETIMEDOUT, "the old owner did not quiesce in time"},
    {Operation::Tcp, EOPNOTSUPP, "only TCP sockets count what goes through them"},
    {Operation::Tcp, EBADF, "that is not an open socket"},
};

}  // namespace

std::string_view hint(Operation operation, int code) noexcept {
  for (const Hint& entry : kHints)
    if (entry.operation == operation && entry.code == code) return entry.text;
  return {};
}

namespace {

/// Hints that hold whatever was asked.
std::string_view common_hint(int code) noexcept {
  switch (code) {
    case ECONNRESET: return "luod is gone: connect again when it serves";
    case EOWNERDEAD: return "this connection belongs to the parent process: after fork, luo_open() one of your own";
    case ENOTTY: return "that descriptor is not a session";
    case ENOTSUP: return "luod can do this, the kernel's own LUO cannot";
    default: return {};
  }
}

}  // namespace

int report(Operation operation, std::string_view goal, const Error& error) noexcept {
  try {
    // luod's own sentence says more than we can; where it is, or what we met ourselves, needs the hint.
    std::string_view advice;
    if (error.what.empty() || operation == Operation::Open || operation == Operation::Tcp)
      advice = hint(operation, error.code);
    if (advice.empty() && (error.what.empty() || error.code != ENOTSUP)) advice = common_hint(error.code);
    // luod's sentence may begin with the same goal.
    const bool said = error.what.starts_with(goal);
    sentence = fmt::format("{}{}{}{}{}{}{}", said ? "" : goal, said ? "" : ": ", error.what,
                           error.what.empty() ? "" : ": ", errno_text(error.code), advice.empty() ? "" : "; ", advice);
  } catch (...) {
    sentence.clear();  // out of memory: the number has to do
  }
  return -error.code;
}

const char* last_failure() noexcept { return sentence.c_str(); }

}  // namespace luo::client
