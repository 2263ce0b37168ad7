// Device-tree source: the JSON's own shape, in the words of another format.
#include <algorithm>

#include "inspect/report.h"

namespace luo::inspect {
namespace {

/// Property and node names have no underscores by custom, and blanks nowhere.
std::string name_of(std::string_view key) {
  std::string name{key == "name" ? "label" : key};
  std::ranges::replace_if(
      name, [](char c) { return c == '_' || c == ' '; }, '-');
  return name;
}

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') out += '\\', out += c;
    else if (byte < 0x20 || byte == 0x7f) out += fmt::format("\\x{:02x}", byte);
    else out += c;
  }
  return out + '"';
}

std::string number(const Json& value) {
  if (value.is_number_unsigned() || value.get<std::int64_t>() >= 0)
    return fmt::format("{}", value.get<std::uint64_t>());
  return fmt::format("{:#x}", static_cast<std::uint64_t>(value.get<std::int64_t>()));  // all 64 bits
}

/// What a list's members are called: "files" has "file-0".
std::string one_of(std::string_view key) {
  if (key == "outgoing" || key == "incoming" || key == "dropped") return "session";
  if (key == "small" || key == "large" || key == "free") return "size";
  if (key == "preserved_pages" || key == "preserved_memory") return "root";
  if (key.ends_with("_list")) key.remove_suffix(5);
  if (key.ends_with('s')) key.remove_suffix(1);
  return name_of(key);
}

class Writer {
 public:
  std::string take() { return std::move(out_); }

  void node(const std::string& name, const Json& object) {
    line(name + " {");
    ++depth_;
    if (name == "/") line("compatible = \"luo,inspect-v1\";");
    // In a node, properties stand before nodes.
    for (const auto& [key, value] : object.items())
      if (!is_node(value)) property(name_of(key), value);
    for (const auto& [key, value] : object.items())
      if (is_node(value)) child(key, value);
    --depth_;
    line("};");
  }

 private:
  static bool is_node(const Json& value) {
    return value.is_object() || (value.is_array() && !value.empty() && value.front().is_object());
  }

  void child(const std::string& key, const Json& value) {
    if (value.is_object()) return node(name_of(key), value);
    line(name_of(key) + " {");
    ++depth_;
    std::size_t n = 0;
    for (const Json& member : value) node(fmt::format("{}-{}", one_of(key), n++), member);
    --depth_;
    line("};");
  }

  void property(const std::string& name, const Json& value) {
    if (value.is_boolean()) {
      if (value.get<bool>()) line(name + ";");
    } else if (value.is_string()) {
      line(name + " = " + in_quotes(value.get<std::string>()) + ";");
    } else if (value.is_number()) {
      line(fmt::format("{} = /bits/ 64 <{}>;", name, number(value)));
    } else if (value.is_array() && !value.empty()) {
      std::string items;
      for (const Json& item : value) {
        if (!items.empty()) items += item.is_string() ? ", " : " ";
        items += item.is_string() ? in_quotes(item.get<std::string>()) : number(item);
      }
      line(value.front().is_string() ? fmt::format("{} = {};", name, items)
                                     : fmt::format("{} = /bits/ 64 <{}>;", name, items));
    }
  }

  void line(std::string_view text) { out_ += fmt::format("{:\t<{}}{}\n", "", depth_, text); }

  std::string out_;
  std::size_t depth_ = 0;
};

}  // namespace

std::string to_dts(const Json& report) {
  Writer writer;
  writer.node("/", report);
  return "/dts-v1/;\n\n" + writer.take();
}

}  // namespace luo::inspect
