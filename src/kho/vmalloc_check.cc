// What must hold in preserved memory. Nothing here trusts what it reads.
#include <algorithm>
#include <map>
#include <vector>

#include "kho/vmalloc_format.h"

namespace luo::kho {

using namespace preserved;

namespace {

class Checker {
 public:
  Checker(const Arena& arena, const PreservedRoot& root) noexcept : arena_{arena}, root_{root} {}

  Result<> check_list(const PreservedLink& list, std::string_view name) {
    std::uint64_t previous = 0;
    for (std::uint64_t at = list.first; at != 0;) {
      const PreservedSubtree& tree = *LUO_TRY(record<PreservedSubtree>(at, kSubtreeMagic, "subtree"));
      if (tree.previous != previous) return bad("subtree {:#x} ({}): previous is {:#x}", at, name, tree.previous);
      const bool right = &list == &root_.current    ? tree.epoch == root_.epoch
                         : &list == &root_.incoming ? tree.epoch + 1 == root_.epoch
                                                    : tree.epoch + 1 < root_.epoch;
      if (!right) return bad("subtree {:#x} ({}): is of epoch {}, this is {}", at, name, tree.epoch, root_.epoch);
      if (tree.blob != 0 && &list == &root_.gone) return bad("subtree {:#x} was given up, but has a name", at);
      LUO_TRY(check_items(at, tree));
      previous = at;
      at = tree.next;
    }
    if (list.last != previous) return bad("list of subtrees ({}) ends at {:#x}, not {:#x}", name, previous, list.last);
    return {};
  }

  Result<> check_garbage() {
    for (std::uint64_t at = root_.garbage; at != 0;) {
      const PreservedItem& item = *LUO_TRY(record<PreservedItem>(at, kItemMagic, "item"));
      if (item.subtree != 0) return bad("item {:#x} waits to be released, but has a subtree", at);
      LUO_TRY(check_item(at, item, true));
      at = item.next;
    }
    return {};
  }

  /// After all lists.
  Result<> check_names() {
    const auto nodes = LUO_TRY_DURING("preserved memory", read_names(arena_, root_.names));
    if (root_.names.at != 0) LUO_TRY(block(root_.names.at, root_.names.bytes));
    for (const device_tree::Node& node : nodes) {
      const auto found = blobs_.find(node.subtree);
      if (found == blobs_.end()) return bad("{}: no subtree at {:#x}, or it has two names", node.name, node.subtree);
      const PreservedItem& blob = *found->second;
      if (blob.first != node.data || blob.size != node.size)
        return bad("{}: blob of {} bytes at {:#x}, not {} at {:#x}", node.name, blob.size, blob.first, node.size,
                   node.data);
      blobs_.erase(found);
    }
    if (!blobs_.empty()) return bad("subtree {:#x} has a blob, but no name", blobs_.begin()->first);
    return {};
  }

  Result<> check_blocks() {
    std::ranges::sort(blocks_);
    const auto twice = std::ranges::adjacent_find(blocks_);
    if (twice != blocks_.end()) return bad("block at {:#x} is used twice", *twice);
    return {};
  }

 private:
  template <class... Args>
  static std::unexpected<Error> bad(fmt::format_string<Args...> text, Args&&... args) {
    return fail(EBADMSG, "preserved memory: {}", fmt::format(text, std::forward<Args>(args)...));
  }

  /// Each block costs the arena something: more of them than there are means a loop.
  Result<> block(std::uint64_t at, std::uint64_t bytes) {
    if (bytes == 0 || arena_.usable_size(PhysAddr{at}) < bytes) return bad("no block of {} bytes at {:#x}", bytes, at);
    blocks_.push_back(at);
    if (blocks_.size() > arena_.stats().blocks) return bad("blocks are used twice");
    return {};
  }
  template <class Record>
  Result<const Record*> record(std::uint64_t at, std::uint64_t magic, std::string_view name) {
    const Record* found = arena_.checked(Ref<Record>{at});
    if (found == nullptr) return bad("no {} at {:#x}", name, at);
    if (found->magic != magic) return bad("{} at {:#x}: its magic is {:#x}", name, at, found->magic);
    LUO_TRY(block(at, sizeof(Record)));
    return found;
  }

