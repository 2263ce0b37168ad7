#include "kho/pages.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kho/pages_format.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"pages", 1};
constexpr std::uint64_t kAll = PageTracker::kPages;

/// Runs, first page -> one past the last; no two touch.
class Model {
 public:
  void set(std::uint64_t first, std::uint64_t count) {
    clear(first, count);
    std::uint64_t end = first + count;
    auto after = runs_.lower_bound(first);
    if (after != runs_.end() && after->first == end) {
      end = after->second;
      after = runs_.erase(after);
    }
    if (after != runs_.begin() && std::prev(after)->second == first) std::prev(after)->second = end;
    else runs_[first] = end;
  }
  void clear(std::uint64_t first, std::uint64_t count) {
    const std::uint64_t end = first + count;
    auto it = runs_.upper_bound(first);
    if (it != runs_.begin()) --it;
    while (it != runs_.end() && it->first < end) {
      const auto [from, to] = *it;
      if (to <= first) {
        ++it;
        continue;
      }
      it = runs_.erase(it);
      if (from < first) runs_[from] = first;
      if (to > end) runs_[end] = to;
    }
  }
  bool has(std::uint64_t page) const {
    auto it = runs_.upper_bound(page);
    return it != runs_.begin() && std::prev(it)->second > page;
  }
  std::uint64_t count() const {
    std::uint64_t n = 0;
    for (const auto& [from, to] : runs_) n += to - from;
    return n;
  }
  const std::map<std::uint64_t, std::uint64_t>& runs() const { return runs_; }

 private:
  std::map<std::uint64_t, std::uint64_t> runs_;
};

class Pages : public ::testing::Test {
 protected:
  Pages() : arena{Arena::create({.name = "pages", .layout = kLayout, .max_size = 256_MiB}).value()} {
    Tx tx{arena};
    record = PageTracker::create(tx, arena).value();
    tx.set_root(0, record.addr());
    tx.commit();
    base_bytes = arena.stats().used_bytes;
  }
  PageTracker tracker() { return PageTracker::open(arena, record).value(); }
  void preserve(std::uint64_t first, std::uint64_t count = 1) {
    Tx tx{arena};
    const auto done = view().preserve(tx, first, count);
    ASSERT_TRUE(done) << to_string(done.error());
    tx.commit();
  }
  void unpreserve(std::uint64_t first, std::uint64_t count = 1) {
    Tx tx{arena};
    const auto done = view().unpreserve(tx, first, count);
    ASSERT_TRUE(done) << to_string(done.error());
    tx.commit();
  }
  void tidy() {
    for (bool more = true; more;) {
      Tx tx{arena};
      more = !view().tidy(tx).value();
      tx.commit();
    }
  }
  std::uint64_t bytes() { return arena.stats().used_bytes - base_bytes; }
  /// Opened once: check() of everything at each step would take long.
  PageTracker& view() {
    if (!view_) view_.emplace(tracker());
    return *view_;
  }
  void compare(const Model& model) {
    const auto sound = view().check();
    ASSERT_TRUE(sound) << to_string(sound.error());
    ASSERT_EQ(view().count(), model.count());
    auto next = model.runs().begin();
    bool same = true;
    view().for_each_range([&](std::uint64_t first, std::uint64_t count) {
      same = same && next != model.runs().end() && next->first == first && next->second == first + count;
      if (same) ++next;
    });
    ASSERT_TRUE(same && next == model.runs().end()) << "differs at the model's run " << next->first;
  }
  void reopen() {
    view_.reset();
    arena = Arena::open(arena.release(), kLayout).value();
  }

  Arena arena;
  Ref<PagesRecord> record;
  std::uint64_t base_bytes = 0;
  std::optional<PageTracker> view_;
};

