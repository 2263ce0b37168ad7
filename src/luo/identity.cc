#include "luo/identity.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

namespace luo {

Result<int> compare_files(int a, int b) {
  const pid_t self = getpid();
  const long order =
      syscall(SYS_kcmp, self, self, KCMP_FILE, static_cast<unsigned long>(a), static_cast<unsigned long>(b));
  if (order < 0) return sys_fail("kcmp(KCMP_FILE, fd {}, fd {})", a, b);
  if (order == 3) return fail(EOPNOTSUPP, "kcmp(KCMP_FILE, fd {}, fd {}): this kernel gives no order", a, b);
  return order == 0 ? 0 : (order == 1 ? -1 : 1);
}

std::uint64_t Identities::hash_of(std::uint64_t group, std::uint64_t object) const noexcept {
  const std::array<std::uint64_t, 2> key{group, object};
  return siphash13(root_->key, std::as_bytes(std::span{key}));
}

std::uint64_t Identities::priority_of(Ref<FileRecord> file) const noexcept {
  return siphash13(root_->key, std::as_bytes(std::span{&file.at, 1}));
}

Result<> Identities::reserve(kho::Tx& tx) {
  LUO_TRY(plain().reserve(tx));
  LUO_TRY(trees().reserve(tx));
  return {};
}

Result<Identities::Spot> Identities::find(const Identity& identity, int fd) const {
  const std::uint64_t hash = hash_of(identity.group, identity.object);
  Spot spot;
  spot.hash = hash;
  if (!identity.per_open_file) {
    spot.same.at = plain().find(hash, [&](std::uint64_t ref) {
      const FileRecord* file = arena_->get(Ref<FileRecord>{ref});
      return file->group == identity.group && file->object == identity.object;
    });
    return spot;
  }
  spot.tree.at = trees().find(hash, [&](std::uint64_t ref) {
    const TreeRecord* tree = arena_->get(Ref<TreeRecord>{ref});
    return tree->group == identity.group && tree->object == identity.object;
  });
  if (!spot.tree) return spot;
  for (Ref<FileRecord> at = arena_->get(spot.tree)->root; at;) {
    const FileRecord* file = arena_->get(at);
    const int order = LUO_TRY(compare_files(fd, file->fd));
    if (order == 0) {
      spot.same = at;
      return spot;
    }
    spot.parent = at;
    spot.left = order < 0;
    at = spot.left ? file->left : file->right;
  }
  return spot;
}

Result<> Identities::insert(kho::Tx& tx, const Spot& spot, const Identity& identity, Ref<FileRecord> file) {
  FileRecord* record = arena_->get(file);  // fresh: needs no log
  record->indexed = 1;
  record->group = identity.group;
  record->object = identity.object;
  if (!identity.per_open_file) {
    plain().insert(tx, spot.hash, file.at);
    return {};
  }
  Ref<TreeRecord> at = spot.tree;
  if (!at) {
    at = LUO_TRY(tx.make<TreeRecord>());
    *arena_->get(at) = TreeRecord{kTreeMagic, identity.group, identity.object, {}, 0};
    trees().insert(tx, spot.hash, at.at);
  }
  TreeRecord& tree = *arena_->get(at);
  record->tree = at;
  record->left = record->right = {};
  record->up = spot.parent;
  record->priority = priority_of(file);
  tx.set(tree.count, tree.count + 1);
  if (!spot.parent) {
    tx.set(tree.root, file);
    return {};
  }
  FileRecord* parent = arena_->get(spot.parent);
  tx.set(spot.left ? parent->left : parent->right, file);
  while (record->up && arena_->get(record->up)->priority < record->priority) lift(tx, tree, file);
  return {};
}

void Identities::replace_child(kho::Tx& tx, TreeRecord& tree, Ref<FileRecord> parent, Ref<FileRecord> from,
                               Ref<FileRecord> to) noexcept {
  if (!parent) {
    tx.set(tree.root, to);
    return;
  }
  FileRecord* above = arena_->get(parent);
  tx.set(above->left == from ? above->left : above->right, to);
}

/// Exchanges a node with its parent; the order of the tree stays.
void Identities::lift(kho::Tx& tx, TreeRecord& tree, Ref<FileRecord> node) noexcept {
  FileRecord* x = arena_->get(node);
  const Ref<FileRecord> parent = x->up;
  FileRecord* p = arena_->get(parent);
  const Ref<FileRecord> above = p->up;
  const bool was_left = p->left == node;
  const Ref<FileRecord> moving = was_left ? x->right : x->left;
  tx.set(was_left ? p->left : p->right, moving);
  if (moving) tx.set(arena_->get(moving)->up, parent);
  tx.set(was_left ? x->right : x->left, parent);
  tx.set(p->up, node);
  tx.set(x->up, above);
  replace_child(tx, tree, above, parent, node);
}

void Identities::remove(kho::Tx& tx, Ref<FileRecord> file) noexcept {
  FileRecord* record = arena_->get(file);
  if (record->indexed == 0) return;
  tx.set(record->indexed, 0U);
  const std::uint64_t hash = hash_of(record->group, record->object);
  if (!record->tree) {
    LUO_CHECK(plain().remove(tx, hash, file.at));
    return;
  }
  const Ref<TreeRecord> at = record->tree;
  TreeRecord& tree = *arena_->get(at);
  while (record->left && record->right) {
    const bool left_first = arena_->get(record->left)->priority > arena_->get(record->right)->priority;
    lift(tx, tree, left_first ? record->left : record->right);
  }
  const Ref<FileRecord> child = record->left ? record->left : record->right;
  if (child) tx.set(arena_->get(child)->up, record->up);
  replace_child(tx, tree, record->up, file, child);
  tx.set(tree.count, tree.count - 1);
  tx.set(record->tree, Ref<TreeRecord>{});
  if (tree.count == 0) {
    LUO_CHECK(trees().remove(tx, hash, at.at));
    tx.release(at);
  }
}

bool Identities::has(Ref<FileRecord> file) const noexcept {
  const FileRecord* record = arena_->get(file);
  const std::uint64_t hash = hash_of(record->group, record->object);
  if (!record->tree) return plain().contains(hash, file.at);
  return trees().contains(hash, record->tree.at);
}

}  // namespace luo
