#include "handlers/carried.h"

#include <fcntl.h>

#include "base/log.h"
#include "handlers/mend.h"

namespace luo::handlers {
namespace {

// data[2]: the token in the kernel's session. data[3]: part in bits 0-31, seals in 32-47, mode in 48-59, how it is open
// in 60-62 (all 0: for reading and writing), and that all of this is there, so that no handler's own word is taken for
// it.
constexpr std::uint64_t kPlaced = std::uint64_t{1} << 63;

constexpr unsigned kAppends = 4;
constexpr unsigned packed_open(int open) noexcept {
  return static_cast<unsigned>((open ^ O_RDWR) & O_ACCMODE) | ((open & O_APPEND) != 0 ? kAppends : 0);
}
constexpr int open_in(unsigned bits) noexcept {
  return (static_cast<int>(bits & O_ACCMODE) ^ O_RDWR) | ((bits & kAppends) != 0 ? O_APPEND : 0);
}

static_assert(packed_open(O_RDWR) == 0 && open_in(0) == O_RDWR, "words that an earlier luod wrote say nothing of this");

constexpr std::uint64_t packed(std::uint32_t part, Properties properties) noexcept {
  return kPlaced | part | std::uint64_t{properties.seals & 0xffffU} << 32 |
         std::uint64_t{properties.mode & 0xfffU} << 48 | std::uint64_t{packed_open(properties.open)} << 60;
}
constexpr Properties properties_in(std::uint64_t word) noexcept {
  return {static_cast<unsigned>(word >> 32) & 0xffff, static_cast<unsigned>(word >> 48) & 0xfff,
          open_in(static_cast<unsigned>(word >> 60) & 7)};
}

}  // namespace

medium::Place CarriedHandler::place_of(const HandlerData& data) noexcept {
  if ((data[3] & kPlaced) == 0) return {};
  return {static_cast<std::uint32_t>(data[3]), data[2]};
}

KeptFile CarriedHandler::inner(const KeptFile& file) const noexcept {
  KeptFile kept = file;
  if ((kept.data[3] & kPlaced) != 0) kept.data[2] = kept.data[3] = 0;
  return kept;
}

Result<HandlerData> CarriedHandler::preserve(const FileInfo& file, SessionId session, Token token) {
  HandlerData data = LUO_TRY(inner_.preserve(file, session, token));
  const unsigned carry = carry_of_(session);
  const bool words_free = data[2] == 0 && data[3] == 0;
  // Its size is the kernel's from the moment it is given to it: what is to grow is given when an update is under way.
  if (words_free && (carry & kCarryGrow) != 0 && S_ISREG(file.st.st_mode)) return data;
  Error why{EOPNOTSUPP, "files of this kind cannot be carried over a kexec"};
  if (words_free) {
    auto place = kernel_.preserve(session.raw(), file.fd, medium::When::Now);
    if (place) {
      data[2] = place->token;
      data[3] = packed(place->part, properties_of(file.fd, file.st.st_mode));
      return data;
    }
    why = std::move(place).error();
  }
  if (why.code == ENOENT) why.code = EOPNOTSUPP;
  if (why.code == EOPNOTSUPP && (carry & kCarryTransient) != 0) return data;
  inner_.unpreserve({file.fd, token, data});
  if (why.code == EOPNOTSUPP)
    return std::unexpected(
        Error{why.code, why.what + "; the session can have it for updates of luod and of services only, if it says so "
                                   "(option transient=allow)"});
  return std::unexpected(std::move(why));
}

void CarriedHandler::unpreserve(const KeptFile& file) noexcept {
  kernel_.unpreserve(place_of(file.data));
  inner_.unpreserve(inner(file));
}

/// Also what a simulated update took to the other side is the kernel's until then.
void CarriedHandler::finish(const KeptFile& file, bool retrieved) noexcept {
  kernel_.unpreserve(place_of(file.data));
  inner_.finish(inner(file), retrieved);
}

Result<HandlerData> CarriedHandler::freeze(const KeptFile& file) {
  HandlerData data = LUO_TRY(inner_.freeze(inner(file)));
  const medium::Place place = place_of(file.data);
  if (place.part == 0) return data;
  // Seals and modes of since then are not in what the kernel has written down (D5).
  struct stat st {};
  data[2] = place.token;
  data[3] = fstat(file.fd, &st) == 0 ? packed(place.part, properties_of(file.fd, st.st_mode)) : file.data[3];
  return data;
}

Result<HandlerData> CarriedHandler::place_late(SessionId session, int fd, const HandlerData& data) {
  // A place that is none any more counts as none.
  const bool placed = place_of(data).part != 0;
  if (fd < 0 || (placed ? kernel_.holds(place_of(data)) : data[2] != 0 || data[3] != 0)) return data;
  auto place = kernel_.preserve(session.raw(), fd, medium::When::Late);
  if (!place && (place.error().code == ENOENT || place.error().code == EOPNOTSUPP)) return data;
  if (!place) return std::unexpected(std::move(place).error());
  struct stat st {};
  if (fstat(fd, &st) != 0) return sys_fail("fstat(fd {})", fd);
  return HandlerData{data[0], data[1], place->token, packed(place->part, properties_of(fd, st.st_mode))};
}

HandlerData CarriedHandler::displace(const HandlerData& data) noexcept {
  kernel_.unpreserve(place_of(data));
  return {data[0], data[1], 0, 0};
}

Engine::Arrival CarriedHandler::bring(const SessionView& session, const FileView& file) {
  const medium::Place place = place_of(file.data);
  if (place.part == 0) return {.gone = true};
  const auto lost = [&](const Error& error) {
    const bool now = error.code == EMFILE || error.code == ENFILE || error.code == ENOMEM;
    log(Level::Error, "token {} of session '{}' {}: {}", file.token.raw(), session.name,
        now ? "cannot be taken over now" : "did not come over the kexec", error);
    return Engine::Arrival{.data = {file.data[0], file.data[1], 0, 0}, .error = error.code};
  };
  auto brought = kernel_.bring(place);
  if (!brought) return lost(brought.error());
  FileInfo info{brought->raw(), {}};
  if (fstat(info.fd, &info.st) != 0) return lost(sys_fail("fstat(fd {})", info.fd).error());
  auto mended = mend(std::move(*brought), info.st, properties_in(file.data[3]));
  if (!mended) return lost(mended.error());
  info.fd = mended->raw();  // perhaps another file's, under the same number
  if (fstat(info.fd, &info.st) != 0) return lost(sys_fail("fstat(fd {})", info.fd).error());
  fcntl(info.fd, F_SETFD, 0);  // luod's own goes over every exec
  return {.fd = mended->release(), .data = inner_.arrive(info, {file.data[0], file.data[1], 0, 0})};
}

}  // namespace luo::handlers
