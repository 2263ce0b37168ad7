// The device tree by which Linux hands memory over a kexec (KHO), as its debugfs shows it. Read only, with libfdt.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace luo::kho::kernel_tree {

inline constexpr std::size_t kMaxBytes = std::size_t{64} << 10;

struct Subtree {
  std::string name;
  std::uint64_t data;  ///< physical address of the blob
  std::uint64_t size;  ///< in bytes
};

struct Root {
  std::string compatible;
  std::uint64_t map;       ///< physical address of the map of preserved memory
  std::uint64_t bytes;     ///< that the whole tree has
  bool completed = false;  ///< the end was missing, and could only have been one thing
  std::vector<Subtree> subtrees;
};

/// Trusts nothing. Linux 7.3 shows of its outgoing tree only as many bytes as it had at boot: what is cut off are the
/// names of properties, which are filled in if what is there leaves no doubt. EPROTO: of another format. EBADMSG says
/// what is wrong.
Result<Root> read(std::span<const std::byte> shown);

}  // namespace luo::kho::kernel_tree
