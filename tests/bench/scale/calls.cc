// Each call of the life of a session with files, beside few and many others.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <numeric>

#include "scale.h"

namespace bench {
namespace {

std::string name_of(std::size_t session) { return fmt::format("scale-{}", session); }
bool in_batches(std::size_t session) { return session % 2 == 0; }

luo::Result<std::vector<luo::Fd>> make_files(std::size_t count) {
  std::vector<luo::Fd> files;
  files.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    files.push_back(luo::Fd::adopt(memfd_create("scale", MFD_CLOEXEC)));
    if (!files.back().valid()) return luo::sys_fail("memfd_create");
  }
  return files;
}

std::vector<std::uint64_t> tokens_of(std::size_t count) {
  std::vector<std::uint64_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 1U);
  return tokens;
}

luo::Result<> preserve(Side& side, std::size_t session) {
  const std::vector<luo::Fd> files = LUO_TRY(make_files(side.files));
  const std::vector<int> numbers = numbers_of(files);
  const std::vector<std::uint64_t> tokens = tokens_of(side.files);
  luo_connection* const luod = side.connection->get();
  const int fd = side.held[session].raw();
  const std::uint64_t began = now_ns();
  if (in_batches(session)) {
    std::vector<int> errors(numbers.size());
    const int done = luo_preserve_many(luod, fd, numbers.data(), tokens.data(), errors.data(), numbers.size());
    if (done < 0) return luo_fail(done, "preserve");
    if (static_cast<std::size_t>(done) != numbers.size())
      return luo::fail(EIO, "preserve: only {} of {}", done, numbers.size());
  } else {
    for (std::size_t i = 0; i < numbers.size(); ++i)
      if (const int result = luo_preserve_fd(luod, fd, numbers[i], tokens[i]); result < 0)
        return luo_fail(result, "preserve");
  }
  side.samples[in_batches(session) ? "preserve_many" : "preserve"].add(us_each(began, numbers.size()),
                                                                       session * side.files);
  return {};
}

luo::Result<> retrieve_files(Side& side, std::size_t session) {
  const std::vector<std::uint64_t> tokens = tokens_of(side.files);
  std::vector<int> fds(side.files, -1);
  luo_connection* const luod = side.connection->get();
  const int fd = side.held[session].raw();
  const std::uint64_t began = now_ns();
  if (in_batches(session)) {
    if (const int came = luo_retrieve_many(luod, fd, tokens.data(), fds.data(), fds.size()); came < 0)
      return luo_fail(came, "retrieve files");
  } else {
    for (std::size_t i = 0; i < fds.size(); ++i) fds[i] = luo_retrieve_fd(luod, fd, tokens[i]);
  }
  side.samples[in_batches(session) ? "retrieve_many" : "retrieve"].add(us_each(began, fds.size()),
                                                                       session * side.files);
  for (const int file : fds) {
    if (file < 0) return luo::fail(-file, "a file of session {} did not come", session);
    ::close(file);
  }
  return {};
}

}  // namespace

luo::Result<> alternate(Sides& sides, const std::function<luo::Result<>(Side&, std::size_t)>& step) {
  auto& [small, large] = sides;
  std::size_t next = 0;
  for (std::size_t i = 0; i < large.sessions; ++i) {
    LUO_TRY(step(large, i));
    while (next < small.sessions && (next + 1) * large.sessions <= (i + 1) * small.sessions)
      LUO_TRY(step(small, next++));
  }
  return {};
}

luo::Result<> fill(Sides& sides) {
  for (Side& side : sides) side.connection.emplace(LUO_TRY(Connection::open(side.socket)));
  LUO_TRY(alternate(sides, [](Side& side, std::size_t i) -> luo::Result<> {
    const std::string name = name_of(i);
    const std::uint64_t began = now_ns();
    const int fd = luo_session_create(side.connection->get(), name.c_str());
    if (fd < 0) return luo_fail(fd, "create " + name);
    side.samples["create"].add(us_each(began, 1), i);
    side.held.push_back(luo::Fd::adopt(fd));
    return {};
  }));
  return alternate(sides, &preserve);
}

luo::Result<> empty(Sides& sides) {
  for (Side& side : sides) side.connection.emplace(LUO_TRY(Connection::open(side.socket)));
  LUO_TRY(alternate(sides, [](Side& side, std::size_t i) -> luo::Result<> {
    const std::string name = name_of(i);
    const std::uint64_t began = now_ns();
    const int fd = luo_session_retrieve(side.connection->get(), name.c_str());
    if (fd < 0) return luo_fail(fd, "retrieve " + name);
    side.samples["retrieve_session"].add(us_each(began, 1), i);
    side.held.push_back(luo::Fd::adopt(fd));
    return {};
  }));
  LUO_TRY(alternate(sides, &retrieve_files));
  return alternate(sides, [](Side& side, std::size_t i) -> luo::Result<> {
    const std::uint64_t began = now_ns();
    if (const int result = luo_session_finish(side.connection->get(), side.held[i].raw()); result < 0)
      return luo_fail(result, "finish");
    side.samples["finish_session"].add(us_each(began, 1), i);
    return {};
  });
}

}  // namespace bench
