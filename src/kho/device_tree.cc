#include "kho/device_tree.h"

#include <libfdt.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

namespace luo::kho::device_tree {
namespace {

constexpr std::string_view kCompatible = "luo,kho-v1";
constexpr const char* kData = "preserved-data";
constexpr const char* kSize = "blob-size";
constexpr const char* kSubtree = "preserved-subtree";
constexpr std::size_t kMaxName = 63;
constexpr std::size_t kFrame = 512;                  // more than all that is there once
constexpr std::size_t kPerNode = 3 * (12 + 8) + 16;  // and for each name, beside the name itself

template <class... Args>
std::unexpected<Error> bad(fmt::format_string<Args...> text, Args&&... args) {
  return fail(EBADMSG, "device tree: {}", fmt::format(text, std::forward<Args>(args)...));
}

std::uint64_t cells(std::uint64_t value) noexcept {
  return std::endian::native == std::endian::little ? __builtin_bswap64(value) : value;
}

Result<std::uint64_t> number(const void* tree, int node, const char* property, const std::string& name) {
  int length = 0;
  const void* at = ::fdt_getprop(tree, node, property, &length);
  if (at == nullptr || length != 8) return bad("{}: {} is missing, or no number", name, property);
  std::uint64_t value = 0;
  std::memcpy(&value, at, sizeof value);
  return cells(value);
}

}  // namespace

bool is_name(std::string_view name) noexcept {
  const auto is_letter_or_digit = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  return !name.empty() && name.size() <= kMaxName && is_letter_or_digit(name.front()) &&
         std::ranges::all_of(name, [&](char c) {
           return is_letter_or_digit(c) || std::string_view{",._+-"}.find(c) != std::string_view::npos;
         });
}

Result<std::vector<std::byte>> write(std::span<const Node> nodes) {
  std::size_t most = kFrame;
  for (const Node& node : nodes) most += kPerNode + node.name.size();
  std::vector<std::byte> tree(most);  // of zeros: libfdt leaves the padding as it is
  void* const at = tree.data();
  int error = ::fdt_create(at, static_cast<int>(most));
  const auto step = [&error](auto&& call) {
    if (error == 0) error = call();
  };
  const auto property = [&](const char* name, std::uint64_t value) {
    const std::uint64_t number = cells(value);
    step([&] { return ::fdt_property(at, name, &number, sizeof number); });
  };
  step([&] { return ::fdt_finish_reservemap(at); });
  step([&] { return ::fdt_begin_node(at, ""); });
  step([&] { return ::fdt_property(at, "compatible", kCompatible.data(), static_cast<int>(kCompatible.size()) + 1); });
  for (const Node& node : nodes) {
    step([&] { return ::fdt_begin_node(at, node.name.c_str()); });
    property(kData, node.data);
    property(kSize, node.size);
    property(kSubtree, node.subtree);
    step([&] { return ::fdt_end_node(at); });
  }
  step([&] { return ::fdt_end_node(at); });
  step([&] { return ::fdt_finish(at); });
  LUO_CHECK(error == 0);  // the room was counted
  tree.resize(fdt_totalsize(at));
  if (tree.size() > kMaxBytes)
    return fail(ENOMEM, "device tree: {} names need {} bytes, at most {}", nodes.size(), tree.size(), kMaxBytes);
  return tree;
}

Result<std::vector<Node>> read(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(fdt_header) || bytes.size() > kMaxBytes) return bad("it has {} bytes", bytes.size());
  // A copy: whoever else can write it must not change it under libfdt's checks, and libfdt wants it aligned.
  const std::vector<std::byte> copy{bytes.begin(), bytes.end()};
  const void* const tree = copy.data();
  if (fdt_magic(tree) != FDT_MAGIC) return bad("its magic is {:#x}", fdt_magic(tree));
  if (fdt_version(tree) != FDT_LAST_SUPPORTED_VERSION) return bad("its version is {}", fdt_version(tree));
  if (fdt_totalsize(tree) != copy.size()) return bad("its size is {}, not {}", fdt_totalsize(tree), copy.size());
  if (const int error = ::fdt_check_full(tree, copy.size()); error != 0) return bad("{}", ::fdt_strerror(error));
  int length = 0;
  const void* const compatible = ::fdt_getprop(tree, 0, "compatible", &length);
  if (compatible == nullptr || length != static_cast<int>(kCompatible.size()) + 1 ||
      std::memcmp(compatible, kCompatible.data(), kCompatible.size() + 1) != 0)
    return bad("it is not compatible with {}", kCompatible);
  std::vector<Node> nodes;
  std::set<std::string_view> names;
  for (int at = ::fdt_first_subnode(tree, 0); at >= 0; at = ::fdt_next_subnode(tree, at)) {
    const char* const name = ::fdt_get_name(tree, at, &length);
    if (name == nullptr || !is_name(std::string_view{name, static_cast<std::size_t>(length)}))
      return bad("node at {}: no possible name", at);
    if (!names.insert(name).second) return bad("node at {}: {} is there twice", at, name);
    Node node{name, 0, 0, 0};
    node.data = LUO_TRY(number(tree, at, kData, node.name));
    node.size = LUO_TRY(number(tree, at, kSize, node.name));
    node.subtree = LUO_TRY(number(tree, at, kSubtree, node.name));
    nodes.push_back(std::move(node));
  }
  // Whatever else there may be in a device tree, there is nothing else in this one.
  const auto again = write(nodes);
  if (!again || *again != copy) return bad("its {} names are not written as they should be", nodes.size());
  return nodes;
}

}  // namespace luo::kho::device_tree
