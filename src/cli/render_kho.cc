// The report of luoctl inspect --kho as text.
#include "cli/render_inspect.h"
#include "cli/table.h"

namespace luo::cli {
namespace {

using inspect::Json;

std::uint64_t number_of(const Json& object, const char* key) { return object.at(key).get<std::uint64_t>(); }
std::string text_of(const Json& object, const char* key) { return printable(object.at(key).get<std::string>()); }
std::string hex_of(const Json& object, const char* key) { return fmt::format("{:#x}", number_of(object, key)); }
std::string bytes_of(const Json& object, const char* key) { return render_bytes(number_of(object, key)); }
std::string count(std::uint64_t n, std::string_view one) { return fmt::format("{} {}{}", n, one, n == 1 ? "" : "s"); }

std::string tree_of(const Json& tree) {
  if (!tree.at("shown").get<bool>()) return "not shown: " + text_of(tree, "why");
  std::string out = fmt::format("{}, {}, map of preserved memory at {}", text_of(tree, "format"),
                                bytes_of(tree, "bytes"), hex_of(tree, "map_at"));
  if (tree.at("shown_bytes") != tree.at("bytes"))
    out += fmt::format("; of it {} are shown", bytes_of(tree, "shown_bytes"));
  return out;
}

std::string memory_of(const Json& preserved) {
  if (!preserved.at("known").get<bool>()) return "not known: " + text_of(preserved, "why");
  return fmt::format("{} in {}, and {} for the map of it", bytes_of(preserved, "bytes"),
                     count(number_of(preserved, "blocks"), "block"), bytes_of(preserved, "map_bytes"));
}

std::string content_of(const Json& subtree, bool incoming) {
  if (subtree.contains("given_back")) return "read by the kernel, and its memory given back";
  if (subtree.contains("kexec")) {
    const Json& kexec = subtree.at("kexec");
    return fmt::format("kexec {} from Linux {}", number_of(kexec, "count"), text_of(kexec, "release"));
  }
  if (!subtree.contains("luo")) return "";
  const Json& luo = subtree.at("luo");
  std::string out = fmt::format("{}, live update {}", text_of(luo, "format"), number_of(luo, "number"));
  if (number_of(luo, "sessions_at") != 0) out += fmt::format(", sessions at {}", hex_of(luo, "sessions_at"));
  else if (!incoming) out += ", sessions are written at the kexec";
  return out;
}

std::string side_of(const Json& side, std::string_view title, bool incoming, Style style) {
  std::string out = '\n' + coloured(title, Colour::Bold, style) + '\n';
  const auto field = [&out](std::string_view label, std::string_view text) {
    out += fmt::format("  {:<13}{}\n", label, text);
  };
  field("device tree", tree_of(side.at("tree")));
  field("memory", memory_of(side.at("preserved")));
  if (side.contains("scratch"))
    field("scratch", fmt::format("{} in {}, for the next kernel to start in; until then for movable pages only",
                                 bytes_of(side, "scratch_bytes"), count(side.at("scratch").size(), "area")));
  Table table{{"SUBTREE", "AT", "SIZE", "WHAT"}, "lrrl"};
  for (const Json& subtree : side.at("subtrees"))
    table.add({{text_of(subtree, "name")},
               {subtree.contains("at") ? hex_of(subtree, "at") : "-"},
               {bytes_of(subtree, "bytes")},
               {content_of(subtree, incoming)}});
  return out + table.text(style);
}

}  // namespace

std::string render_kho(const Json& report, Style style) {
  const bool sound = report.at("sound").get<bool>(), came = !report.at("in").is_null();
  std::string first =
      came ? "this kernel came from a kexec with handover" : "this kernel was started without a handover";
  if (!sound) first += "; what is shown of it is damaged";
  std::string out = coloured(first, sound ? Colour::Bold : Colour::Red, style) + '\n';
  for (const Json& fault : report.at("faults"))
    out += coloured("  damaged: " + printable(fault.get<std::string>()), Colour::Red, style) + '\n';
  if (came) out += side_of(report.at("in"), "handed over to this kernel", true, style);
  if (!report.at("out").is_null()) out += side_of(report.at("out"), "to be handed over by it", false, style);
  return out;
}

}  // namespace luo::cli
