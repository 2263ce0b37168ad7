// Files that share an inode: eventfds, and the ends of a pipe, told apart by kcmp(2).
#include <gmock/gmock.h>
#include <sys/eventfd.h>

#include <random>

#include "luo/engine_testing.h"
#include "luo/identity.h"

namespace luo::testing {
namespace {

Fd event() { return Fd::adopt(eventfd(0, EFD_CLOEXEC)); }

struct PerFile : ::testing::Test {
  PerFile() {
    w.fake.wants = [](const FileInfo&) { return true; };
    w.fake.identify = [](const FileInfo& f) { return Identity{f.st.st_dev, f.st.st_ino, true}; };
  }
  World w;
};

TEST_F(PerFile, EventfdsAreDistinctAndEachIsRefusedTwice) {
  const SessionId id = w.create("vm");
  const SessionId other = w.create("other");
  std::vector<Fd> mine;
  std::mt19937_64 random{1};
  for (std::uint64_t token = 0; token < 300; ++token) {
    mine.push_back(event());
    w.preserve(id, token, duplicate(mine.back()));
  }
  w.expect_sound();
  for (const Fd& fd : mine) EXPECT_EQ(code(w.try_preserve(other, 1, duplicate(fd))), EBUSY);
  // In any order of leaving, those that are left stay known and those that left may come again.
  std::vector<std::uint64_t> tokens = w.tokens(id);
  std::shuffle(tokens.begin(), tokens.end(), random);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_TRUE(w.unpreserve(id, tokens[i]).has_value());
    const Fd& gone = mine[tokens[i]];
    if (i % 3 == 0) w.preserve(other, 1000 + i, duplicate(gone));
    const std::size_t left = tokens[std::min(i + 1, tokens.size() - 1)];
    if (i + 1 < tokens.size()) {
      EXPECT_EQ(code(w.try_preserve(other, 1, duplicate(mine[left]))), EBUSY);
    }
    if (i % 50 == 0) w.expect_sound();
  }
  w.reopen();
  w.expect_sound();
  w.closed(other);
  w.expect_sound();
  EXPECT_EQ(w.engine->file_count(), 0U);
}

TEST_F(PerFile, BothEndsOfAPipeArePreservedEachOnce) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const Fd reader = Fd::adopt(ends[0]);
  const Fd writer = Fd::adopt(ends[1]);
  const SessionId id = w.create("vm");
  w.preserve(id, 1, duplicate(reader));
  w.preserve(id, 2, duplicate(writer));
  EXPECT_EQ(code(w.try_preserve(id, 3, duplicate(reader))), EBUSY);
  EXPECT_EQ(code(w.try_preserve(id, 3, duplicate(writer))), EBUSY);
  // A second open of the same pipe is another open file.
  w.preserve(id, 3, Fd::adopt(open(fmt::format("/proc/self/fd/{}", reader.raw()).c_str(), O_RDONLY | O_CLOEXEC)));
  w.expect_sound();
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  EXPECT_EQ(code(w.try_preserve(id, 4, duplicate(writer))), EBUSY);
  w.preserve(id, 4, duplicate(reader));
  w.expect_sound();
}

TEST_F(PerFile, ARefusedOneLeavesTheTreeAsItWas) {
  const SessionId id = w.create("vm");
  w.preserve(id, 1, event());
  w.fake.errors["preserve 2"] = EIO;
  for (int i = 0; i < 20; ++i) EXPECT_EQ(code(w.try_preserve(id, 2, event())), EIO);
  w.expect_sound();
  EXPECT_EQ(w.engine->file_count(), 1U);
}

TEST_F(PerFile, OneThatOnlyWaitsToBeSweptKeepsNobodyOut) {
  const SessionId id = w.create("vm");
  std::vector<Fd> mine;
  for (std::uint64_t token = 0; token < 400; ++token) {  // more than one step takes out
    mine.push_back(event());
    w.preserve(id, token, duplicate(mine.back()));
  }
  const SessionId next = w.create("next");
  const int write_end = w.engine->find(id)->holder[0].write_fd;
  {
    Change change{*w.arena};
    w.engine->holder_closed(change, id, Role::Owner);
    for (std::uint64_t token : {0, 17, 399}) {
      const int fd = duplicate(mine[token]).release();
      EXPECT_TRUE(w.engine->preserve(change, next, {Token{token}, fd, 0}).has_value());
    }
    change.tx.commit();  // killed right after it
  }
  ::close(write_end);
  w.expect_sound();
  w.reopen();
  w.expect_sound();
  EXPECT_THAT(w.tokens(next), ::testing::ElementsAre(0, 17, 399));
  EXPECT_EQ(w.engine->file_count(), 3U);
}

TEST(CompareFiles, OrdersOpenFilesAndKnowsDups) {
  const Fd a = event();
  const Fd b = event();
  const Fd a2 = duplicate(a);
  const auto ab = compare_files(a.raw(), b.raw());
  const auto ba = compare_files(b.raw(), a.raw());
  ASSERT_TRUE(ab.has_value()) << to_string(ab.error());
  ASSERT_TRUE(ba.has_value());
  EXPECT_NE(*ab, 0);
  EXPECT_EQ(*ab, -*ba);
  EXPECT_EQ(*compare_files(a.raw(), a2.raw()), 0);
  EXPECT_EQ(compare_files(a.raw(), 1 << 20).error().code, EBADF);
}

}  // namespace
}  // namespace luo::testing
