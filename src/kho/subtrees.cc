#include "kho/subtrees.h"

#include <algorithm>

#include "kho/image_checksum.h"
#include "kho/vmalloc_format.h"

namespace luo::kho {

using namespace preserved;
using device_tree::Node;

namespace preserved {

Result<std::vector<Node>> read_names(const Arena& arena, const PreservedNames& names) {
  if (names.at == 0 && names.bytes == 0 && names.sum == 0) return std::vector<Node>{};
  const std::byte* const tree = arena.checked(Ref<std::byte>{names.at}, names.bytes);
  if (tree == nullptr || arena.usable_size(PhysAddr{names.at}) == 0)
    return fail(EBADMSG, "device tree: no block of {} bytes at {:#x}", names.bytes, names.at);
  if (image_checksum({tree, names.bytes}) != names.sum)
    return fail(EBADMSG, "device tree: checksum of {} bytes at {:#x} differs", names.bytes, names.at);
  std::vector<Node> nodes = LUO_TRY(device_tree::read({tree, names.bytes}));
  if (nodes.empty()) return fail(EBADMSG, "device tree: it has no names");
  return nodes;
}

/// Only what is larger needs memory, so that giving up never fails for want of it.
Result<> store_names(Tx& tx, const Arena& arena, PreservedNames& names, std::span<const Node> nodes) {
  if (nodes.empty()) {
    tx.release(PhysAddr{names.at});
    tx.set(names, {});
    return {};
  }
  const std::vector<std::byte> tree = LUO_TRY(device_tree::write(nodes));
  std::uint64_t at = names.at;
  if (at == 0 || arena.usable_size(PhysAddr{at}) < tree.size()) {
    at = LUO_TRY(tx.allocate(tree.size())).raw();
    tx.release(PhysAddr{names.at});
  } else {
    tx.save(arena.get(Ref<std::byte>{at}), tree.size());
  }
  std::memcpy(arena.get(Ref<std::byte>{at}), tree.data(), tree.size());
  tx.set(names, {at, tree.size(), image_checksum(tree)});
  return {};
}

}  // namespace preserved

namespace {

std::unexpected<Error> malformed(Error error) {
  error.code = EINVAL;
  return std::unexpected(std::move(error).during("names of subtrees"));
}

}  // namespace

/// Of those that have been given up.
Result<> PreservedMemory::forget_names(Tx& tx) {
  auto nodes = read_names(*arena_, root_->names);
  if (!nodes) return malformed(std::move(nodes).error());
  std::vector<Node> left;
  for (Node& node : *nodes) {
    PreservedSubtree* tree = arena_->checked(Subtree{node.subtree});
    if (tree == nullptr || tree->magic != kSubtreeMagic)
      return malformed({EINVAL, fmt::format("{}: no subtree at {:#x}", node.name, node.subtree)});
    if (tree->epoch + 1 < root_->epoch) tx.set(tree->blob, 0);
    else left.push_back(std::move(node));
  }
  if (left.size() == nodes->size()) return {};
  return store_names(tx, *arena_, root_->names, left);
}

Result<NamedSubtree> Subtrees::add(Tx& tx, std::string_view name, Bytes size) {
  LUO_TRY(memory_.room(tx));
  if (!device_tree::is_name(name)) return fail(EINVAL, "add subtree '{}': not a possible name", name);
  if (size == Bytes{0}) return fail(EINVAL, "add subtree {}: a blob of 0 bytes", name);
  auto nodes = read_names(*memory_.arena_, memory_.root_->names);
  if (!nodes) return malformed(std::move(nodes).error());
  if (std::ranges::find(*nodes, name, &Node::name) != nodes->end())
    return fail(EEXIST, "add subtree {}: there is one of that name", name);
  const Tx::Mark mark = tx.mark();
  const auto make = [&]() -> Result<NamedSubtree> {
    const PreservedMemory::Subtree subtree = LUO_TRY(memory_.make_subtree(tx));
    const PreservedMemory::Item item = LUO_TRY(memory_.alloc_preserve(tx, subtree, size));
    memory_.arena_->get(subtree)->blob = item.at;
    const PhysAddr blob = memory_.address(item);
    nodes->push_back({std::string{name}, blob.raw(), size.raw(), subtree.at});
    LUO_TRY(store_names(tx, *memory_.arena_, memory_.root_->names, *nodes));
    return NamedSubtree{std::string{name}, subtree, blob, size, 0, false};
  };
  auto made = make();
  if (!made) {
    tx.back_to(mark);
    return std::unexpected(std::move(made).error().during(fmt::format("add subtree {}", name)));
  }
  return made;
}

Result<NamedSubtree> Subtrees::add(Tx& tx, std::string_view name, std::span<const std::byte> blob) {
  NamedSubtree made = LUO_TRY(add(tx, name, Bytes{blob.size()}));
  std::memcpy(memory_.arena_->get(Ref<std::byte>{made.blob.raw()}), blob.data(), blob.size());
  return made;
}

Result<> Subtrees::remove(Tx& tx, std::string_view name) {
  LUO_TRY(memory_.room(tx));
  const NamedSubtree found = LUO_TRY_DURING("remove subtree", find(name));
  return memory_.drop(tx, found.subtree);
}

Result<NamedSubtree> Subtrees::retrieve(std::string_view name) const {
  return LUO_TRY_DURING("retrieve subtree", find(name));
}

Result<NamedSubtree> Subtrees::claim(Tx& tx, std::string_view name, std::uint64_t claimer) {
  NamedSubtree found = LUO_TRY_DURING("claim subtree", find(name));
  LUO_TRY_DURING(name, memory_.claim(tx, found.subtree, claimer));
  found.claimer = claimer;
  found.incoming = false;
  return found;
}

Result<std::vector<NamedSubtree>> Subtrees::list() const {
  const Arena& arena = *memory_.arena_;
  auto nodes = read_names(arena, memory_.root_->names);
  if (!nodes) return malformed(std::move(nodes).error());
  std::vector<NamedSubtree> named;
  for (Node& node : *nodes) {
    const PreservedMemory::Subtree subtree{node.subtree};
    const auto tree = memory_.find(subtree);
    const PreservedItem* item = tree ? arena.checked(PreservedMemory::Item{(*tree)->blob}) : nullptr;
    if (item == nullptr || item->magic != kItemMagic || item->subtree != subtree.at || item->scattered != 0 ||
        item->first != node.data || item->size != node.size || arena.usable_size(PhysAddr{node.data}) < node.size)
      return malformed({EINVAL, fmt::format("{}: it leads elsewhere", node.name)});
    named.push_back({std::move(node.name), subtree, PhysAddr{node.data}, Bytes{node.size}, (*tree)->claimer,
                     (*tree)->epoch != memory_.epoch()});
  }
  return named;
}

Result<NamedSubtree> Subtrees::find(std::string_view name) const {
  std::vector<NamedSubtree> named = LUO_TRY(list());
  const auto found = std::ranges::find(named, name, &NamedSubtree::name);
  if (found == named.end()) return fail(ENOENT, "there is no '{}'", name);
  return std::move(*found);
}

std::span<const std::byte> Subtrees::device_tree() const noexcept {
  const PreservedNames& names = memory_.root_->names;
  const std::byte* const tree = memory_.arena_->checked(Ref<std::byte>{names.at}, names.bytes);
  return {tree, tree == nullptr ? 0 : names.bytes};
}

}  // namespace luo::kho