  Result<> check_items(std::uint64_t subtree, const PreservedSubtree& tree) {
    std::uint64_t previous = 0, count = 0;
    const PreservedItem* blob = nullptr;
    for (std::uint64_t at = tree.items.first; at != 0; ++count) {
      const PreservedItem& item = *LUO_TRY(record<PreservedItem>(at, kItemMagic, "item"));
      if (item.subtree != subtree || item.previous != previous)
        return bad("item {:#x}: is of subtree {:#x} after {:#x}, not of {:#x} after {:#x}", at, item.subtree,
                   item.previous, subtree, previous);
      if (item.epoch < kFirstEpoch || item.epoch > root_.epoch)
        return bad("item {:#x}: is of epoch {}", at, item.epoch);
      LUO_TRY(check_item(at, item, false));
      if (at == tree.blob) blob = &item;
      previous = at;
      at = item.next;
    }
    if (tree.items.last != previous || tree.count != count)
      return bad("subtree {:#x}: {} items up to {:#x}, it says {} up to {:#x}", subtree, count, previous, tree.count,
                 tree.items.last);
    if (tree.blob == 0) return {};
    if (blob == nullptr || blob->scattered != 0) return bad("subtree {:#x}: no blob at {:#x}", subtree, tree.blob);
    blobs_[subtree] = blob;
    return {};
  }

  Result<> check_item(std::uint64_t at, const PreservedItem& item, bool garbage) {
    if (item.scattered == 0) {
      if (item.last != 0 || item.have != 0 || item.order != 0) return bad("item {:#x}: a list's field is used", at);
      return block(item.first, item.size);
    }
    if (item.scattered != 1 || item.order > PreservedMemory::kMaxOrder || item.size == 0 || item.have > item.size)
      return bad("item {:#x}: kind {}, order {}, {} of {} blocks", at, item.scattered, item.order, item.have,
                 item.size);
    std::uint64_t left = item.have, chunk = item.first, last = 0;
    while (left != 0) {
      const Chunk* words = arena_.checked(Ref<Chunk>{chunk});
      if (words == nullptr) return bad("item {:#x}: no chunk at {:#x}", at, chunk);
      LUO_TRY(block(chunk, sizeof(Chunk)));
      if (words->count == 0 || words->count > std::min<std::uint64_t>(kChunkBlocks, left))
        return bad("item {:#x}: chunk at {:#x} has {} blocks, {} are left", at, chunk, words->count, left);
      for (std::uint64_t n = 0; n < words->count; ++n) LUO_TRY(block(words->at[n], std::uint64_t{4096} << item.order));
      left -= words->count;
      last = chunk;
      chunk = words->next;
    }
    if (chunk != 0 || (!garbage && item.last != last))
      return bad("item {:#x}: its chunks end at {:#x}, not {:#x}", at, last, item.last);
    return {};
  }

  const Arena& arena_;
  const PreservedRoot& root_;
  std::vector<std::uint64_t> blocks_;
  std::map<std::uint64_t, const PreservedItem*> blobs_;  ///< of subtrees that should have a name
};

}  // namespace

Result<> PreservedMemory::check() const {
  if (root_->magic != kRootMagic) return fail(EBADMSG, "preserved memory: its magic is {:#x}", root_->magic);
  if (root_->epoch < kFirstEpoch) return fail(EBADMSG, "preserved memory: its epoch is {}", root_->epoch);
  Checker checker{*arena_, *root_};
  LUO_TRY(checker.check_list(root_->current, "current"));
  LUO_TRY(checker.check_list(root_->incoming, "incoming"));
  LUO_TRY(checker.check_list(root_->gone, "given up"));
  LUO_TRY(checker.check_garbage());
  LUO_TRY(checker.check_names());
  return checker.check_blocks();
}

}  // namespace luo::kho
