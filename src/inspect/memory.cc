// Preserved memory: subtrees of each epoch and what is in them. Reads records, not the blocks that they lead to.
#include <map>

#include "base/text.h"
#include "inspect/parts.h"
#include "kho/device_tree.h"
#include "kho/image_checksum.h"
#include "kho/vmalloc_format.h"

namespace luo::inspect {
namespace {

using kho::PreservedItem;
using kho::PreservedLink;
using kho::PreservedSubtree;
using kho::Ref;

/// These lists do not say how long they are: as long as there are blocks for their records, at most.
template <class Record, class Visit>
void walk(const kho::Snapshot& arena, std::string_view what, std::uint64_t magic, std::uint64_t at,
          std::uint64_t& records_left, std::vector<Error>& faults, Visit visit) {
  while (at != 0) {
    auto record = arena.get(Ref<Record>{at});
    if (!record) return faults.push_back(std::move(record).error().during(what));
    if (record->magic != magic)
      return faults.push_back({EBADMSG, fmt::format("{} at {:#x}: magic is {:#x}", what, at, record->magic)});
    if (records_left-- == 0)
      return faults.push_back({EBADMSG, fmt::format("{} at {:#x}: its list does not end", what, at)});
    visit(at, *record);
    at = record->next;
  }
}

Json item_of(std::uint64_t at, const PreservedItem& item) {
  Json out = {{"at", at}, {"epoch", item.epoch}, {"scattered", item.scattered != 0}};
  if (item.scattered != 0) {
    out["block_bytes"] = item.order < 48 ? kho::kPageBytes << item.order : 0;
    out["blocks"] = item.size;
    out["blocks_there"] = item.have;
  } else {
    out["block"] = item.first;
    out["bytes"] = item.size;
  }
  return out;
}

/// The names of subtrees, by where the subtree is.
Result<std::map<std::uint64_t, kho::device_tree::Node>> names_of(const kho::Snapshot& arena,
                                                                 const kho::PreservedNames& names) {
  std::map<std::uint64_t, kho::device_tree::Node> out;
  if (names.at == 0) return out;
  if (names.bytes > kho::device_tree::kMaxBytes)
    return fail(EBADMSG, "names at {:#x}: {} bytes are too many", names.at, names.bytes);
  std::vector<std::byte> tree(names.bytes);
  LUO_TRY_DURING("names", arena.read(PhysAddr{names.at}, tree));
  if (kho::image_checksum(tree) != names.sum) return fail(EBADMSG, "names at {:#x}: their checksum differs", names.at);
  for (kho::device_tree::Node& node : LUO_TRY_DURING("names", kho::device_tree::read(tree)))
    out.emplace(node.subtree, std::move(node));
  return out;
}

}  // namespace

Json memory_of(const kho::Snapshot& arena, Ref<kho::PreservedRoot> root, std::vector<Error>& faults) {
  const auto record = arena.get(root);
  if (!record) {
    faults.push_back(Error{record.error()}.during("preserved memory"));
    return Json::object();
  }
  std::uint64_t left = arena.state().blocks;
  auto names = names_of(arena, record->names);
  if (!names) faults.push_back(Error{names.error()}.during("preserved memory"));
  Json trees = Json::array();
  const auto show = [&](const PreservedLink& list, std::string_view side) {
    walk<PreservedSubtree>(
        arena, "preserved memory: subtree", kho::preserved::kSubtreeMagic, list.first, left, faults,
        [&](std::uint64_t at, const PreservedSubtree& tree) {
          Json items = Json::array();
          walk<PreservedItem>(
              arena, "preserved memory: item", kho::preserved::kItemMagic, tree.items.first, left, faults,
              [&](std::uint64_t place, const PreservedItem& item) { items.push_back(item_of(place, item)); });
          if (items.size() != tree.count)
            faults.push_back({EBADMSG, fmt::format("preserved memory: subtree at {:#x}: {} items, it counts {}", at,
                                                   items.size(), tree.count)});
          trees.push_back({{"at", at}, {"side", side}, {"epoch", tree.epoch}, {"claimer", tree.claimer}});
          if (const auto name = names ? names->find(at) : decltype(names->end()){}; names && name != names->end()) {
            trees.back()["name"] = printable_name(name->second.name);
            trees.back()["blob"] = name->second.data;
            trees.back()["blob_bytes"] = name->second.size;
          }
          trees.back()["items"] = std::move(items);
        });
  };
  show(record->current, "current");
  show(record->incoming, "incoming");
  show(record->gone, "given up");
  return {{"epoch", record->epoch}, {"to_be_released", record->garbage != 0}, {"subtrees", std::move(trees)}};
}

}  // namespace luo::inspect
