// A handler that is not done with a file until that says "done": files are memfds whose name begins with "stubborn".
// For what luod makes of a session that is closed then (D8): no handler of the kernel's is like this.
#include <unistd.h>

#include <string>
#include <string_view>

#include "luo/plugin.h"

namespace {

class Stubborn final : public luo::Handler {
 public:
  std::string_view name() const noexcept override { return "stubborn-v1"; }
  bool can_preserve(const luo::FileInfo& file) const noexcept override {
    char target[64] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(file.fd);
    return readlink(link.c_str(), target, sizeof target - 1) > 0 &&
           std::string_view{target}.starts_with("/memfd:stubborn");
  }
  luo::Result<luo::HandlerData> preserve(const luo::FileInfo&, luo::SessionId, luo::Token) override {
    return luo::HandlerData{};
  }
  void unpreserve(const luo::KeptFile&) noexcept override {}
  luo::Result<> retrieve(const luo::KeptFile&) override { return {}; }
  bool can_finish(const luo::KeptFile& file) const noexcept override {
    char content[4];
    return pread(file.fd, content, sizeof content, 0) == sizeof content && std::string_view{content, 4} == "done";
  }
  void finish(const luo::KeptFile&, bool) noexcept override {}
};

luo::Result<> add(luo::PluginHost& host) {
  static Stubborn stubborn;
  return host.add(stubborn);
}

}  // namespace

LUO_PLUGIN("stubborn", add)
