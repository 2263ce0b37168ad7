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

Result<std::unique_ptr<Server>> start(const Options& options, Heritage* heritage, const std::vector<int>& inherited) {
  Facts facts;
  facts.version = LUO_CACHE_VERSION;
  facts.maxmemory = options.maxmemory;
  if (options.use_luod) facts.session = options.session;
  if (heritage != nullptr && heritage->served) return start_again(options, facts, *heritage, inherited);
  if (!options.use_luod) return start_alone(options, facts);
  return start_with_luod(options, facts, heritage != nullptr ? &heritage->session : nullptr);
}

// What the next server of the same supervisor finds in the descriptor table.
void bequeath(const Server& server, Heritage& heritage) {
  heritage.arena = server.arena().raw;
  heritage.tcp = server.listeners().tcp.raw();
  heritage.unix_socket = server.listeners().unix_socket.raw();
  heritage.served = true;
}

int serve(const Options& options, Heritage* heritage, const std::vector<int>& inherited) {
  const bool again = heritage != nullptr && heritage->served;
  auto server = start(options, heritage, inherited);
  if (!server) {
    log(Level::Error, "{}", server.error());
    return 1;
  }
  const Facts& facts = (*server)->facts();
  if (heritage != nullptr) bequeath(**server, *heritage);
  if (!again) say_ready(options, facts);
  const auto ending = (*server)->run();
  if (!ending) log(Level::Error, "{}", ending.error());
  if (ending && *ending == Server::Ending::Stopped && !facts.unix_socket.empty()) ::unlink(facts.unix_socket.c_str());
  // Nothing is torn down: the custodian may be waiting for luod, and the end of the process closes all
  // there is to close.
  ::_exit(ending ? 0 : 1);
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
  if (!options.supervise) return cache::serve(options, nullptr, {});
  const auto status = cache::supervise([&](cache::Heritage& heritage, const std::vector<int>& inherited) {
    heritage.spare = options.ready_fd;
    return cache::serve(options, &heritage, inherited);
  });
  if (status) return *status;
  log(Level::Error, "{}", status.error());
  return 1;
}