TEST_F(Pages, AreThereOnceTheyArePreservedAndGoneAfterwards) {
  EXPECT_FALSE(view().is_preserved(5));
  preserve(5);
  preserve(5);
  EXPECT_TRUE(view().is_preserved(5));
  EXPECT_FALSE(view().is_preserved(4));
  EXPECT_FALSE(view().is_preserved(6));
  EXPECT_FALSE(view().is_preserved(kAll + 5));
  EXPECT_EQ(view().count(), 1U);
  unpreserve(6);
  unpreserve(5);
  unpreserve(5);
  EXPECT_EQ(view().count(), 0U);
  EXPECT_EQ(bytes(), 0U);
}

TEST_F(Pages, RefusesNumbersThatAreTooLargeAndBlocksThatAreNotAligned) {
  Tx tx{arena};
  EXPECT_EQ(view().preserve(tx, kAll).error().code, ERANGE);
  EXPECT_EQ(view().preserve(tx, kAll - 1, 2).error().code, ERANGE);
  EXPECT_EQ(view().unpreserve(tx, 1, ~std::uint64_t{0}).error().code, ERANGE);
  EXPECT_EQ(view().preserve_block(tx, 6, 2).error().code, EINVAL);
  EXPECT_EQ(view().unpreserve_block(tx, 0, 53).error().code, ERANGE);
  EXPECT_TRUE(view().preserve(tx, kAll - 1, 1));
  EXPECT_TRUE(view().preserve(tx, 7, 0));
  EXPECT_EQ(view().count(), 1U);
}

TEST_F(Pages, BlocksOfEveryOrderCanBePreservedAndTakenApart) {
  for (unsigned order = 0; order <= 52; ++order) {
    const std::uint64_t size = std::uint64_t{1} << order;
    const std::uint64_t first = order == 52 ? 0 : order == 51 ? size : size * 3;
    {
      Tx tx{arena};
      ASSERT_TRUE(view().preserve_block(tx, first, order));
      tx.commit();
    }
    Model model;
    model.set(first, size);
    compare(model);
    if (HasFatalFailure()) FAIL() << order;
    if (order == 0 || order == 52 || (order >= 15 && order % 6 == 3)) {
      EXPECT_EQ(bytes(), 0U) << "what is whole takes no memory";
    }
    unpreserve(first + size / 3);
    model.clear(first + size / 3, 1);
    compare(model);
    {
      Tx tx{arena};
      ASSERT_TRUE(view().unpreserve_block(tx, first, order));
      tx.commit();
    }
    ASSERT_EQ(view().count(), 0U);
    tidy();
    ASSERT_EQ(bytes(), 0U) << order;
  }
}

TEST_F(Pages, AnAbortedChangeHasNotBeen) {
  preserve(100, 1000);
  Model model;
  model.set(100, 1000);
  {
    Tx tx{arena};
    ASSERT_TRUE(view().preserve(tx, 0, kAll));
    ASSERT_EQ(view().count(), kAll);
    ASSERT_TRUE(view().unpreserve(tx, 77, 1 << 20));
  }
  compare(model);
  {
    Tx tx{arena};
    ASSERT_TRUE(view().preserve(tx, 5000));
    const Tx::Mark mark = tx.mark();
    ASSERT_TRUE(view().unpreserve(tx, 0, 1 << 30));
    tx.back_to(mark);
    tx.commit();
  }
  model.set(5000, 1);
  compare(model);
}

TEST_F(Pages, AFullArenaChangesNothing) {
  Arena small = Arena::create({.name = "pages", .layout = kLayout, .max_size = 1_MiB}).value();
  std::optional<PageTracker> pages;
  {
    Tx tx{small};
    pages.emplace(PageTracker::open(small, PageTracker::create(tx, small).value()).value());
    tx.commit();
  }
  std::mt19937_64 random{3};
  std::uint64_t count = 0;
  for (;;) {
    const std::uint64_t page = random() % kAll;
    Tx tx{small};
    const auto done = pages->preserve(tx, page, 3);
    tx.commit();  // what failed has taken itself back
    if (!done) {
      EXPECT_EQ(done.error().code, ENOMEM);
      EXPECT_FALSE(pages->is_preserved(page));
      break;
    }
    count += 3;
  }
  EXPECT_GT(count, 5000U);
  EXPECT_EQ(pages->count(), count);
  ASSERT_TRUE(pages->check());
}

