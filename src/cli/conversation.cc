#include "cli/conversation.h"

#include <poll.h>
#include <unistd.h>

#include <vector>

#include "cli/render.h"
#include "sys/memfd.h"

namespace luo::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr Bytes kLongestReport = 256_MiB;

}  // namespace

Progress::Progress(std::string what)
    : what_{std::move(what)}, begin_{steady_clock::now()}, on_terminal_{isatty(STDERR_FILENO) == 1} {}

Progress::~Progress() {
  if (shown_) fmt::print(stderr, "\r\033[K");
}

int Progress::poll_timeout_ms() const {
  if (!on_terminal_) return -1;
  const auto past = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin_).count();
  return static_cast<int>(1000 - past % 1000);
}

void Progress::tick() {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(steady_clock::now() - begin_).count();
  if (!on_terminal_ || seconds < 1) return;
  fmt::print(stderr, "\r\033[K{} ... {} s", what_, seconds);
  std::fflush(stderr);
  shown_ = true;
}

Result<Woken> wait_for(client::Connection& connection, std::span<const int> others, Progress& progress) {
  std::vector<pollfd> fds{{connection.socket().raw, POLLIN, 0}};
  for (const int fd : others) fds.push_back({fd, POLLIN, 0});
  for (;;) {
    const int n = poll(fds.data(), fds.size(), progress.poll_timeout_ms());
    if (n < 0 && errno != EINTR) return sys_fail("poll");
    if (n <= 0) {
      progress.tick();
      continue;
    }
    // The answer first: what else happened at the same time is then of no consequence.
    if (fds[0].revents != 0)
      if (auto answer = LUO_TRY(connection.take_answer())) return Woken{std::move(answer), 0};
    for (std::size_t i = 1; i < fds.size(); ++i)
      if (fds[i].revents != 0) return Woken{std::nullopt, i - 1};
  }
}

Result<client::Answer> ask(client::Connection& connection, wire::Builder& request, Progress& progress) {
  LUO_TRY(connection.post(request));
  Woken woken = LUO_TRY(wait_for(connection, {}, progress));
  LUO_CHECK(woken.answer.has_value());  // there was nothing else to wake us
  return std::move(*woken.answer);
}

Result<nlohmann::json> report_in(const client::Answer& answer) {
  if (answer.fds.size() != 1) return fail(ENODATA, "luod had no descriptor left for a report");
  return parse_report(LUO_TRY(read_all(answer.fds[0], kLongestReport)));
}

}  // namespace luo::cli
