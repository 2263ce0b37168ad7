// luo-cache: see options.cc for what it can do, records.h for what it keeps, handover.cc for how it is
// handed over.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "cache/handover.h"
#include "cache/options.h"

namespace luo::cache {
namespace {

void raise_descriptor_limit() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// The loop reads these from a signalfd; blocked here so that the custodian's thread inherits that.
void block_signals() noexcept {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &stop, nullptr);
}

void say_ready(const Options& options, const Facts& facts) {
  log(Level::Notice, "ready: serving {}:{}{}{}", facts.bind, facts.port, facts.unix_socket.empty() ? "" : " and ",
      facts.unix_socket);
  if (options.ready_fd < 0) return;
  const std::string line = fmt::format("{}\n", facts.port);
  if (::write(options.ready_fd, line.data(), line.size()) < 0)
    log(Level::Warning, "--ready-fd {}: {}", options.ready_fd, errno_text(errno));
  ::close(options.ready_fd);
}

Result<std::unique_ptr<Server>> start(const Options& options) {
  Facts facts;
  facts.version = LUO_CACHE_VERSION;
  facts.maxmemory = options.maxmemory;
  if (options.use_luod) facts.session = options.session;
  return options.use_luod ? start_with_luod(options, facts) : start_alone(options, facts);
}

}  // namespace
}  // namespace luo::cache

int main(int argc, char** argv) {
  using namespace luo;
  const auto parsed = cache::parse_options(argc, argv);
  if (const int* status = std::get_if<int>(&parsed)) return *status;
  const auto& options = std::get<cache::Options>(parsed);
  log_as("luo-cache");
  cache::raise_descriptor_limit();
  cache::block_signals();
  auto server = cache::start(options);
  if (!server) {
    log(Level::Error, "{}", server.error());
    return 1;
  }
  const cache::Facts& facts = (*server)->facts();
  cache::say_ready(options, facts);
  const auto ending = (*server)->run();
  if (!ending) log(Level::Error, "{}", ending.error());
  if (ending && *ending == cache::Server::Ending::Stopped && !facts.unix_socket.empty())
    ::unlink(facts.unix_socket.c_str());
  // Nothing is torn down: the custodian may be waiting for luod, and the end of the process closes all
  // there is to close.
  ::_exit(ending ? 0 : 1);
}