// What a range swallows may be any number of blocks; its log may not.
TEST_F(Pages, ARangeOverVeryManyBlocksIsOneTransaction) {
  std::mt19937_64 random{9};
  constexpr unsigned kLeaves = 20000;
  for (unsigned n = 0; n < kLeaves;) {
    Tx tx{arena};
    for (unsigned i = 0; i < 500; ++i, ++n)
      ASSERT_TRUE(view().preserve(tx, std::uint64_t{n} << 15 | random() % 30000, 2));
    tx.commit();
  }
  EXPECT_GT(arena.stats().blocks, kLeaves);
  for (const bool set : {false, true}) {
    Tx tx{arena};
    const std::size_t room = tx.room();
    ASSERT_TRUE(set ? view().preserve(tx, 3, kAll - 5) : view().unpreserve(tx, 3, kAll - 5));
    EXPECT_LT(room - tx.room(), PageTracker::kRoom);
    EXPECT_EQ(view().count(), set ? kAll - 5 : 0);
    ASSERT_TRUE(view().check());
  }
  preserve(0, kAll);
  EXPECT_GT(arena.stats().blocks, kLeaves / 2) << "their release is put off";
  ASSERT_TRUE(view().check());
  reopen();
  tidy();
  EXPECT_EQ(bytes(), 0U);
  EXPECT_EQ(arena.stats().blocks, 1U);
  ASSERT_TRUE(arena.check());
}

TEST_F(Pages, SaysWhenATransactionIsTooFull) {
  std::mt19937_64 random{4};
  Tx tx{arena};
  std::uint64_t done = 0;
  for (;; ++done) {
    const auto result = view().preserve(tx, random() % kAll);
    if (result) continue;
    EXPECT_EQ(result.error().code, ENOBUFS);
    break;
  }
  EXPECT_GT(done, 1000U);
  tx.commit();
  EXPECT_EQ(view().count(), done);
  ASSERT_TRUE(view().check());
}

TEST_F(Pages, AreDestroyedInSteps) {
  std::mt19937_64 random{5};
  for (unsigned n = 0; n < 20000;) {
    Tx tx{arena};
    for (unsigned i = 0; i < 500; ++i, ++n) ASSERT_TRUE(view().preserve(tx, random() % (kAll >> 18), 2));
    tx.commit();
  }
  unsigned steps = 0;
  for (bool done = false; !done; ++steps) {
    Tx tx{arena};
    done = view().destroy(tx).value();
    tx.commit();
  }
  EXPECT_GT(steps, 1U);
  EXPECT_EQ(arena.stats().blocks, 0U);
}

class PagesModel : public Pages, public ::testing::WithParamInterface<unsigned> {};

