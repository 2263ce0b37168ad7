// A handler and an FLB of one's own: ledgers are memfds whose name begins with "ledger". Each may only grow, which is
// checked when it comes back; and all of them together have one volume, with a serial number that crosses every
// update and advances with each.
//
//   cmake -S examples/handler -B build && cmake --build build
//   luod --handlers $PWD/build/ledger.so,all
#include <sys/stat.h>
#include <unistd.h>

#include <luo/plugin.h>
#include <string>
#include <string_view>

namespace {

struct Volume {
  std::uint64_t serial;
};

/// There while some ledger is preserved.
class VolumeFlb final : public luo::Flb {
 public:
  std::string_view name() const noexcept override { return "volume-v1"; }
  /// The first ledger: the volume that came over the last update goes on, if one did.
  luo::Result<State> preserve() override {
    std::uint64_t serial = 1;
    if (flbs != nullptr) {
      if (auto came = flbs->get_incoming(*this)) {
        serial = static_cast<Volume*>(*came)->serial + 1;
        flbs->put_incoming(*this);
      }
    }
    return State{serial, new Volume{serial}};
  }
  void unpreserve(const State& state) noexcept override { delete static_cast<Volume*>(state.object); }
  luo::Result<void*> retrieve(std::uint64_t serial) override { return new Volume{serial}; }
  void finish(const State& state) noexcept override { delete static_cast<Volume*>(state.object); }
  void forget(void* object) noexcept override { delete static_cast<Volume*>(object); }

  luo::FlbAccess* flbs = nullptr;
};

class LedgerHandler final : public luo::Handler {
 public:
  explicit LedgerHandler(VolumeFlb& volume) : volume_{volume} {}
  std::string_view name() const noexcept override { return "ledger-v1"; }
  bool can_preserve(const luo::FileInfo& file) const noexcept override {
    char target[64] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(file.fd);
    return readlink(link.c_str(), target, sizeof target - 1) > 0 &&
           std::string_view{target}.starts_with("/memfd:ledger");
  }
  void set_flbs(luo::FlbAccess& access) override { volume_.flbs = &access; }
  /// Remembered: its size, and the serial number of the volume that it belongs to.
  luo::Result<luo::HandlerData> preserve(const luo::FileInfo& file, luo::SessionId, luo::Token) override {
    auto object = volume_.flbs->get_outgoing(volume_);
    if (!object) return std::unexpected(object.error());
    const std::uint64_t serial = static_cast<Volume*>(*object)->serial;
    volume_.flbs->put_outgoing(volume_);
    return luo::HandlerData{static_cast<std::uint64_t>(file.st.st_size), serial, 0, 0};
  }
  void unpreserve(const luo::KeptFile&) noexcept override {}
  luo::Result<luo::HandlerData> freeze(const luo::KeptFile& file) override {
    struct stat st;
    if (fstat(file.fd, &st) != 0) return luo::sys_fail("fstat");
    luo::HandlerData data = file.data;
    data[0] = static_cast<std::uint64_t>(st.st_size);
    return data;
  }
  luo::Result<> retrieve(const luo::KeptFile& file) override {
    struct stat st;
    if (fstat(file.fd, &st) != 0) return luo::sys_fail("fstat");
    if (static_cast<std::uint64_t>(st.st_size) < file.data[0])
      return luo::fail(EIO, "the ledger had {} bytes, and has {}", file.data[0], st.st_size);
    return {};
  }
  void finish(const luo::KeptFile&, bool) noexcept override {}

 private:
  VolumeFlb& volume_;
};

luo::Result<> add(luo::PluginHost& host) {
  static VolumeFlb volume;
  static LedgerHandler ledgers{volume};
  if (auto added = host.add(ledgers); !added) return added;
  return host.add_flb(ledgers, volume);
}

}  // namespace

LUO_PLUGIN("ledger", add)
