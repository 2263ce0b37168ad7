// Hash tables against std::multimap, with collisions and abandoned steps.
#include "luo/table.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "luo/engine.h"

namespace luo {
namespace {

using Pair = std::pair<std::uint64_t, std::uint64_t>;

struct TableTest : ::testing::Test {
  TableTest() : arena{*kho::Arena::create({.name = "table-test", .layout = Engine::kLayout, .max_size = 64_MiB})} {
    kho::Tx tx{arena};
    record = arena.get(*tx.make<TableRecord>());
    tx.commit();
  }
  Table table() { return {arena, *record}; }
  void expect(const std::multiset<Pair>& model) {
    const auto sound = table().check("test");
    ASSERT_TRUE(sound.has_value()) << to_string(sound.error());
    ASSERT_EQ(record->count, model.size());
    for (const auto& [hash, ref] : model) ASSERT_TRUE(table().contains(hash, ref)) << hash << " " << ref;
  }
  kho::Arena arena;
  TableRecord* record;
};

TEST_F(TableTest, AgreesWithAModelUnderCollisions) {
  std::mt19937_64 random{7};
  std::multiset<Pair> model;
  for (int round = 0; round < 4000; ++round) {
    kho::Tx tx{arena};
    std::multiset<Pair> next = model;
    for (std::uint64_t n = random() % 8; n > 0; --n) {
      // Hashes from a small range make long clusters that wrap around.
      const bool growing = round / 500 % 2 == 0;
      if (next.empty() || random() % 10 < (growing ? 7U : 3U)) {
        const Pair pair{random() % 40 | (random() % 2 << 62) | 0xfff0, 16 * (1 + random() % 1000)};
        ASSERT_TRUE(table().reserve(tx).has_value());
        table().insert(tx, pair.first, pair.second);
        next.insert(pair);
      } else {
        auto victim = next.begin();
        std::advance(victim, random() % next.size());
        EXPECT_TRUE(table().remove(tx, victim->first, victim->second));
        next.erase(victim);
      }
      EXPECT_FALSE(table().remove(tx, 1, 16));
    }
    if (random() % 4 == 0) {
      tx.abort();
    } else {
      tx.commit();
      model = std::move(next);
    }
    if (round % 10 == 0) expect(model);
  }
  expect(model);
}

TEST_F(TableTest, GrowsAndShrinksWithItsContent) {
  for (std::uint64_t i = 1; i <= 5000; ++i) {
    kho::Tx tx{arena};
    ASSERT_TRUE(table().reserve(tx).has_value());
    table().insert(tx, i * 0x9e3779b97f4a7c15ULL, i);
    EXPECT_LT(arena.stats().max_bytes, UINT64_MAX);
    tx.commit();
  }
  EXPECT_EQ(record->capacity, 16384U);
  for (std::uint64_t i = 1; i <= 5000; ++i) {
    kho::Tx tx{arena};
    EXPECT_TRUE(table().remove(tx, i * 0x9e3779b97f4a7c15ULL, i));
    tx.commit();
  }
  EXPECT_EQ(record->count, 0U);
  EXPECT_LE(record->capacity, 64U);
  kho::Tx tx{arena};
  table().release(tx);
  tx.commit();
  EXPECT_EQ(arena.stats().blocks, 1U);
}

TEST_F(TableTest, RefusesARecordThatCannotBe) {
  {
    kho::Tx tx{arena};
    ASSERT_TRUE(table().reserve(tx).has_value());
    table().insert(tx, 5, 16);
    tx.commit();
  }
  const TableRecord good = *record;
  for (const TableRecord bad : {TableRecord{{}, 0, 1}, TableRecord{{}, 16, 0}, TableRecord{good.slots, 15, 1},
                                TableRecord{good.slots, 1ULL << 60, 1}, TableRecord{good.slots, 16, 2},
                                TableRecord{good.slots, 16, 0}, TableRecord{good.slots, 16, 1ULL << 63 | 1},
                                TableRecord{{good.slots.at + 16}, 16, 1}, TableRecord{{~0ULL}, 16, 1}}) {
    *record = bad;
    const auto result = table().check("test");
    ASSERT_FALSE(result.has_value()) << bad.capacity << " " << bad.count;
    EXPECT_EQ(result.error().code, EBADMSG);
  }
  *record = good;
  EXPECT_TRUE(table().check("test").has_value());
}

}  // namespace
}  // namespace luo