TEST_P(PagesModel, AgreesWithASet) {
  std::mt19937_64 random{GetParam()};
  const auto pick = [&](std::uint64_t n) { return random() % n; };
  // Few pages, so that ranges meet and leaves fill up; in one case all of them.
  const std::uint64_t space = std::uint64_t{1} << (GetParam() % 4 == 0 ? 52 : GetParam() % 4 == 1 ? 17 : 25);
  Model model;
  for (unsigned round = 0; round < 400; ++round) {
    Model before = model;
    Tx tx{arena};
    for (std::uint64_t steps = pick(12) + 1; steps > 0; --steps) {
      const Tx::Mark mark = tx.mark();
      const Model here = model;
      const std::uint64_t kind = pick(10);
      const bool set = pick(100) < 55;
      unsigned order = 0;
      std::uint64_t first = pick(space), count = 1;
      if (kind < 3) {
        count = 1 + pick(300);
      } else if (kind < 4) {
        count = 1 + pick(space / 4);
      } else if (kind < 6) {
        order = static_cast<unsigned>(pick(static_cast<std::uint64_t>(std::bit_width(space)) - 2));
        first = first >> order << order;
        count = std::uint64_t{1} << order;
      } else if (kind < 8 && !model.runs().empty()) {  // at the edge of a run
        auto it = model.runs().lower_bound(first);
        if (it == model.runs().end()) --it;
        first = pick(2) == 0 ? it->second : it->first - (it->first != 0 ? 1 : 0);
        count = 1 + pick(70);
      }
      count = std::min(count, kAll - std::min(first, kAll - 1));
      first = std::min(first, kAll - 1);
      PageTracker& pages = view();
      const auto done = kind >= 4 && kind < 6
                            ? (set ? pages.preserve_block(tx, first, order) : pages.unpreserve_block(tx, first, order))
                            : (set ? pages.preserve(tx, first, count) : pages.unpreserve(tx, first, count));
      ASSERT_TRUE(done) << to_string(done.error());
      if (set) model.set(first, count);
      else model.clear(first, count);
      for (const std::uint64_t page : {first, first + count - 1, first + count, pick(space)}) {
        ASSERT_EQ(pages.is_preserved(page), page < kAll && model.has(page)) << page;
      }
      if (pick(6) == 0) {
        tx.back_to(mark);
        model = here;
      }
    }
    if (pick(4) != 0) {
      tx.commit();
    } else {
      tx.abort();
      model = before;
    }
    if (pick(20) == 0) reopen();
    if (round % 8 == 0) compare(model);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
  compare(model);
  ASSERT_TRUE(arena.check());
  unpreserve(0, kAll);
  tidy();
  EXPECT_EQ(bytes(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Seeds, PagesModel, ::testing::Range(1U, 13U));

/// What the header promises: 1 bit for each page, and 1 % of the preserved memory.
std::uint64_t allowed(std::uint64_t pages) { return pages / 8 + pages * 4096 / 100; }

TEST_F(Pages, TakeLittleMemoryInEveryPattern) {
  std::mt19937_64 random{8};
  struct Pattern {
    const char* name;
    unsigned bits;        // of the space
    unsigned pages;       // changes
    std::uint64_t step;   // 0: random
    std::uint64_t count;  // of a range
  };
  for (const Pattern& pattern :
       {Pattern{"all over", 52, 20000, 0, 1}, Pattern{"pairs all over", 52, 20000, 0, 2},
        Pattern{"1 TiB", 28, 50000, 0, 1}, Pattern{"64 GiB", 24, 100000, 0, 1}, Pattern{"1 GiB", 18, 100000, 0, 1},
        Pattern{"every 64th", 25, 50000, 64, 1}, Pattern{"every 4096th", 30, 50000, 4096, 1},
        Pattern{"one in each leaf", 40, 50000, 32768, 1}, Pattern{"two in each leaf", 40, 50000, 16384, 1},
        Pattern{"two children in each node", 0, 128, 0, 1}, Pattern{"ranges", 26, 20000, 0, 40},
        Pattern{"long ranges", 30, 2000, 0, 70000}}) {
    std::uint64_t page = 12345;
    for (unsigned n = 0; n < pattern.pages;) {
      Tx tx{arena};
      for (unsigned i = 0; i < 500 && n < pattern.pages; ++i, ++n) {
        if (pattern.bits == 0) {  // digits 0 and 1 only, at every level
          page = 0;
          for (unsigned level = 1; level <= 7; ++level)
            page |= std::uint64_t{n >> (level - 1) & 1U} << (15 + 6 * (level - 1));
        } else {
          page = pattern.step != 0 ? page + pattern.step : random() % (std::uint64_t{1} << pattern.bits);
        }
        ASSERT_TRUE(view().preserve(tx, page, std::min(pattern.count, kAll - page)));
      }
      tx.commit();
    }
    tidy();
    EXPECT_LE(bytes(), allowed(view().count())) << pattern.name;
    RecordProperty(pattern.name, std::to_string(bytes()));
    std::cout << pattern.name << ": " << view().count() << " pages, " << bytes() << " bytes, allowed "
              << allowed(view().count()) << "\n";
    ASSERT_TRUE(view().check());
    unpreserve(0, kAll);
    tidy();
    ASSERT_EQ(bytes(), 0U);
  }
}

TEST_F(Pages, ADenseBitmapTakesOneBitForEachPageOfItAndOnePercent) {
  std::mt19937_64 random{8};
  constexpr std::uint64_t kSpace = 1 << 22;
  for (std::uint64_t at = 0; at < kSpace;) {
    Tx tx{arena};
    for (unsigned i = 0; i < 1000; ++i) {
      ASSERT_TRUE(view().preserve(tx, at));
      at += 1 + random() % 3;
    }
    tx.commit();
  }
  tidy();
  EXPECT_LE(bytes(), kSpace / 8 + kSpace / 8 / 100);
  ASSERT_TRUE(view().check());
}

TEST_F(Pages, DamageIsFoundOrIsAnotherPossibleSetAndNeverACrash) {
  std::mt19937_64 random{2};
  for (unsigned i = 0; i < 60; ++i) preserve(random() % kAll, 1 + random() % 100);
  for (unsigned i = 0; i < 600; ++i) preserve(random() % 32768);
  for (unsigned i = 0; i < 20; ++i) preserve((1 << 30) + random() % 32768);
  preserve(1 << 21, 3 << 15);
  unpreserve((1 << 30) + 5, 1 << 20);  // something for the list of what is superfluous
  {
    Tx tx{arena};
    const Ref<std::uint64_t> list{tx.allocate(32).value().raw()};
    const Ref<std::uint64_t> leaf{tx.allocate(32).value().raw()};
    const std::uint64_t words[] = {0, 1, pages::ref_entry(leaf.at, pages::Tag::Sparse)};
    const std::uint64_t leaf_words[] = {pages::kLeafMark | 1, 1, 3};
    std::memcpy(arena.get(list), words, sizeof words);
    std::memcpy(arena.get(leaf), leaf_words, sizeof leaf_words);
    tx.set(arena.get(record)->garbage, list.at);
    tx.commit();
  }
  ASSERT_TRUE(view().check());
  const std::uint64_t count = view().count();
  std::vector<std::uint64_t> blocks{record.at};  // where the tracker's words are
  const auto gather = [&](auto& self, pages::Entry e) -> void {
    if (pages::tag_of(e) == pages::Tag::Block || e == 0) return;
    blocks.push_back(pages::ref_of(e).at);
    if (pages::tag_of(e) != pages::Tag::Node) return;
    const std::uint64_t* node = arena.get(pages::ref_of(e));
    for (unsigned n = 0; n < pages::ones(node[1]); ++n) self(self, node[2 + n]);
  };
  gather(gather, arena.get(record)->root);
  blocks.push_back(arena.get(record)->garbage);
  unsigned flips = 0, found = 0;
  for (const std::uint64_t block : blocks) {
    std::uint64_t* words = arena.get(Ref<std::uint64_t>{block});
    const std::size_t n = std::min<std::size_t>(arena.usable_size(PhysAddr{block}) / 8, 80);
    for (std::size_t bit = 0; bit < n * 64; ++bit) {
      words[bit / 64] ^= std::uint64_t{1} << (bit % 64);
      const auto sound = view().check();
      ++flips;
      if (sound) {
        std::uint64_t pages = 0;  // can be used, and is a set of as many pages
        view().for_each_range([&](std::uint64_t, std::uint64_t run) { pages += run; });
        EXPECT_EQ(pages, count);
        EXPECT_FALSE(view().is_preserved(kAll));
      } else {
        ++found;
        EXPECT_EQ(sound.error().code, EBADMSG);
        EXPECT_FALSE(sound.error().what.empty());
      }
      words[bit / 64] ^= std::uint64_t{1} << (bit % 64);
    }
  }
  ASSERT_TRUE(view().check());
  EXPECT_GT(found, flips / 2);
  std::cout << flips << " bits, " << found << " found\n";
  EXPECT_EQ(PageTracker::open(arena, Ref<PagesRecord>{record.at + 4}).error().code, EBADMSG);
  EXPECT_EQ(PageTracker::open(arena, Ref<PagesRecord>{1 << 20}).error().code, EBADMSG);
}

}  // namespace
}  // namespace luo::kho
