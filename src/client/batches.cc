#include "client/batches.h"

#include <fcntl.h>

#include <algorithm>

#include "sys/process.h"

namespace luo::client {

std::int32_t trouble_with(int fd) {
  if (fcntl(fd, F_GETFD) < 0) return EBADF;
  const auto link = read_link(FdRef::borrow(fd));
  return link && link->starts_with("anon_inode:[io_uring") ? ENOENT : 0;
}

void put_preserve(wire::Builder& request, std::span<const int> fds, std::span<const std::uint64_t> tokens,
                  std::span<const int> errors) {
  request.start(wire::Command::PreserveMany, 0, 0)
      .arg(wire::ManyArg{.size = 0, .count = static_cast<std::uint32_t>(fds.size())});
  for (std::size_t i = 0; i < fds.size(); ++i) {
    request.add(wire::ManyEntry{.token = tokens[i], .error = errors[i], .reserved = 0});
    if (errors[i] == 0) request.add_fd(fds[i]);
  }
}

Result<> take_preserved(const Answer& answer, std::span<int> errors) {
  const auto results = wire::parse_array<wire::ManyResult>(answer.payload);
  if (!results || results->elements.size() != errors.size())
    return fail(EPROTO, "luod answered for another number of files");
  std::ranges::transform(results->elements, errors.begin(), &wire::ManyResult::error);
  return {};
}

void put_retrieve(wire::Builder& request, std::span<const std::uint64_t> tokens) {
  request.start(wire::Command::RetrieveMany, 0, 0)
      .arg(wire::ManyArg{.size = 0, .count = static_cast<std::uint32_t>(tokens.size())});
  for (const std::uint64_t token : tokens) request.add(wire::ManyEntry{.token = token, .error = 0, .reserved = 0});
}

Result<> take_retrieved(Answer answer, std::span<int> fds) {
  const auto results = wire::parse_array<wire::ManyResult>(answer.payload);
  if (!results || results->elements.size() != fds.size())
    return fail(EPROTO, "luod answered for another number of files");
  const auto announced = static_cast<std::size_t>(std::ranges::count(results->elements, 0, &wire::ManyResult::error));
  if (announced != answer.header.fds || std::ranges::any_of(results->elements, [](auto r) { return r.error < 0; }))
    return fail(EPROTO, "luod announced {} files and sent {}", announced, answer.header.fds);
  // Numbers are given out in order; when they run out, the rest is missing. Asking again is harmless.
  std::size_t next = 0;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    if (const std::int32_t error = results->elements[i].error; error != 0) fds[i] = -error;
    else fds[i] = next < answer.fds.size() ? answer.fds[next++].release() : -EMFILE;
  }
  return {};
}

Result<> preserve_batch(luo_connection& c, int session, std::span<const int> fds, std::span<const std::uint64_t> tokens,
                        std::span<int> errors) {
  std::ranges::fill(errors, 0);
  put_preserve(c.request, fds, tokens, errors);
  auto sent = c.exchange_about(session, c.request);
  if (!sent && is_about_descriptors(sent.error())) {
    std::ranges::transform(fds, errors.begin(), trouble_with);
    put_preserve(c.request, fds, tokens, errors);
    sent = c.exchange_about(session, c.request);
  }
  if (!sent) return std::unexpected(std::move(sent).error());
  return take_preserved(LUO_TRY(verdict(*std::move(sent))), errors);
}

Result<> retrieve_batch(luo_connection& c, int session, std::span<const std::uint64_t> tokens, std::span<int> fds) {
  put_retrieve(c.request, tokens);
  return take_retrieved(LUO_TRY(c.ask_about(session, c.request)), fds);
}

void give_back(std::span<int> fds, int code) noexcept {
  for (int& fd : fds) {
    if (fd >= 0) close_number(fd);
    fd = -code;
  }
}

}  // namespace luo::client
