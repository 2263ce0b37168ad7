#include "cache/table.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <random>

#include "cache/store.h"

namespace luo::cache {
namespace {

std::unique_ptr<Store> make_store() {
  auto store = Store::create(0);
  EXPECT_TRUE(store) << to_string(store.error());
  return std::move(*store);
}

// As another process would: a second mapping of the same memory.
std::unique_ptr<Store> reopen(Store& store) {
  auto again = Store::open(Fd::adopt(::dup(store.arena().fd().raw)));
  EXPECT_TRUE(again) << to_string(again.error());
  return std::move(*again);
}

void set(Store& store, std::string_view key, std::string_view value, std::int64_t expire_ms = 0) {
  kho::Tx tx{store.arena()};
  const auto done = store.table().put(tx, store.table().find(tx, key, 0), key, value, expire_ms);
  ASSERT_TRUE(done) << to_string(done.error());
  tx.commit();
}

std::string get(Store& store, std::string_view key, std::int64_t now_ms = 0) {
  Entry* entry = store.table().peek(key, now_ms);
  return entry == nullptr ? "(none)" : std::string{entry->value()};
}

TEST(Table, AgreesWithAMapUnderRandomOperations) {
  struct Value {
    std::string bytes;
    std::int64_t expire_ms = 0;
  };
  for (const unsigned seed : {1U, 2U, 3U}) {
    std::mt19937_64 random{seed};
    const auto below = [&](std::uint64_t n) { return random() % n; };
    auto store = make_store();
    std::map<std::string, Value> model;
    std::int64_t now = 1000;
    const auto alive = [&](const std::string& key) {
      const auto found = model.find(key);
      if (found != model.end() && found->second.expire_ms != 0 && found->second.expire_ms <= now) model.erase(found);
      return model.contains(key);
    };
    for (int step = 0; step < 60'000; ++step) {
      const std::string key = "key:" + std::to_string(below(30'000));
      const bool was_there = alive(key);
      kho::Tx tx{store->arena()};
      const Table::Place place = store->table().find(tx, key, now);
      ASSERT_EQ(place.entry != nullptr, was_there) << "seed " << seed << " step " << step;
      const auto before = model.contains(key) ? std::optional{model[key]} : std::nullopt;
      if (was_there) {
        ASSERT_EQ(place.entry->value(), model[key].bytes);
        ASSERT_EQ(place.entry->expire_ms, model[key].expire_ms);
      }
      const auto what = below(10);
      if (what < 5) {
        // Mostly small; some beyond what is overwritten in place, some larger than a chunk.
        const std::size_t size = below(below(50) == 0 ? 100'000 : below(20) == 0 ? 3000 : 40);
        const Value value{std::string(size, static_cast<char>('a' + below(26))),
                          below(3) == 0 ? now + 1 + static_cast<std::int64_t>(below(500)) : 0};
        ASSERT_TRUE(store->table().put(tx, place, key, value.bytes, value.expire_ms));
        model[key] = value;
      } else if (was_there && what < 7) {
        const std::string more(below(below(20) == 0 ? 2000 : 30), '+');
        ASSERT_TRUE(store->table().append(tx, place, more));
        model[key].bytes += more;
      } else if (was_there && what < 8) {
        store->table().set_expire(tx, *place.entry, model[key].expire_ms = below(2) == 0 ? 0 : now + 100);
      } else if (was_there) {
        store->table().erase(tx, place);
        model.erase(key);
      }
      if (below(10) == 0) {
        tx.abort();
        if (before) model[key] = *before;
        else model.erase(key);
      } else {
        tx.commit();
      }
      if (below(20) == 0) now += static_cast<std::int64_t>(below(20));
      if (below(20'000) == 0) {
        const auto checked = store->check();
        ASSERT_TRUE(checked) << to_string(checked.error());
        auto again = reopen(*store);
        store.reset();
        store = std::move(again);
      }
    }
    for (const auto& [key, value] : std::map{model})
      EXPECT_EQ(get(*store, key, now), alive(key) ? value.bytes : "(none)");
    const auto checked = store->check();
    EXPECT_TRUE(checked) << to_string(checked.error());
  }
}

TEST(Table, GrowsAndShrinksBucketByBucket) {
  auto store = make_store();
  constexpr int kKeys = 40'000;
  for (int i = 0; i < kKeys; ++i) set(*store, std::to_string(i), std::to_string(2 * i));
  ASSERT_TRUE(store->check());
  const auto full = store->arena().stats().used_bytes;
  for (int i = 0; i < kKeys; ++i) ASSERT_EQ(get(*store, std::to_string(i)), std::to_string(2 * i));
  for (int i = 0; i < kKeys; ++i) {
    kho::Tx tx{store->arena()};
    store->table().erase(tx, store->table().find(tx, std::to_string(i), 0));
    tx.commit();
  }
  EXPECT_EQ(store->table().size(), 0U);
  ASSERT_TRUE(store->check());
  EXPECT_LT(store->arena().stats().used_bytes, full / 10);
}

TEST(Table, ForgetsExpiredKeysWhenAskedAndWhenSwept) {
  auto store = make_store();
  for (int i = 0; i < 1000; ++i) set(*store, std::to_string(i), "v", i < 500 ? 100 : 0);
  EXPECT_EQ(store->table().expiring(), 500U);
  EXPECT_EQ(get(*store, "1", 99), "v");
  EXPECT_EQ(get(*store, "1", 100), "(none)");
  {
    kho::Tx tx{store->arena()};
    EXPECT_EQ(store->table().find(tx, "1", 100).entry, nullptr);
    tx.commit();
  }
  EXPECT_EQ(store->table().size(), 999U);
  kho::Tx tx{store->arena()};
  EXPECT_EQ(store->table().sweep(tx, 99, 100'000), 0U);
  EXPECT_EQ(store->table().sweep(tx, 100, 100'000), 499U);
  tx.commit();
  EXPECT_EQ(store->table().size(), 500U);
  EXPECT_EQ(store->table().expiring(), 0U);
  EXPECT_TRUE(store->check());
}

TEST(Table, FlushesAtOnceAndReleasesLater) {
  auto store = make_store();
  const auto empty = store->arena().stats().used_bytes;
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 20'000; ++i) set(*store, std::to_string(i), "value");
    kho::Tx tx{store->arena()};
    ASSERT_TRUE(store->table().flush(tx));
    tx.commit();
    EXPECT_EQ(store->table().size(), 0U);
    EXPECT_EQ(get(*store, "1"), "(none)");
  }
  set(*store, "new", "value");
  int steps = 0;
  for (bool more = true; more; ++steps) {
    kho::Tx tx{store->arena()};
    more = store->table().bury(tx, 500);
    tx.commit();
    if (steps % 20 == 0) {
      ASSERT_TRUE(store->check());
    }
  }
  EXPECT_GT(steps, 10) << "the release is spread";
  EXPECT_EQ(get(*store, "new"), "value");
  EXPECT_LE(store->arena().stats().used_bytes, empty + 1024);
}

TEST(Table, KeepsKeysAndValuesOfAnyBytes) {
  auto store = make_store();
  const std::string odd{"\0\r\n\xff", 4};
  set(*store, "", odd);
  set(*store, odd, "");
  auto again = reopen(*store);
  EXPECT_EQ(get(*again, ""), odd);
  EXPECT_EQ(get(*again, odd), "");
}

}  // namespace
}  // namespace luo::cache
