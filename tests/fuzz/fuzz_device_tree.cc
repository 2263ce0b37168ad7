// Any bytes as a device tree of subtrees' names: refused, or read, and then they are the one form that these names
// have. If the first byte's bit 0 is set, the header's magic, version and size are made right first, so that more of
// it gets past them.
#include <libfdt.h>

#include <cstdint>
#include <cstdlib>

#include "kho/device_tree.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace luo::kho;
  if (size == 0) return 0;
  const auto* first = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> tree{first + 1, first + size};
  if ((data[0] & 1) != 0 && tree.size() >= sizeof(fdt_header)) {
    fdt_set_magic(tree.data(), FDT_MAGIC);
    fdt_set_version(tree.data(), FDT_LAST_SUPPORTED_VERSION);
    fdt_set_last_comp_version(tree.data(), FDT_LAST_COMPATIBLE_VERSION);
    fdt_set_totalsize(tree.data(), static_cast<std::uint32_t>(tree.size()));
  }
  const auto nodes = device_tree::read(tree);
  if (!nodes) {
    if (nodes.error().code != EBADMSG) std::abort();
    return 0;
  }
  for (const device_tree::Node& node : *nodes)
    if (!device_tree::is_name(node.name)) std::abort();
  if (*device_tree::write(*nodes) != tree) std::abort();
  return 0;
}
