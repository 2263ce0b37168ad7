// What few files have: others that they depend on. Those are preserved before them and given up after them.
#include <algorithm>

#include "luo/engine_impl.h"

namespace luo {

RelationRecord* Engine::Impl::relation_of(Ref<FileRecord> file) const noexcept {
  if (root->relations.count == 0) return nullptr;
  return at(Ref<RelationRecord>{table(root->relations).find(hash_place(file), [&](std::uint64_t found) {
    return at(Ref<RelationRecord>{found})->file == file;
  })});
}

/// In the transaction of the file that depends on others.
Result<> Engine::Impl::relate(kho::Tx& tx, const SessionRecord& session, Ref<FileRecord> file,
                              std::span<const std::uint64_t> after) {
  const auto relation = [&](Ref<FileRecord> of) -> Result<RelationRecord*> {
    if (RelationRecord* known = relation_of(of)) return known;
    LUO_TRY(table(root->relations).reserve(tx));
    const Ref<RelationRecord> ref = LUO_TRY(tx.make<RelationRecord>());
    at(ref)->magic = kRelationMagic;
    at(ref)->file = of;
    table(root->relations).insert(tx, hash_place(of), ref.at);
    return at(ref);
  };
  RelationRecord& own = *LUO_TRY(relation(file));
  for (const std::uint64_t token : after) {
    const Ref<FileRecord> other = arena.ref_of(find_file(session, token));
    RelationRecord& others = *LUO_TRY(relation(other));
    tx.set(others.dependents, others.dependents + 1);
    own.on[own.count++] = other;
  }
  return {};
}

/// Of a file that is given up. Nobody depends on it any more: those were given up before.
void Engine::Impl::unrelate(kho::Tx& tx, Ref<FileRecord> file) noexcept {
  RelationRecord* own = relation_of(file);
  if (own == nullptr) return;
  const auto drop = [&](RelationRecord* relation) {
    const Ref<RelationRecord> ref = arena.ref_of(relation);
    LUO_CHECK(table(root->relations).remove(tx, hash_place(relation->file), ref.at));
    tx.release(ref);
  };
  for (std::uint64_t i = 0; i < own->count; ++i) {
    RelationRecord* other = relation_of(own->on[i]);
    if (other == nullptr) continue;
    tx.set(other->dependents, other->dependents - 1);
    if (other->dependents == 0 && other->count == 0) drop(other);
  }
  drop(own);
}

std::vector<Token> Engine::depends_on(SessionId id, Token token) const {
  std::vector<Token> tokens;
  const SessionRecord* session = impl_->find(id);
  if (session == nullptr || impl_->is_dead(*session)) return tokens;
  const FileRecord* file = impl_->find_file(*session, token.raw());
  const RelationRecord* relation = file == nullptr ? nullptr : impl_->relation_of(impl_->arena.ref_of(file));
  if (relation == nullptr) return tokens;
  for (std::uint64_t i = 0; i < relation->count; ++i) tokens.push_back(Token{impl_->at(relation->on[i])->token});
  return tokens;
}

}  // namespace luo
