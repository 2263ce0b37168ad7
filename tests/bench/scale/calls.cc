// Each call of the life of a session with files, beside few and many others.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <numeric>

#include "scale.h"

namespace bench {
namespace {

constexpr std::size_t kTurn = 50;  ///< sessions of the smaller side; of the larger, ten times as many

std::string name_of(std::size_t session) { return fmt::format("scale-{}", session); }
bool in_batches(const Side& side, std::size_t session) { return session % side.one_by_one != side.one_by_one - 1; }

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
  if (in_batches(side, session)) {
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
  side.samples[in_batches(side, session) ? "preserve_many" : "preserve"].add(us_each(began, numbers.size()),
                                                                             session * side.files);
  return {};
}

luo::Result<> retrieve_files(Side& side, std::size_t session) {
  const std::vector<std::uint64_t> tokens = tokens_of(side.files);
  std::vector<int> fds(side.files, -1);
  luo_connection* const luod = side.connection->get();
  const int fd = side.held[session].raw();
  const std::uint64_t began = now_ns();
  if (in_batches(side, session)) {
    if (const int came = luo_retrieve_many(luod, fd, tokens.data(), fds.data(), fds.size()); came < 0)
      return luo_fail(came, "retrieve files");
  } else {
    for (std::size_t i = 0; i < fds.size(); ++i) fds[i] = luo_retrieve_fd(luod, fd, tokens[i]);
  }
  side.samples[in_batches(side, session) ? "retrieve_many" : "retrieve"].add(us_each(began, fds.size()),
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
  // The first call after the other luod's turn finds caches that are not its own: so turns are no single calls.
  const std::size_t turn = std::clamp(small.sessions / 20, std::size_t{1}, kTurn);
  std::size_t of_small = 0, of_large = 0;
  while (of_small < small.sessions || of_large < large.sessions) {
    const std::size_t small_until = std::min(of_small + turn, small.sessions);
    const std::size_t large_until = small_until == small.sessions ? large.sessions : small_until * 10;
    while (of_large < large_until) LUO_TRY(step(large, of_large++));
    while (of_small < small_until) LUO_TRY(step(small, of_small++));
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
