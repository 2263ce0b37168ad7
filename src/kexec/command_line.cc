#include "kexec/command_line.h"

namespace luo::kexec {
namespace {

bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/// Takes the next word off the front; blanks within double quotes belong to it.
std::string_view take_word(std::string_view& line) {
  while (!line.empty() && is_blank(line.front())) line.remove_prefix(1);
  bool quoted = false;
  std::size_t end = 0;
  for (; end < line.size() && (quoted || !is_blank(line[end])); ++end)
    if (line[end] == '"') quoted = !quoted;
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(end);
  return word;
}

std::string_view without_quotes(std::string_view text) {
  if (text.starts_with('"')) text.remove_prefix(1);
  if (text.ends_with('"')) text.remove_suffix(1);
  return text;
}

/// As the kernel reads a bool: by the first letter, "o" by the second.
std::optional<bool> as_bool(std::string_view value) {
  if (value.empty()) return std::nullopt;
  const std::string_view yes = "eEyYtT1", no = "dDnNfF0";
  char c = value[0];
  if (yes.contains(c)) return true;
  if (no.contains(c)) return false;
  if ((c != 'o' && c != 'O') || value.size() < 2) return std::nullopt;
  c = value[1];
  if (c == 'n' || c == 'N') return true;
  if (c == 'f' || c == 'F') return false;
  return std::nullopt;
}

}  // namespace

Switches switches_in(std::string_view line) {
  Switches out;
  for (std::string_view word = take_word(line); !word.empty(); word = take_word(line)) {
    if (word == "--") break;
    if (word.starts_with('"')) word = without_quotes(word);  // "name=value", quoted as a whole
    const auto equals = word.find('=');
    if (equals == word.npos) continue;
    const auto name = word.substr(0, equals);
    const auto value = as_bool(without_quotes(word.substr(equals + 1)));
    if (!value) continue;
    if (name == "kho") out.handover = value;
    if (name == "liveupdate") out.live_update = value;
  }
  return out;
}

Turned turned_on(std::string_view line, const Configuration& target, std::string_view machine) {
  // x86 puts the built-in line in front; arm64 takes it only for want of another.
  std::string whole{line};
  if (target.line_overrides) whole = target.line;
  else if (machine != "aarch64") whole = target.line + " " + whole;
  else if (line.empty()) whole = target.line;
  const Switches said = switches_in(whole);
  Turned out;
  out.handover = said.handover ? (*said.handover ? Verdict::Yes : Verdict::No) : target.handover_by_default;
  out.live_update = said.live_update.value_or(false) ? Verdict::Yes : Verdict::No;
  return out;
}

}  // namespace luo::kexec
