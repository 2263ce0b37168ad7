// The formats of state that a kernel knows: KHO's, LUO's, and those of LUO's file handlers. A kernel that does not know
// what the one before has written takes nothing of it, or panics. Any thread.
#pragma once
#include <cstddef>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace luo::kexec {

/// Their names, as they stand in a kernel's constants: "kho-v4", "luo-v5", "memfd-v2".
using StateFormats = std::set<std::string>;

/// Finds them in an unpacked kernel, or in the constants of one, which goes through feed() in pieces.
class FormatFinder {
 public:
  void feed(std::span<const std::byte> piece);
  const StateFormats& found() const noexcept { return found_; }

 private:
  std::string held_ = std::string(1, '\0');  ///< the last bytes, and a piece
  StateFormats found_;
};

/// What a kernel that knows `written` hands over, and one that knows `read` does not take: the latest version of each
/// kind in `written` that is not in `read`.
std::vector<std::string> not_read(const StateFormats& written, const StateFormats& read);

}  // namespace luo::kexec
