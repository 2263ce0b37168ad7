// luod with one more kind of file: memfds named "stubborn...". Those that contain "no" refuse to be
// frozen. What its handler is asked stands in the log. Linked with luod's own main; this make_handlers
// takes the place of the library's.
#include <unistd.h>

#include "base/log.h"
#include "handlers/handlers.h"
#include "handlers/memfd.h"

namespace luo {
namespace {

class Stubborn final : public Handler {
 public:
  std::string_view name() const noexcept override { return "stubborn-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override {
    char target[64] = {};
    return readlink(fmt::format("/proc/self/fd/{}", file.fd).c_str(), target, sizeof target - 1) > 0 &&
           std::string_view{target}.starts_with("/memfd:stubborn");
  }
  Result<HandlerData> preserve(const FileInfo&, SessionId, Token) override { return HandlerData{}; }
  void unpreserve(const KeptFile&) noexcept override {}
  Result<HandlerData> freeze(const KeptFile& file) override {
    char answer[2] = {};
    const bool refuses = pread(file.fd, answer, sizeof answer, 0) == 2 && answer[0] == 'n' && answer[1] == 'o';
    log(Level::Notice, "[freeze {}{}]", file.token.raw(), refuses ? " refused" : "");
    if (refuses) return fail(EREMOTEIO, "it does not want to");
    return file.data;
  }
  void unfreeze(const KeptFile& file) noexcept override { log(Level::Notice, "[unfreeze {}]", file.token.raw()); }
  Result<> retrieve(const KeptFile&) override { return {}; }
  void finish(const KeptFile&, bool) noexcept override {}
};

class Set final : public HandlerSet {
 public:
  Set() { LUO_CHECK(registry_.add(stubborn_).has_value() && registry_.add(memfd_).has_value()); }
  const HandlerRegistry& registry() const noexcept override { return registry_; }

 private:
  Stubborn stubborn_;
  handlers::MemfdHandler memfd_;
  HandlerRegistry registry_;
};

}  // namespace

Result<std::unique_ptr<HandlerSet>> make_handlers(std::string_view) { return std::unique_ptr<HandlerSet>{new Set}; }

}  // namespace luo
