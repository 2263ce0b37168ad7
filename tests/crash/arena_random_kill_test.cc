// SIGKILL at random moments, outside any tracer: a child runs one transaction after another, each decided by
// its number alone; what it leaves must be what the same transactions make of an arena that nobody kills.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <iostream>
#include <optional>
#include <random>

#include "kho/arena.h"
#include "kho/hugetlb_testing.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"random-kill", 1};
constexpr std::size_t kSlots = 200;

struct Item {
  std::uint64_t at, bytes, mark;
};
struct Directory {
  std::uint64_t transactions;  ///< done
  Item items[kSlots];
};

class Runner {
 public:
  explicit Runner(Pages pages)
      : arena_{Arena::create({.name = "kill", .layout = kLayout, .max_size = 64_MiB, .pages = pages}).value()} {
    Tx tx{*arena_};
    tx.set_root(0, tx.make<Directory>().value().addr());
    tx.commit();
  }
  Directory& directory() { return *arena_->get(Ref<Directory>{arena_->root(0).raw()}); }

  /// Transaction number `n`; now and then one that is taken back, wholly or in part.
  void run(std::uint64_t n) {
    std::mt19937_64 random{n};
    Tx tx{*arena_};
    for (std::uint64_t steps = random() % 6 + 1; steps > 0; --steps) {
      const Tx::Mark mark = tx.mark();
      change(tx, random() % kSlots, random);
      if (random() % 5 == 0) tx.back_to(mark);
    }
    if (random() % 8 == 0) {
      tx.abort();
      Tx number{*arena_};
      number.set(directory().transactions, n);
      number.commit();
      return;
    }
    tx.set(directory().transactions, n);
    tx.commit();
  }

  /// As the next owner does.
  void take_over() {
    auto again = Arena::open(arena_->release(), kLayout);
    ASSERT_TRUE(again) << to_string(again.error());
    arena_.emplace(*std::move(again));
    const auto sound = arena_->check();
    ASSERT_TRUE(sound) << to_string(sound.error());
  }

  std::string describe() {
    std::string text = fmt::format("{} blocks of {} bytes;", arena_->stats().blocks, arena_->stats().used_bytes);
    for (std::size_t slot = 0; slot < kSlots; ++slot) {
      const Item& item = directory().items[slot];
      if (item.at == 0) continue;
      const auto* words = arena_->checked(Ref<std::uint64_t>{item.at}, item.bytes);
      const bool whole = words != nullptr && words[0] == item.mark && words[item.bytes / 8 - 1] == item.mark;
      text += fmt::format(" {}: {} bytes {} {}", slot, item.bytes, item.mark, whole ? "whole" : "BROKEN");
    }
    return text;
  }

 private:
  void change(Tx& tx, std::size_t slot, std::mt19937_64& random) {
    Item& item = directory().items[slot];
    const std::uint64_t mark = random();
    if (item.at == 0) {
      const std::uint64_t kind = random() % 100;
      const std::uint64_t bytes = (kind < 70   ? random() % 500
                                   : kind < 95 ? random() % 40000
                                               : random() % 1500000) /
                                      8 * 8 +
                                  16;
      const auto at = tx.allocate(bytes);
      if (!at) ::_exit(9);  // large enough for all of it
      auto* words = arena_->get(Ref<std::uint64_t>{at->raw()});
      words[0] = words[bytes / 8 - 1] = mark;
      tx.set(item, Item{at->raw(), bytes, mark});
    } else if (random() % 3 == 0) {
      auto* words = arena_->get(Ref<std::uint64_t>{item.at});
      tx.set(words[0], mark);
      tx.set(words[item.bytes / 8 - 1], mark);
      tx.set(item.mark, mark);
    } else {
      tx.release(PhysAddr{item.at});
      tx.set(item, Item{});
    }
  }

  std::optional<Arena> arena_;
};

void expect_what_was_committed(Pages pages) {
  Runner killed{pages}, spared{Pages::Normal};
  std::mt19937_64 random{20};
  std::uint64_t done = 0;
  for (unsigned round = 0; round < 300; ++round) {
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      for (std::uint64_t n = killed.directory().transactions + 1;; ++n) killed.run(n);
    }
    // The random moment is the point here; nothing is waited for.
    ::usleep(static_cast<useconds_t>(random() % 2000));
    ::kill(pid, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    killed.take_over();
    if (testing::Test::HasFatalFailure()) return;
    const std::uint64_t transactions = killed.directory().transactions;
    ASSERT_GE(transactions, done) << "a committed transaction is gone";
    for (; done < transactions; ++done) spared.run(done + 1);
    ASSERT_EQ(killed.describe(), spared.describe()) << "round " << round << ", transaction " << done;
  }
  std::cout << done << " transactions, killed 300 times\n";
  EXPECT_GT(done, 300U);
}

TEST(ArenaRandomKill, LeavesWhatItsCommittedTransactionsMade) { expect_what_was_committed(Pages::Normal); }
TEST(ArenaRandomKill, LikewiseInHugePages) { expect_what_was_committed(Pages::Huge); }
TEST(ArenaRandomKill, LikewiseInHugetlbPages) {
  const HugetlbPool pool{40};
  if (!pool.why().empty()) GTEST_SKIP() << pool.why();
  expect_what_was_committed(Pages::Hugetlb);
}

}  // namespace
}  // namespace luo::kho
