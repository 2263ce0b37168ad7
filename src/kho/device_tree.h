// The flattened device tree of subtrees' names, in bytes: written and read with libfdt. The kernel's: kernel_tree.h.
//
//   / {
//     compatible = "luo,kho-v1";
//     NAME {
//       preserved-data = <u64>;     address of the blob
//       blob-size = <u64>;          in bytes
//       preserved-subtree = <u64>;  address of the PreservedSubtree
//     };
//   };
//
// Numbers are big-endian, as everywhere in device trees. A set of names has one form, which is all that is read:
// version 17, nothing reserved, one copy of each string, no gaps, and the names in the order in which they came.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace luo::kho::device_tree {

inline constexpr std::size_t kMaxBytes = std::size_t{64} << 10;

struct Node {
  std::string name;
  std::uint64_t data, size, subtree;
  friend bool operator==(const Node&, const Node&) = default;
};

/// 1 to 63 of letters, digits and ,._+- that do not start with one of ,._+-
bool is_name(std::string_view name) noexcept;

/// Names are different, and such names. ENOMEM: they need more than kMaxBytes.
Result<std::vector<std::byte>> write(std::span<const Node> nodes);

/// Trusts nothing. EBADMSG says what is wrong.
Result<std::vector<Node>> read(std::span<const std::byte> tree);

}  // namespace luo::kho::device_tree
