// luo.h: files.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "client/instance.h"
#include "sys/luo_device.h"
#include "sys/process.h"

using namespace luo;
using namespace luo::client;

namespace {

/// What the kernel would say when it comes to look at a descriptor that a message has just refused to
/// carry: it is not open, or an io_uring, which no message carries and no handler knows. 0: it can be sent.
/// (An O_PATH descriptor can; luod refuses it.)
std::int32_t trouble_with(int fd) {
  if (fcntl(fd, F_GETFD) < 0) return EBADF;
  const auto link = read_link(FdRef::borrow(fd));
  return link && link->starts_with("anon_inode:[io_uring") ? ENOENT : 0;
}

bool is_about_descriptors(const Error& error) noexcept { return error.code == EBADF || error.code == EINVAL; }

/// `build` makes the request in c.request; anew, with what is wrong with `fd` instead of it, if no message carries
/// that.
template <class Build>
Result<int> preserve_one(luo_connection& c, int session, int fd, const Build& build) {
  build(std::int32_t{0});
  auto sent = c.exchange_about(session, c.request);
  if (!sent && is_about_descriptors(sent.error())) {
    if (const std::int32_t error = trouble_with(fd); error != 0) {
      build(error);
      sent = c.exchange_about(session, c.request);
    }
  }
  if (!sent) return std::unexpected(std::move(sent).error());
  LUO_TRY(verdict(*std::move(sent)));
  return 0;
}

/// One batch; `errors` says for each what became of it.
Result<> preserve_batch(luo_connection& c, int session, std::span<const int> fds, std::span<const uint64_t> tokens,
                        std::span<int> errors) {
  const auto build = [&] {
    c.request.start(wire::Command::PreserveMany, 0, 0)
        .arg(wire::ManyArg{.size = 0, .count = static_cast<std::uint32_t>(fds.size())});
    for (std::size_t i = 0; i < fds.size(); ++i) {
      c.request.add(wire::ManyEntry{.token = tokens[i], .error = errors[i], .reserved = 0});
      if (errors[i] == 0) c.request.add_fd(fds[i]);
    }
  };
  std::ranges::fill(errors, 0);
  build();
  auto sent = c.exchange_about(session, c.request);
  if (!sent && is_about_descriptors(sent.error())) {
    std::ranges::transform(fds, errors.begin(), trouble_with);
    build();
    sent = c.exchange_about(session, c.request);
  }
  if (!sent) return std::unexpected(std::move(sent).error());
  const Answer answer = LUO_TRY(verdict(*std::move(sent)));
  const auto results = wire::parse_array<wire::ManyResult>(answer.payload);
  if (!results || results->elements.size() != fds.size())
    return fail(EPROTO, "luod answered for another number of files");
  for (std::size_t i = 0; i < fds.size(); ++i) errors[i] = results->elements[i].error;
  return {};
}

Result<> retrieve_batch(luo_connection& c, int session, std::span<const uint64_t> tokens, std::span<int> fds) {
  c.request.start(wire::Command::RetrieveMany, 0, 0)
      .arg(wire::ManyArg{.size = 0, .count = static_cast<std::uint32_t>(tokens.size())});
  for (const std::uint64_t token : tokens) c.request.add(wire::ManyEntry{.token = token, .error = 0, .reserved = 0});
  Answer answer = LUO_TRY(c.ask_about(session, c.request));
  const auto results = wire::parse_array<wire::ManyResult>(answer.payload);
  if (!results || results->elements.size() != tokens.size())
    return fail(EPROTO, "luod answered for another number of files");
  const auto announced = static_cast<std::size_t>(std::ranges::count(results->elements, 0, &wire::ManyResult::error));
  if (announced != answer.header.fds || std::ranges::any_of(results->elements, [](auto r) { return r.error < 0; }))
    return fail(EPROTO, "luod announced {} files and sent {}", announced, answer.header.fds);
  // Numbers are given out in order; when they run out, the rest is missing. Asking again is harmless.
  std::size_t next = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (const std::int32_t error = results->elements[i].error; error != 0) fds[i] = -error;
    else fds[i] = next < answer.fds.size() ? answer.fds[next++].release() : -EMFILE;
  }
  return {};
}

}  // namespace

int luo_preserve_fd(struct luo_connection* c, int session, int fd, uint64_t token) {
  return api_call(
      c, Operation::Preserve,
      [&] { return fmt::format("preserve fd {} as token {} in {}", fd, token, c->describe(session)); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) {
          LUO_TRY(kernel::preserve(FdRef::borrow(session), fd, token));
          return 0;
        }
        return preserve_one(*c, session, fd, [&](std::int32_t error) {
          c->request.start(wire::Command::PreserveFd, 0, 0, error)
              .arg(wire::TokenArg{.size = 0, .fd = fd, .token = token});
          if (error == 0) c->request.add_fd(fd);
        });
      });
}

