#include "kexec/state_formats.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <string_view>

namespace luo::kexec {
namespace {

constexpr std::string_view kKinds[] = {"kho", "luo", "memfd"};
constexpr std::string_view kVersion = "-v";
constexpr std::size_t kMostDigits = 4;
constexpr std::size_t kHeld = 16;  ///< the longest, its NUL, and what stands before it

bool is_letter(char c) noexcept { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_'; }

unsigned version_of(std::string_view format) noexcept {
  unsigned version = 0;
  const auto at = format.find(kVersion) + kVersion.size();
  std::from_chars(format.data() + at, format.data() + format.size(), version);
  return version;
}

}  // namespace

void FormatFinder::feed(std::span<const std::byte> piece) {
  held_.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  const std::string_view all = held_;
  for (auto dash = all.find(kVersion); dash != all.npos; dash = all.find(kVersion, dash + 1)) {
    const auto digits = dash + kVersion.size();
    const auto end = all.find_first_not_of("0123456789", digits);
    if (end == all.npos || all[end] != '\0' || end == digits || end - digits > kMostDigits) continue;
    for (const std::string_view kind : kKinds) {
      if (!all.substr(0, dash).ends_with(kind)) continue;
      const auto begin = dash - kind.size();
      if (begin != 0 && !is_letter(all[begin - 1])) found_.emplace(all.substr(begin, end - begin));
    }
  }
  if (held_.size() > kHeld) held_.erase(0, held_.size() - kHeld);
}

std::vector<std::string> not_read(const StateFormats& written, const StateFormats& read) {
  std::map<std::string_view, std::string_view> latest;
  for (const std::string_view format : written) {
    std::string_view& known = latest[format.substr(0, format.find(kVersion))];
    if (known.empty() || version_of(known) < version_of(format)) known = format;
  }
  std::vector<std::string> out;
  for (const auto& [kind, format] : latest)
    if (!read.contains(std::string{format})) out.emplace_back(format);
  return out;
}

}  // namespace luo::kexec
