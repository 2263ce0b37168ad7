// luod with one more kind of file: memfds named "slow...", whose handler answers later. Their first byte says
// what it does when it is asked: 'w' it needs more time, 'e' so it does, but calls the waker before it says so,
// and takes it the next time, 'f' it fails, else the file is taken. A thread of the
// handler's own calls the waker for each byte that comes through the FIFO $LUO_TEST_WAKE. Linked as stubborn_luod.cc
// is.
#include <fcntl.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "base/log.h"
#include "handlers/handlers.h"
#include "handlers/memfd.h"

namespace luo {
namespace {

class Slow final : public Handler {
 public:
  std::string_view name() const noexcept override { return "slow-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override {
    char target[64] = {};
    return readlink(fmt::format("/proc/self/fd/{}", file.fd).c_str(), target, sizeof target - 1) > 0 &&
           std::string_view{target}.starts_with("/memfd:slow");
  }
  Result<HandlerData> preserve(const FileInfo& file, SessionId, Token token) override {
    char answer = 0;
    if (pread(file.fd, &answer, 1, 0) != 1) return sys_fail("pread");
    if (answer == 'f') return fail(EREMOTEIO, "it came to nothing");
    if (answer == 'e' && !std::exchange(woken_early_, true)) {
      wake_();
      return fail(EINPROGRESS, "it is ready before it has said that it is not");
    }
    if (answer != 'w') return HandlerData{};
    listen();
    log(Level::Notice, "[{} waits]", token.raw());
    return fail(EINPROGRESS, "it takes its time");
  }
  void set_waker(const std::function<void()>& wake) override { wake_ = wake; }
  void unpreserve(const KeptFile&) noexcept override {}
  Result<> retrieve(const KeptFile&) override { return {}; }
  void finish(const KeptFile&, bool) noexcept override {}

 private:
  /// Only while luod serves: what is opened before, it closes when it takes its table over.
  void listen() {
    if (listening_) return;
    listening_ = true;
    const int fifo = open(getenv("LUO_TEST_WAKE"), O_RDONLY | O_CLOEXEC);
    LUO_CHECK(fifo >= 0);
    std::thread{[this, fifo] {
      for (char byte; read(fifo, &byte, 1) == 1;) wake_();
    }}.detach();
  }
  std::function<void()> wake_;
  bool listening_ = false, woken_early_ = false;
};

class Set final : public HandlerSet {
 public:
  Set() { LUO_CHECK(registry_.add(slow_).has_value() && registry_.add(memfd_).has_value()); }
  const HandlerRegistry& registry() const noexcept override { return registry_; }

 private:
  Slow slow_;
  handlers::MemfdHandler memfd_;
  HandlerRegistry registry_;
};

}  // namespace

Result<std::unique_ptr<HandlerSet>> make_handlers(std::string_view) { return std::unique_ptr<HandlerSet>{new Set}; }

}  // namespace luo
