// What a kernel's configuration says of live updates, and where to find it. Any thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace luo::kexec {

enum class Verdict : std::uint8_t { NotKnown, No, Yes };

struct Configuration {
  std::string found;                     ///< "in the image", or a file's path; empty: there is none, and no verdict
  Verdict handover = Verdict::NotKnown;  ///< CONFIG_KEXEC_HANDOVER
  Verdict handover_by_default = Verdict::NotKnown;  ///< CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT
  Verdict live_update = Verdict::NotKnown;          ///< CONFIG_LIVEUPDATE
  Verdict memfds = Verdict::NotKnown;  ///< CONFIG_LIVEUPDATE_MEMFD; the first kernels with LUO have no such option
  std::string line;                    ///< CONFIG_CMDLINE: command line that is built in
  bool line_overrides = false;         ///< and the only one
};

/// `text` is a .config. EBADMSG: it is none.
Result<Configuration> parse_configuration(std::string_view text);

/// Looks for the configuration that CONFIG_IKCONFIG puts into an unpacked kernel, which goes through feed() in pieces.
class EmbeddedConfiguration {
 public:
  void feed(std::span<const std::byte> piece);
  /// Once all is through: the text, if there was one.
  const std::optional<std::string>& text() const noexcept { return text_; }

 private:
  bool step();
  std::string held_;  ///< the last bytes while it searches, all since the mark once it was found
  bool inside_ = false;
  int marks_ = 0;  ///< seen so far; after a few it gives up, because some image may be made of them
  std::optional<std::string> text_;
};

/// The configuration in a file beside the kernel at `path`: "config-VERSION" beside "vmlinuz-VERSION", "KERNEL.config",
/// or by the kernel's own word for its version; a symbolic link is followed. `found` stays empty if there is none, also
/// if what is there is no configuration.
Configuration find_beside(const std::string& path, const std::string& release);

}  // namespace luo::kexec
