// Each kind of arena operation, killed at every instruction and every system call: all of it, or nothing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <iostream>

#include "arena_stage.h"
#include "support/kill_harness.h"

namespace luo::kho {
namespace {

using test::KillCase;
using test::KillCount;

void expect_all_or_nothing(Stage& stage, const std::function<void()>& set_up, const std::function<void()>& operate) {
  const KillCase c{.set_up = [&]() -> Result<Fd> {
                     set_up();
                     return stage.memfd();
                   },
                   .operate = operate,
                   .recover = recover,
                   .also_right = {}};
  const auto calls = test::kill_at_every_syscall(c);
  ASSERT_TRUE(calls) << to_string(calls.error());
  if (!test::kStepsInstructions) {
    std::cout << calls->points << " system call stops; not at every instruction, because of the sanitizer\n";
    return;
  }
  const auto steps = test::kill_at_every_instruction(c);
  ASSERT_TRUE(steps) << to_string(steps.error());
  EXPECT_GT(steps->points, 50U);
  std::cout << calls->points << " system call stops, " << steps->points << " instructions, " << steps->recovered
            << " states recovered, " << steps->finished << " of them after\n";
}

class ArenaCrash : public ::testing::Test {
 protected:
  Stage stage;
};

TEST_F(ArenaCrash, AllocateSmall) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        stage.add(0, 100);
      },
      [&] { stage.add(1, 100); });
}

TEST_F(ArenaCrash, AllocateFirstOfAChunk) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        stage.add(0, 100);
      },
      [&] { stage.add(1, 5000); });
}

TEST_F(ArenaCrash, AllocateLastOfAChunk) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        stage.add(0, 32000);
      },
      [&] { stage.add(1, 32000); });
}

TEST_F(ArenaCrash, AllocateLarge) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(2_MiB);
        stage.add(0, 100);
      },
      [&] { stage.add(1, 300000); });
}

TEST_F(ArenaCrash, AllocateWithGrowth) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(16_MiB);
        stage.add(0, 100);
      },
      [&] { stage.add(1, 5000000); });
}

TEST_F(ArenaCrash, AllocateThatFails) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        stage.add(0, 100);
      },
      [&] {
        Tx tx{stage.arena()};
        tx.set(stage.directory().number, 9);
        if (tx.allocate(1 << 20)) ::_exit(1);
        tx.commit();
      });
}

TEST_F(ArenaCrash, AllocateWhenOnlyEmptyChunksOfOtherSizesAreLeft) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        for (std::size_t slot = 0; slot < 15; ++slot) stage.add(slot, slot < 14 ? 65536 : 700);
        stage.drop(14);  // its chunk stays with its class
      },
      [&] { stage.add(15, 5000); });
}

TEST_F(ArenaCrash, ReleaseSmall) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        stage.add(0, 100);
        stage.add(1, 100);
      },
      [&] { stage.drop(0); });
}

TEST_F(ArenaCrash, ReleaseFromAFullChunk) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        stage.add(0, 32000);
        stage.add(1, 32000);
      },
      [&] { stage.drop(0); });
}

TEST_F(ArenaCrash, ReleaseLastOfAChunk) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        for (std::size_t slot = 0; slot < 3; ++slot) stage.add(slot, 32000);
        stage.drop(1);  // two chunks of the class in the list, one block in each
      },
      [&] { stage.drop(2); });
}

TEST_F(ArenaCrash, ReleaseLargeWithNeighboursOnBothSides) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(2_MiB);
        for (std::size_t slot = 0; slot < 4; ++slot) stage.add(slot, 65536);
        stage.drop(1);
        stage.drop(3);
      },
      [&] { stage.drop(2); });
}

TEST_F(ArenaCrash, ReleaseLargeWithAHole) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(8_MiB);
        stage.add(0, 1500000);
        stage.add(1, 100);
      },
      [&] { stage.drop(0); });
}

TEST_F(ArenaCrash, Set) {
  expect_all_or_nothing(
      stage, [&] { stage.make(1_MiB); },
      [&] {
        Tx tx{stage.arena()};
        tx.set(stage.directory().number, 7);
        tx.set(stage.directory().number, 8);
        tx.commit();
      });
}

TEST_F(ArenaCrash, SaveOfManyBytes) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(1_MiB);
        stage.add(0, 601);
        stage.add(1, 601);
      },
      [&] {
        Tx tx{stage.arena()};
        Directory& directory = stage.directory();
        auto* bytes = stage.arena().get(Ref<std::byte>{directory.items[0].at});
        tx.save(bytes, 601);
        std::memset(bytes, 2, 601);
        tx.set(directory.items[1], directory.items[0]);
        tx.set(directory.items[0], Item{});
        tx.release(PhysAddr{directory.items[1].at});
        tx.set(directory.items[1], Item{});
        tx.back_to({0, 0});
        tx.set(directory.number, 3);
        tx.commit();
      });
}

TEST_F(ArenaCrash, SetRoot) {
  expect_all_or_nothing(
      stage, [&] { stage.make(1_MiB); },
      [&] {
        Tx tx{stage.arena()};
        tx.set_root(1, stage.arena().root(0));
        tx.commit();
      });
}

TEST_F(ArenaCrash, BackToAMark) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(2_MiB);
        stage.add(0, 100);
        stage.add(1, 100000);
      },
      [&] {
        Tx tx{stage.arena()};
        stage.add(tx, 2, 40);
        const Tx::Mark mark = tx.mark();
        stage.drop(tx, 0);
        stage.drop(tx, 1);
        stage.add(tx, 3, 200000);
        stage.add(tx, 4, 9000);
        tx.back_to(mark);
        stage.drop(tx, 0);
        tx.commit();
      });
}

TEST_F(ArenaCrash, Abort) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(2_MiB);
        stage.add(0, 100);
      },
      [&] {
        Tx tx{stage.arena()};
        stage.drop(tx, 0);
        stage.add(tx, 1, 300);
        stage.add(tx, 2, 300000);
        tx.abort();
      });
}

TEST_F(ArenaCrash, SeveralChangesInOneTransaction) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(4_MiB);
        stage.add(0, 100);
        stage.add(1, 100000);
      },
      [&] {
        Tx tx{stage.arena()};
        stage.drop(tx, 0);
        stage.drop(tx, 1);
        stage.add(tx, 0, 3000);
        stage.add(tx, 1, 65536);
        tx.set(stage.directory().number, 5);
        tx.set_root(1, stage.arena().root(0));
        tx.commit();
      });
}

TEST_F(ArenaCrash, TakeoverThatRollsBack) {
  expect_all_or_nothing(
      stage,
      [&] {
        stage.make(2_MiB);
        stage.add(0, 100);
        stage.add(1, 70000);
        die_inside(stage);
      },
      [&] {
        if (!Arena::open(stage.memfd().value(), kLayout)) ::_exit(1);
      });
}

}  // namespace
}  // namespace luo::kho
