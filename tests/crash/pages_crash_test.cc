// Each kind of change of a page tracker, killed at every instruction and every system call.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "expect_all_or_nothing.h"
#include "kho/pages.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"crash", 1};

class PagesCrash : public ::testing::Test {
 protected:
  void make() {
    pages.reset();
    arena.emplace(Arena::create({.name = "crash", .layout = kLayout, .max_size = 2_MiB}).value());
    Tx tx{*arena};
    const auto record = PageTracker::create(tx, *arena).value();
    tx.set_root(0, record.addr());
    tx.commit();
    pages.emplace(PageTracker::open(*arena, record).value());
  }
  void preserve(std::uint64_t first, std::uint64_t count = 1) {
    Tx tx{*arena};
    if (!pages->preserve(tx, first, count)) ::_exit(1);
    tx.commit();
  }
  void unpreserve(std::uint64_t first, std::uint64_t count = 1) {
    Tx tx{*arena};
    if (!pages->unpreserve(tx, first, count)) ::_exit(1);
    tx.commit();
  }

  static Result<std::string> recover(Fd memfd) {
    Arena arena = LUO_TRY(Arena::open(std::move(memfd), kLayout));
    LUO_TRY(arena.check());
    PageTracker pages = LUO_TRY(PageTracker::open(arena, Ref<PagesRecord>{arena.root(0).raw()}));
    std::string text = fmt::format("{} pages:", pages.count());
    unsigned runs = 0;
    pages.for_each_range([&](std::uint64_t first, std::uint64_t count) {
      if (++runs < 20) text += fmt::format(" {:#x}+{}", first, count);
    });
    text += fmt::format(" in {} runs, {} bytes", runs, arena.stats().used_bytes);
    {  // it can be worked with, to the end
      Tx tx{arena};
      LUO_TRY(pages.preserve(tx, 1, 40));
      LUO_TRY(pages.unpreserve(tx, 0, PageTracker::kPages));
      while (!LUO_TRY(pages.tidy(tx))) {}
      tx.commit();
    }
    LUO_TRY(pages.check());
    LUO_TRY(arena.check());
    if (arena.stats().blocks != 1) return fail(EBADMSG, "{} blocks are left", arena.stats().blocks);
    return text;
  }

  void expect_all_or_nothing(const std::function<void()>& set_up, const std::function<void()>& operate) {
    test::expect_all_or_nothing(
        [&]() -> const Arena& {
          make();
          set_up();
          return *arena;
        },
        operate, recover);
  }

  std::optional<Arena> arena;
  std::optional<PageTracker> pages;
};

TEST_F(PagesCrash, FirstPage) {
  expect_all_or_nothing([] {}, [&] { preserve(7); });
}

TEST_F(PagesCrash, PageThatSplitsAPath) {
  expect_all_or_nothing([&] { preserve(7); }, [&] { preserve(std::uint64_t{1} << 40); });
}

TEST_F(PagesCrash, PageInANewWordOfALeaf) {
  expect_all_or_nothing([&] { preserve(7, 3); }, [&] { preserve(700); });
}

TEST_F(PagesCrash, PageInPlaceAndOut) {
  expect_all_or_nothing([&] { preserve(7, 3); },
                        [&] {
                          Tx tx{*arena};
                          if (!pages->preserve(tx, 12) || !pages->unpreserve(tx, 8)) ::_exit(1);
                          tx.commit();
                        });
}

TEST_F(PagesCrash, LeafThatBecomesDense) {
  expect_all_or_nothing([&] { preserve(3, 28000); }, [&] { preserve(28100, 600); });
}

TEST_F(PagesCrash, LeafThatBecomesSparseAgain) {
  expect_all_or_nothing([&] { preserve(3, 32000); }, [&] { unpreserve(100, 32000); });
}

TEST_F(PagesCrash, RangeThatSwallowsNodes) {
  expect_all_or_nothing(
      [&] {
        for (std::uint64_t n = 0; n < 3; ++n) preserve(n << 21, 5);
      },
      [&] { preserve(9, std::uint64_t{1} << 23); });
}

TEST_F(PagesCrash, HoleInAFullBlock) {
  expect_all_or_nothing([&] { preserve(0, 1 << 21); }, [&] { unpreserve(1234567); });
}

TEST_F(PagesCrash, Tidying) {
  expect_all_or_nothing(
      [&] {
        for (std::uint64_t n = 0; n < 18; ++n) preserve(n << 21, 5);
        unpreserve(0, std::uint64_t{1} << 30);
      },
      [&] {
        Tx tx{*arena};
        if (!pages->tidy(tx)) ::_exit(1);
        tx.commit();
      });
}

}  // namespace
}  // namespace luo::kho
