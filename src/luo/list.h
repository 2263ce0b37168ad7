// Doubly linked lists in the arena. O(1) each, logged.
#pragma once
#include "luo/records.h"

namespace luo {

/// Of a node that is of this transaction: its own memory needs no log.
template <class T>
void list_append_fresh(kho::Arena& arena, kho::Tx& tx, ListRecord<T>& list, T* node) noexcept {
  const Ref<T> ref = arena.ref_of(node);
  node->links = Links<T>{list.last, {}};
  if (list.last) tx.set(arena.get(list.last)->links.next, ref);
  tx.set(list, ListRecord<T>{list.first ? list.first : ref, ref, list.count + 1});
}

template <class T>
void list_append(kho::Arena& arena, kho::Tx& tx, ListRecord<T>& list, T* node) noexcept {
  tx.save(&node->links, sizeof node->links);
  list_append_fresh(arena, tx, list, node);
}

template <class T>
void list_unlink(kho::Arena& arena, kho::Tx& tx, ListRecord<T>& list, T* node) noexcept {
  const Links<T> links = node->links;
  if (links.prev) tx.set(arena.get(links.prev)->links.next, links.next);
  if (links.next) tx.set(arena.get(links.next)->links.prev, links.prev);
  tx.set(list,
         ListRecord<T>{links.prev ? list.first : links.next, links.next ? list.last : links.prev, list.count - 1});
  tx.set(node->links, Links<T>{});
}

/// Puts all of `tail` behind `list`; `tail` is empty then.
template <class T>
void list_join(kho::Arena& arena, kho::Tx& tx, ListRecord<T>& list, ListRecord<T>& tail) noexcept {
  if (!tail.first) return;
  tx.set(arena.get(tail.first)->links.prev, list.last);
  if (list.last) tx.set(arena.get(list.last)->links.next, tail.first);
  tx.set(list, ListRecord<T>{list.first ? list.first : tail.first, tail.last, list.count + tail.count});
  tx.set(tail, ListRecord<T>{});
}

}  // namespace luo
