#include "kexec/configuration.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <filesystem>
#include <vector>

#include "base/fd.h"
#include "base/strong.h"
#include "kexec/decompress.h"
#include "kexec/image.h"
#include "sys/memfd.h"

namespace luo::kexec {
namespace {

constexpr std::string_view kBegin = "IKCFG_ST", kEnd = "IKCFG_ED";
constexpr int kMostMarks = 16;
constexpr std::size_t kLongestPacked = 2 << 20, kLongestText = 16 << 20;

std::optional<std::string> unpack(std::string_view packed) {
  std::string text;
  const auto unpacked = decompress(std::as_bytes(std::span{packed}), [&text](std::span<const std::byte> piece) {
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return text.size() <= kLongestText;
  });
  if (!unpacked || text.size() > kLongestText || !parse_configuration(text)) return std::nullopt;
  return text;
}

std::optional<std::string> read_text(const std::filesystem::path& path) {
  const Fd file = Fd::adopt(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat about {};
  if (!file.valid() || fstat(file.raw(), &about) != 0 || !S_ISREG(about.st_mode)) return std::nullopt;
  auto text = read_all(file, Bytes{kLongestText});
  if (!text) return std::nullopt;
  return *std::move(text);
}

/// What is between the quotes, \" and \\ undone.
std::string unquote(std::string_view value) {
  std::string out;
  if (!value.starts_with('"')) return out;
  for (std::size_t i = 1; i < value.size() && value[i] != '"'; ++i) {
    if (value[i] == '\\' && i + 1 < value.size()) ++i;
    out += value[i];
  }
  return out;
}

/// "VALUE" of CONFIG_NAME, "" if it is not set; nothing if the text has no word of it.
std::optional<std::string_view> value_of(std::string_view text, std::string_view name) {
  const std::string set = fmt::format("CONFIG_{}=", name), unset = fmt::format("# CONFIG_{} is not set", name);
  std::optional<std::string_view> value;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    if (line.starts_with(set)) value = line.substr(set.size());
    else if (line == unset) value = "";
    text.remove_prefix(std::min(line.size() + 1, text.size()));
  }
  return value;
}

Verdict verdict(std::optional<std::string_view> value, Verdict without_a_word) {
  if (!value) return without_a_word;
  return *value == "y" ? Verdict::Yes : Verdict::No;
}

}  // namespace

Result<Configuration> parse_configuration(std::string_view text) {
  if (!text.starts_with("CONFIG_") && text.find("\nCONFIG_") == text.npos)
    return fail(EBADMSG, "there is no line of a kernel's configuration in it");
  Configuration out;
  // Without a word of it: that kernel is older, or something that the option needs is off.
  out.handover = verdict(value_of(text, "KEXEC_HANDOVER"), Verdict::No);
  out.handover_by_default = verdict(value_of(text, "KEXEC_HANDOVER_ENABLE_DEFAULT"), Verdict::No);
  out.live_update = verdict(value_of(text, "LIVEUPDATE"), Verdict::No);
  out.memfds = verdict(value_of(text, "LIVEUPDATE_MEMFD"), Verdict::NotKnown);
  out.line = unquote(value_of(text, "CMDLINE").value_or(""));
  for (const char* only : {"CMDLINE_OVERRIDE", "CMDLINE_FORCE"})
    if (value_of(text, only) == "y") out.line_overrides = true;
  return out;
}

void EmbeddedConfiguration::feed(std::span<const std::byte> piece) {
  if (text_ || marks_ > kMostMarks) return;
  held_.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  while (step()) {}
}

/// One mark further; false: what is held has none.
bool EmbeddedConfiguration::step() {
  if (!inside_) {
    const auto at = held_.find(kBegin);
    if (at == held_.npos) {
      if (held_.size() >= kBegin.size()) held_.erase(0, held_.size() - (kBegin.size() - 1));
      return false;
    }
    held_.erase(0, at + kBegin.size());
    inside_ = true;
    if (++marks_ > kMostMarks) return false;
  }
  const auto end = held_.find(kEnd);
  if (end == held_.npos && held_.size() <= kLongestPacked) return false;
  if (end != held_.npos && end <= kLongestPacked) text_ = unpack(std::string_view{held_}.substr(0, end));
  inside_ = false;  // if it was none: the mark stood there for something else
  if (text_) held_ = {};
  return !text_;
}

Configuration find_beside(const std::string& path, const std::string& release) {
  namespace fs = std::filesystem;
  std::vector<fs::path> candidates;
  std::error_code error;
  const fs::path named{path}, real = fs::canonical(named, error);
  for (const fs::path& kernel : {named, error ? named : real}) {
    candidates.emplace_back(kernel.string() + ".config");
    const std::string name = kernel.filename().string();
    if (const auto dash = name.find('-'); dash != name.npos)
      candidates.push_back(kernel.parent_path() / ("config" + name.substr(dash)));
    if (is_release(release)) candidates.push_back(kernel.parent_path() / ("config-" + release));
  }
  for (const fs::path& candidate : candidates)
    if (const auto text = read_text(candidate))
      if (auto configuration = parse_configuration(*text)) {
        configuration->found = candidate.string();
        return *std::move(configuration);
      }
  return {};
}

}  // namespace luo::kexec
