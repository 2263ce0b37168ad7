#include "kho/kernel_tree.h"

#include <libfdt.h>

#include <algorithm>
#include <cstring>
#include <string_view>

namespace luo::kho::kernel_tree {
namespace {

constexpr std::string_view kCompatible = "kho-v4";
constexpr const char *kMap = "preserved-memory-map", *kData = "preserved-data", *kSize = "blob-size";
// In the order in which the kernel first uses them; the array's own zero ends the last one.
constexpr char kStrings[] = "preserved-memory-map\0compatible\0preserved-data\0blob-size";
constexpr std::size_t kMaxName = 63;

template <class... Args>
std::unexpected<Error> bad(fmt::format_string<Args...> text, Args&&... args) {
  return fail(EBADMSG, "device tree: {}", fmt::format(text, std::forward<Args>(args)...));
}

/// In this machine's byte order, which is not that of device trees.
Result<std::uint64_t> number(const void* tree, int node, const char* property, std::string_view of) {
  int length = 0;
  const void* const at = ::fdt_getprop(tree, node, property, &length);
  if (at == nullptr || length != 8) return bad("{}: {} is missing, or no number", of, property);
  std::uint64_t value = 0;
  std::memcpy(&value, at, sizeof value);
  return value;
}

/// Adds what was cut off: nothing but the end of the strings, if they are those that the kernel always has.
Result<> complete(std::vector<std::byte>& tree, std::size_t whole) {
  const std::size_t strings = fdt_off_dt_strings(tree.data()), shown = tree.size();
  const bool known = fdt_size_dt_strings(tree.data()) == sizeof kStrings && strings <= shown &&
                     whole == strings + sizeof kStrings &&
                     std::memcmp(tree.data() + strings, kStrings, shown - strings) == 0;
  if (!known) return bad("{} of its {} bytes are shown, and what is missing is not known", shown, whole);
  const auto missing = std::as_bytes(std::span{kStrings}).subspan(shown - strings);
  tree.insert(tree.end(), missing.begin(), missing.end());
  return {};
}

bool can_be_shown(std::string_view name) {
  return !name.empty() && name.size() <= kMaxName &&
         std::ranges::all_of(name, [](char c) { return c > 32 && c < 127; });
}

}  // namespace

Result<Root> read(std::span<const std::byte> shown) {
  if (shown.size() < sizeof(fdt_header) || shown.size() > kMaxBytes) return bad("it has {} bytes", shown.size());
  std::vector<std::byte> copy{shown.begin(), shown.end()};  // libfdt wants it aligned
  if (fdt_magic(copy.data()) != FDT_MAGIC) return bad("its magic is {:#x}", fdt_magic(copy.data()));
  const std::size_t whole = fdt_totalsize(copy.data());
  if (whole > kMaxBytes) return bad("its size is {}", whole);
  Root root;
  root.bytes = whole;
  if (copy.size() < whole) {
    LUO_TRY(complete(copy, whole));
    root.completed = true;
  }
  const void* const tree = copy.data();
  if (const int error = ::fdt_check_full(tree, copy.size()); error != 0) return bad("{}", ::fdt_strerror(error));
  int length = 0;
  const auto* const compatible = static_cast<const char*>(::fdt_getprop(tree, 0, "compatible", &length));
  if (compatible == nullptr || length < 1 || compatible[length - 1] != '\0') return bad("it does not say its format");
  root.compatible = compatible;
  if (root.compatible != kCompatible)
    return fail(EPROTO, "device tree: its format is '{}', known here is {}",
                can_be_shown(root.compatible) ? root.compatible : "?", kCompatible);
  root.map = LUO_TRY(number(tree, 0, kMap, "/"));
  for (int at = ::fdt_first_subnode(tree, 0); at >= 0; at = ::fdt_next_subnode(tree, at)) {
    const char* const name = ::fdt_get_name(tree, at, &length);
    if (name == nullptr || !can_be_shown({name, static_cast<std::size_t>(length)}))
      return bad("node at {}: no possible name", at);
    if (std::ranges::find(root.subtrees, std::string_view{name}, &Subtree::name) != root.subtrees.end())
      return bad("{} is there twice", name);
    Subtree subtree{name, 0, 0};
    subtree.data = LUO_TRY(number(tree, at, kData, subtree.name));
    subtree.size = LUO_TRY(number(tree, at, kSize, subtree.name));
    root.subtrees.push_back(std::move(subtree));
  }
  return root;
}

}  // namespace luo::kho::kernel_tree