int luo_preserve_fd_after(struct luo_connection* c, int session, int fd, uint64_t token, const uint64_t* after,
                          size_t count) {
  if (count == 0) return luo_preserve_fd(c, session, fd, token);
  return api_call(
      c, Operation::Preserve,
      [&] { return fmt::format("preserve fd {} as token {} in {}", fd, token, c->describe(session)); },
      [&]() -> Result<int> {
        if (after == nullptr) return fail(EFAULT, "after is NULL");
        if (count > wire::kMaxAfter) return fail(EINVAL, "{} tokens: at most {}", count, wire::kMaxAfter);
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        LUO_TRY(c->expect(wire::kCapAfter));
        return preserve_one(*c, session, fd, [&](std::int32_t error) {
          c->request.start(wire::Command::PreserveAfter, 0, 0, error)
              .arg(wire::AfterArg{.size = 0, .count = static_cast<std::uint32_t>(count), .token = token});
          for (const std::uint64_t other : std::span{after, count}) c->request.add(other);
          if (error == 0) c->request.add_fd(fd);
        });
      });
}

int luo_preserve_many(struct luo_connection* c, int session, const int* fds, const uint64_t* tokens, int* errors,
                      size_t count) {
  if (errors != nullptr) std::fill_n(errors, count, ECANCELED);
  return api_call(
      c, Operation::Preserve, [&] { return fmt::format("preserve {} files in {}", count, c->describe(session)); },
      [&]() -> Result<int> {
        if (count != 0 && (fds == nullptr || tokens == nullptr || errors == nullptr))
          return fail(EFAULT, "fds, tokens or errors is NULL");
        if (count > INT32_MAX) return fail(EINVAL, "{} files at once", count);
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        int preserved = 0;
        for (std::size_t from = 0; from < count; from += wire::kMaxFds) {
          const std::size_t n = std::min(count - from, wire::kMaxFds);
          const std::span batch{errors + from, n};
          const auto done = preserve_batch(*c, session, {fds + from, n}, {tokens + from, n}, batch);
          if (!done) {
            std::ranges::fill(batch, done.error().code);
            return std::unexpected(done.error());
          }
          preserved += static_cast<int>(std::ranges::count(batch, 0));
        }
        return preserved;
      });
}

int luo_unpreserve_fd(struct luo_connection* c, int session, uint64_t token) {
  return api_call(
      c, Operation::Unpreserve, [&] { return fmt::format("unpreserve token {} in {}", token, c->describe(session)); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        c->request.start(wire::Command::UnpreserveFd, 0, 0).arg(wire::TokenArg{.size = 0, .fd = -1, .token = token});
        LUO_TRY(c->ask_about(session, c->request));
        return 0;
      });
}

int luo_retrieve_fd(struct luo_connection* c, int session, uint64_t token) {
  return api_call(
      c, Operation::RetrieveFd, [&] { return fmt::format("retrieve token {} of {}", token, c->describe(session)); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel)
          return LUO_TRY(kernel::retrieve(FdRef::borrow(session), token)).release();
        c->request.start(wire::Command::RetrieveFd, 0, 0).arg(wire::TokenArg{.size = 0, .fd = -1, .token = token});
        Answer answer = LUO_TRY(c->ask_about(session, c->request));
        if (answer.fds_missing) return std::unexpected(Error{EMFILE, ""});
        if (answer.fds.size() != 1) return fail(EPROTO, "luod sent {} descriptors", answer.fds.size());
        return answer.fds[0].release();
      });
}

int luo_retrieve_many(struct luo_connection* c, int session, const uint64_t* tokens, int* fds, size_t count) {
  if (fds != nullptr) std::fill_n(fds, count, -ECANCELED);
  return api_call(
      c, Operation::RetrieveFd, [&] { return fmt::format("retrieve {} files of {}", count, c->describe(session)); },
      [&]() -> Result<int> {
        if (count != 0 && (fds == nullptr || tokens == nullptr)) return fail(EFAULT, "tokens or fds is NULL");
        if (count > INT32_MAX) return fail(EINVAL, "{} files at once", count);
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        for (std::size_t from = 0; from < count; from += wire::kMaxFds) {
          const std::size_t n = std::min(count - from, wire::kMaxFds);
          const auto done = retrieve_batch(*c, session, {tokens + from, n}, {fds + from, n});
          if (done) continue;
          // Nothing may leak to a caller who sees only the error.
          for (std::size_t i = 0; i < count; ++i) {
            if (fds[i] >= 0) close_number(fds[i]);
            fds[i] = -done.error().code;
          }
          return std::unexpected(done.error());
        }
        return static_cast<int>(std::count_if(fds, fds + count, [](int fd) { return fd >= 0; }));
      });
}
