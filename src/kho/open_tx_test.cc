// OpenTx: what takes part in a transaction that somebody else has open.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>

#include "kho/arena.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"open-tx", 1};

struct Record {
  std::uint64_t a, b[100];
};

class OpenTransaction : public testing::Test {
 protected:
  OpenTransaction() : arena{Arena::create({.name = "t", .layout = kLayout, .max_size = 1_MiB}).value()} {
    Tx tx{arena};
    ref = tx.make<Record>().value();
    tx.set_root(0, ref.addr());
    record()->a = 1;
    record()->b[99] = 1;
    tx.commit();
  }
  Record* record() { return arena.get(ref); }
  /// As someone within the transaction does: logs it, and writes.
  void write(std::uint64_t a) {
    OpenTx tx{arena};
    tx.save(record(), sizeof *record());
    record()->a = a;
    record()->b[99] = a;
  }
  std::uint64_t number() { return OpenTx{arena}.number(); }

  Arena arena;
  Ref<Record> ref;
};

TEST_F(OpenTransaction, IsTakenBackWithIt) {
  {
    Tx tx{arena};
    write(2);
    tx.abort();
  }
  EXPECT_EQ(record()->a, 1U);
  EXPECT_EQ(record()->b[99], 1U);
  {
    Tx tx{arena};
    write(2);
    EXPECT_EQ(record()->a, 2U);
  }  // without a commit
  EXPECT_EQ(record()->a, 1U);
  {
    Tx tx{arena};
    write(2);
    tx.commit();
  }
  EXPECT_EQ(record()->a, 2U);
  EXPECT_EQ(record()->b[99], 2U);
  EXPECT_TRUE(arena.check());
}

TEST_F(OpenTransaction, IsTakenBackToAMarkInPart) {
  Tx tx{arena};
  write(2);
  const Tx::Mark mark = tx.mark();
  write(3);
  tx.set(record()->b[0], 7);
  tx.back_to(mark);
  EXPECT_EQ(record()->a, 2U);
  EXPECT_EQ(record()->b[0], 0U);
  write(4);
  tx.commit();
  EXPECT_EQ(record()->a, 4U);
}

TEST_F(OpenTransaction, HasNothingToDoForNothing) {
  Tx tx{arena};
  const std::size_t room = tx.room();
  OpenTx{arena}.save(nullptr, 0);
  EXPECT_EQ(tx.room(), room);
}

/// Who saves a thing once for each number may rely on it.
TEST_F(OpenTransaction, NumberSaysWhetherWhatWasSavedStillIs) {
  std::set<std::uint64_t> numbers;
  std::uint64_t saved = 0;
  const auto write_once = [&](std::uint64_t a) {
    if (saved != number()) OpenTx{arena}.save(record(), sizeof *record());
    saved = number();
    record()->a = a;
  };
  {
    Tx tx{arena};
    numbers.insert(number());
    const Tx::Mark mark = tx.mark();
    EXPECT_TRUE(numbers.insert(number()).second) << "what was saved before a mark is not saved for it";
    write_once(2);
    EXPECT_FALSE(numbers.insert(number()).second) << "saving is not another transaction";
    const std::size_t room = tx.room();
    write_once(3);
    EXPECT_EQ(tx.room(), room) << "once is enough";
    tx.back_to(mark);
    EXPECT_TRUE(numbers.insert(number()).second) << "what was saved since the mark is not saved any more";
    EXPECT_EQ(record()->a, 1U);
    write_once(4);
    tx.abort();
  }
  EXPECT_EQ(record()->a, 1U);
  {
    Tx tx{arena};
    numbers.insert(number());
    write_once(5);
    const Tx::Mark mark = tx.mark();
    write_once(6);
    tx.back_to(mark);
    EXPECT_EQ(record()->a, 5U);
    tx.commit();
  }
  for (const bool commit : {true, false, true}) {
    const std::uint64_t before = record()->a;
    Tx tx{arena};
    EXPECT_TRUE(numbers.insert(number()).second);
    write_once(before + 10);
    if (commit) tx.commit();
    else tx.abort();
    EXPECT_EQ(record()->a, commit ? before + 10 : before);
  }
}

TEST_F(OpenTransaction, OfAProcessThatDiedIsRolledBack) {
  const pid_t pid = fork();
  if (pid == 0) {
    Tx tx{arena};
    write(9);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  ASSERT_EQ(status, 0);
  EXPECT_EQ(record()->a, 9U);
  arena = Arena::open(arena.release(), kLayout).value();
  EXPECT_EQ(record()->a, 1U);
  EXPECT_EQ(record()->b[99], 1U);
}

using OpenTransactionDeath = OpenTransaction;
TEST_F(OpenTransactionDeath, ThereMustBeOne) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(OpenTx{arena}, "");
  {
    Tx tx{arena};
    tx.commit();
    EXPECT_DEATH(OpenTx{arena}, "") << "it is over";
  }
  Tx tx{arena};
  std::uint64_t outside = 0;
  EXPECT_DEATH(OpenTx{arena}.save(&outside, sizeof outside), "") << "not in the heap";
  EXPECT_DEATH(OpenTx{arena}.save(arena.control().data(), 8), "") << "outside of all transactions";
}

}  // namespace
}  // namespace luo::kho
