// Each kind of change of the table, killed at every instruction and every system call: all of it, or
// nothing, and the table whole.
#include <gtest/gtest.h>
#include <unistd.h>

#include "cache/store.h"
#include "support/kill_harness.h"

namespace luo::cache {
namespace {

using luo::test::KillCase;

constexpr std::int64_t kNow = 1000;

class KilledTable : public ::testing::Test {
 protected:
  static void set(Store& store, std::string_view key, std::string_view value, std::int64_t expire_ms = 0) {
    kho::Tx tx{store.arena()};
    LUO_CHECK(store.table().put(tx, store.table().find(tx, key, 0), key, value, expire_ms).has_value());
    tx.commit();
  }
  // What clients could see, and that nothing is broken.
  static Result<std::string> describe(Fd memfd) {
    const auto store = LUO_TRY(Store::open(std::move(memfd)));
    LUO_TRY(store->check());
    std::string text = fmt::format("{} keys, {} expire;", store->table().size(), store->table().expiring());
    for (const char* key : {"a", "b", "c", "old"}) {
      Entry* entry = store->table().peek(key, 0);
      if (entry != nullptr) text += fmt::format(" {}={}@{}", key, entry->value(), entry->expire_ms);
    }
    return text;
  }
  using Work = std::function<void(Store&)>;
  void expect_all_or_nothing(const Work& prepare, const std::function<void(Store&, kho::Tx&)>& change) {
    std::unique_ptr<Store> store;
    KillCase scene;
    scene.set_up = [&]() -> Result<Fd> {
      store = LUO_TRY(Store::create(0));
      set(*store, "b", "bystander");
      prepare(*store);
      return Fd::adopt(::dup(store->arena().fd().raw));
    };
    scene.operate = [&] {
      kho::Tx tx{store->arena()};
      change(*store, tx);
      tx.commit();
    };
    scene.recover = [](Fd memfd) { return describe(std::move(memfd)); };
    const auto count = luo::test::kill_everywhere(scene);
    ASSERT_TRUE(count) << to_string(count.error());
    EXPECT_GT(count->points, 0U);
  }
  void expect_put(const std::string& before, const std::string& after, std::int64_t expire_ms = 0) {
    expect_all_or_nothing([&](Store& store) { set(store, "a", before); },
                          [&](Store& store, kho::Tx& tx) {
                            (void)store.table().put(tx, store.table().find(tx, "a", kNow), "a", after, expire_ms);
                          });
  }
};

TEST_F(KilledTable, Insert) {
  expect_all_or_nothing([](Store&) {},
                        [](Store& store, kho::Tx& tx) {
                          (void)store.table().put(tx, store.table().find(tx, "a", kNow), "a", "value", 7777);
                        });
}

TEST_F(KilledTable, OverwriteWhereItIs) { expect_put("0123456789", "9876543210"); }
TEST_F(KilledTable, OverwriteWithAnotherLengthAndExpiry) { expect_put("0123456789", "01234", 7777); }
TEST_F(KilledTable, ReplaceByALargerOne) { expect_put("short", std::string(700, 'l')); }

TEST_F(KilledTable, Append) {
  for (const std::size_t more : {3U, 300U})
    expect_all_or_nothing([](Store& store) { set(store, "a", "start"); },
                          [&](Store& store, kho::Tx& tx) {
                            const std::string bytes(more, '+');
                            (void)store.table().append(tx, store.table().find(tx, "a", kNow), bytes);
                          });
}

// The end of the old value is free once a shorter one is there, and the next command may write it.
TEST_F(KilledTable, OverwriteWithAShorterOneAndAppend) {
  expect_all_or_nothing([](Store& store) { set(store, "a", std::string(200, 'o')); },
                        [](Store& store, kho::Tx& tx) {
                          const std::string fresh(120, 'n'), more(60, '+');
                          (void)store.table().put(tx, store.table().find(tx, "a", kNow), "a", fresh, 0);
                          (void)store.table().append(tx, store.table().find(tx, "a", kNow), more);
                        });
}

TEST_F(KilledTable, EraseAndForgetTheExpired) {
  expect_all_or_nothing(
      [](Store& store) {
        set(store, "a", "value");
        set(store, "old", "value", kNow - 1);
      },
      [](Store& store, kho::Tx& tx) {
        store.table().erase(tx, store.table().find(tx, "a", kNow));
        (void)store.table().find(tx, "old", kNow);
      });
}

TEST_F(KilledTable, Flush) {
  expect_all_or_nothing([](Store& store) { set(store, "a", "value"); },
                        [](Store& store, kho::Tx& tx) { (void)store.table().flush(tx); });
}

TEST_F(KilledTable, BuryWhatWasFlushed) {
  expect_all_or_nothing(
      [](Store& store) {
        for (const char* key : {"a", "c", "old"}) set(store, key, "value");
        kho::Tx tx{store.arena()};
        LUO_CHECK(store.table().flush(tx).has_value());
        tx.commit();
        set(store, "a", "new");
      },
      [](Store& store, kho::Tx& tx) {
        store.table().bury(tx, 1);
        // Something that can be seen, so that before and after differ.
        store.table().set_expire(tx, *store.table().find(tx, "a", kNow).entry, 7777);
      });
}

// The bucket that is split has a chain; the new bucket opens a segment, and the directory stays.
TEST_F(KilledTable, Grow) {
  expect_all_or_nothing(
      [](Store& store) {
        for (int i = 0; i < 8191; ++i) set(store, std::to_string(i), "");
      },
      [](Store& store, kho::Tx& tx) {
        (void)store.table().put(tx, store.table().find(tx, "a", kNow), "a", "value", 0);
      });
}

}  // namespace
}  // namespace luo::cache
