// luo.h: files.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "client/batches.h"
#include "client/instance.h"
#include "sys/luo_device.h"

using namespace luo;
using namespace luo::client;

namespace {

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
          give_back({fds, count}, done.error().code);
          return std::unexpected(done.error());
        }
        return static_cast<int>(std::count_if(fds, fds + count, [](int fd) { return fd >= 0; }));
      });
}
