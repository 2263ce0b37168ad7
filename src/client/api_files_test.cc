// The C API against a scripted luod: files.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>

#include <atomic>
#include <numeric>

#include "client/api_testing.h"

namespace luo::client {
namespace {

using ::testing::HasSubstr;
using wire::Command;

/// A connection and a session with handle 5 that was presented.
class LuoFileTest : public testing::Test {
 protected:
  void serve(FakeLuod::Script script) {
    luod_ = std::make_unique<FakeLuod>([this, script = std::move(script)](FakeLuod& self) {
      self.answer(self.expect(Command::Present), 0, wire::PlainArg{}, {}, 5);
      script(self);
      self.expect_end();
    });
    luo_ = connect(*luod_);
  }
  void TearDown() override {
    luo_.reset();
    luod_.reset();
  }
  luo_connection* luo() { return luo_.get(); }
  int session() { return pipe_.read.raw(); }

  Pipe pipe_ = make_pipe().value();
  std::atomic<bool> returned_ = false;  // here, because scripts outlive the test's body
  std::unique_ptr<FakeLuod> luod_;
  Luo luo_;
};

TEST_F(LuoFileTest, PreserveSendsTheFile) {
  const Fd file = memfd();
  serve([&](FakeLuod& self) {
    const auto request = self.expect(Command::PreserveFd);
    EXPECT_EQ(request.header.error, 0);
    EXPECT_EQ(request.arg<wire::TokenArg>().token, UINT64_MAX);
    ASSERT_EQ(request.fds.size(), 1U);
    EXPECT_EQ(inode_of(request.fds[0].raw()), inode_of(file.raw()));
    self.answer(request, 0, wire::TokenArg{});
    self.answer(self.expect(Command::PreserveFd), EEXIST, wire::TokenArg{});
  });
  EXPECT_EQ(luo_preserve_fd(luo(), session(), file.raw(), UINT64_MAX), 0);
  EXPECT_EQ(luo_preserve_fd(luo(), session(), file.raw(), 3), -EEXIST);
  EXPECT_THAT(luo_last_error(), testing::MatchesRegex("preserve fd [0-9]+ as token 3 in session fd [0-9]+: File exists "
                                                      "\\[EEXIST\\]; the token is in use in this session"));
}

TEST_F(LuoFileTest, LuodsOwnSentenceReplacesTheHint) {
  serve(
      [](FakeLuod& self) { self.refuse(self.expect(Command::UnpreserveFd), EBUSY, "an update\x1b[2J is under way"); });
  EXPECT_EQ(luo_unpreserve_fd(luo(), session(), 3), -EBUSY);
  EXPECT_THAT(luo_last_error(), testing::EndsWith(": an update?[2J is under way: Device or resource busy [EBUSY]"));
}

TEST_F(LuoFileTest, PreserveLetsLuodJudgeABadDescriptor) {
  serve([](FakeLuod& self) {
    const auto request = self.expect(Command::PreserveFd);
    EXPECT_EQ(request.header.error, EBADF);
    EXPECT_TRUE(request.fds.empty());
    self.answer(request, EEXIST);
    // luod's EBADF may also mean the handle; presenting again settles it.
    self.answer(self.expect(Command::PreserveFd), EBADF);
    self.answer(self.expect(Command::Present), 0, wire::PlainArg{}, {}, 5);
  });
  EXPECT_EQ(luo_preserve_fd(luo(), session(), 19'999, 1), -EEXIST);
  EXPECT_EQ(luo_preserve_fd(luo(), session(), -1, 1), -EBADF);
}

TEST_F(LuoFileTest, PreserveSendsAnOPathDescriptorForLuodToRefuse) {
  const Fd path = Fd::adopt(open("/", O_PATH | O_CLOEXEC));
  serve([](FakeLuod& self) {
    const auto request = self.expect(Command::PreserveFd);
    EXPECT_EQ(request.header.error, 0);
    EXPECT_EQ(request.fds.size(), 1U);
    self.answer(request, EBADF);
  });
  EXPECT_EQ(luo_preserve_fd(luo(), session(), path.raw(), 1), -EBADF);
}

TEST_F(LuoFileTest, PreserveReportsAnIoUringAsAKindThatNobodyHandles) {
  io_uring_params params{};
  const Fd ring = Fd::adopt(static_cast<int>(syscall(SYS_io_uring_setup, 2, &params)));
  if (!ring.valid()) GTEST_SKIP() << "io_uring_setup: " << errno_text(errno);
  serve([](FakeLuod& self) {
    const auto request = self.expect(Command::PreserveFd);
    EXPECT_EQ(request.header.error, ENOENT);
    self.answer(request, ENOENT, wire::TokenArg{});
    const auto many = self.expect(Command::PreserveMany);
    EXPECT_EQ(many.fds.size(), 1U);
    const auto entries = wire::parse_array<wire::ManyEntry>(many.payload)->elements;
    EXPECT_EQ(entries[0].error, 0);
    EXPECT_EQ(entries[1].error, ENOENT);
    self.builder().start(Command::PreserveMany, many.header.nonce, 5).arg(wire::ManyArg{0, 2});
    self.builder().add(wire::ManyResult{0}).add(wire::ManyResult{ENOENT});
    self.post();
  });
  EXPECT_EQ(luo_preserve_fd(luo(), session(), ring.raw(), 1), -ENOENT);
  const Fd file = memfd();
  const int fds[] = {file.raw(), ring.raw()};
  const std::uint64_t tokens[] = {1, 2};
  int errors[2];
  EXPECT_EQ(luo_preserve_many(luo(), session(), fds, tokens, errors, 2), 1);
  EXPECT_THAT(errors, testing::ElementsAre(0, ENOENT));
}

TEST_F(LuoFileTest, PreserveManyIsSplitAndItsResultsAreMappedBack) {
  constexpr std::size_t kCount = 600;
  const Fd file = memfd();
  std::vector<int> fds(kCount, file.raw());
  fds[300] = 19'999;
  std::vector<std::uint64_t> tokens(kCount);
  std::iota(tokens.begin(), tokens.end(), 1000);
  serve([&](FakeLuod& self) {
    std::uint64_t expected = 1000;
    for (const std::size_t size : {253U, 253U, 94U}) {
      const auto request = self.expect(Command::PreserveMany);
      const auto batch = wire::parse_array<wire::ManyEntry>(request.payload).value();
      ASSERT_EQ(batch.elements.size(), size);
      EXPECT_EQ(request.fds.size(), size == 253 && expected > 1000 ? size - 1 : size);
      self.builder()
          .start(Command::PreserveMany, request.header.nonce, 5)
          .arg(wire::ManyArg{0, static_cast<std::uint32_t>(size)});
      for (const auto& entry : batch.elements) {
        EXPECT_EQ(entry.token, expected++);
        EXPECT_EQ(entry.error, entry.token == 1300 ? EBADF : 0);
        self.builder().add(wire::ManyResult{entry.error != 0 ? entry.error : entry.token == 1599 ? EBUSY : 0});
      }
      self.post();
    }
  });
  std::vector<int> errors(kCount, -1);
  EXPECT_EQ(luo_preserve_many(luo(), session(), fds.data(), tokens.data(), errors.data(), kCount), 598);
  for (std::size_t i = 0; i < kCount; ++i) EXPECT_EQ(errors[i], i == 300 ? EBADF : i == 599 ? EBUSY : 0) << i;
}

TEST_F(LuoFileTest, PreserveManySaysWhichBatchFailedAndWhatWasNotTried) {
  const Fd file = memfd();
  const std::vector<int> fds(600, file.raw());
  const std::vector<std::uint64_t> tokens(600, 1);
  serve([](FakeLuod& self) {
    const auto request = self.expect(Command::PreserveMany);
    self.builder().start(Command::PreserveMany, request.header.nonce, 5).arg(wire::ManyArg{0, 253});
    for (int i = 0; i < 253; ++i) self.builder().add(wire::ManyResult{0});
    self.post();
    self.answer(self.expect(Command::PreserveMany), ENOSPC, wire::ManyArg{});
  });
  std::vector<int> errors(600, -1);
  EXPECT_EQ(luo_preserve_many(luo(), session(), fds.data(), tokens.data(), errors.data(), 600), -ENOSPC);
  for (std::size_t i = 0; i < 600; ++i) EXPECT_EQ(errors[i], i < 253 ? 0 : i < 506 ? ENOSPC : ECANCELED) << i;
}

TEST_F(LuoFileTest, PreserveManyRefusesAnAnswerForAnotherCount) {
  const Fd file = memfd();
  serve([](FakeLuod& self) {
    const auto request = self.expect(Command::PreserveMany);
    self.builder().start(Command::PreserveMany, request.header.nonce, 5).arg(wire::ManyArg{0, 1});
    self.builder().add(wire::ManyResult{0});
    self.post();
  });
  const int fds[] = {file.raw(), file.raw()};
  const std::uint64_t tokens[] = {1, 2};
  int errors[2];
  EXPECT_EQ(luo_preserve_many(luo(), session(), fds, tokens, errors, 2), -EPROTO);
  EXPECT_THAT(errors, testing::Each(EPROTO));
}

TEST_F(LuoFileTest, NothingToDoIsDoneWithoutAsking) {
  FakeLuod luod{[](FakeLuod& self) { self.expect_end(); }};
  {
    const Luo other = connect(luod);
    EXPECT_EQ(luo_preserve_many(other.get(), session(), nullptr, nullptr, nullptr, 0), 0);
    EXPECT_EQ(luo_retrieve_many(other.get(), session(), nullptr, nullptr, 0), 0);
    EXPECT_EQ(luo_preserve_many(other.get(), session(), nullptr, nullptr, nullptr, 1), -EFAULT);
  }
}

TEST_F(LuoFileTest, RetrieveGivesTheFile) {
  const Fd file = memfd();
  serve([&](FakeLuod& self) {
    const int number = file.raw();
    self.answer(self.expect(Command::RetrieveFd), 0, wire::TokenArg{}, {&number, 1});
    self.answer(self.expect(Command::RetrieveFd), ENOENT, wire::TokenArg{});
    self.answer(self.expect(Command::RetrieveFd), 0, wire::TokenArg{});
  });
  const Fd got = Fd::adopt(luo_retrieve_fd(luo(), session(), 7));
  ASSERT_TRUE(got.valid()) << luo_last_error();
  EXPECT_EQ(inode_of(got.raw()), inode_of(file.raw()));
  EXPECT_EQ(fcntl(got.raw(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(luo_retrieve_fd(luo(), session(), 8), -ENOENT);
  EXPECT_EQ(luo_retrieve_fd(luo(), session(), 9), -EPROTO);
}

TEST_F(LuoFileTest, RetrieveManyPutsEachFileInItsPlace) {
  const Fd a = memfd(), b = memfd();
  serve([&](FakeLuod& self) {
    const auto request = self.expect(Command::RetrieveMany);
    EXPECT_EQ(wire::parse_array<wire::ManyEntry>(request.payload)->elements[2].token, 12U);
    self.builder().start(Command::RetrieveMany, request.header.nonce, 5).arg(wire::ManyArg{0, 3});
    self.builder().add(wire::ManyResult{0}).add(wire::ManyResult{ENOENT}).add(wire::ManyResult{0});
    self.builder().add_fd(a.raw()).add_fd(b.raw());
    self.post();
  });
  const std::uint64_t tokens[] = {10, 11, 12};
  int fds[3];
  EXPECT_EQ(luo_retrieve_many(luo(), session(), tokens, fds, 3), 2);
  const Fd first = Fd::adopt(fds[0]), third = Fd::adopt(fds[2]);
  EXPECT_EQ(inode_of(fds[0]), inode_of(a.raw()));
  EXPECT_EQ(fds[1], -ENOENT);
  EXPECT_EQ(inode_of(fds[2]), inode_of(b.raw()));
}

TEST_F(LuoFileTest, RetrieveManyClosesWhatCameWhenALaterBatchFails) {
  Pipe kept = make_pipe().value();
  serve([&](FakeLuod& self) {
    const auto request = self.expect(Command::RetrieveMany);
    self.builder().start(Command::RetrieveMany, request.header.nonce, 5).arg(wire::ManyArg{0, 253});
    for (int i = 0; i < 253; ++i) self.builder().add(wire::ManyResult{0}).add_fd(kept.read.raw());
    self.post();
    self.answer(self.expect(Command::RetrieveMany), EIO, wire::ManyArg{});
  });
  const std::vector<std::uint64_t> tokens(300, 1);
  std::vector<int> fds(300, -1);
  EXPECT_EQ(luo_retrieve_many(luo(), session(), tokens.data(), fds.data(), 300), -EIO);
  EXPECT_THAT(fds, testing::Each(-EIO));
  kept.read.close();
  EXPECT_TRUE(reader_gone(kept.write.raw()));
}

TEST_F(LuoFileTest, RetrieveManyMarksWhatFoundNoNumber) {
  const Fd file = memfd();
  serve([&](FakeLuod& self) {
    const auto request = self.expect(Command::RetrieveMany);
    self.builder().start(Command::RetrieveMany, request.header.nonce, 5).arg(wire::ManyArg{0, 2});
    self.builder().add(wire::ManyResult{0}).add(wire::ManyResult{0}).add_fd(file.raw()).add_fd(file.raw());
    const NoMoreDescriptors none;
    self.post();
    returned_.wait(false);
  });
  const std::uint64_t tokens[] = {1, 2};
  int fds[2];
  EXPECT_EQ(luo_retrieve_many(luo(), session(), tokens, fds, 2), 0) << luo_last_error();
  returned_ = true;
  returned_.notify_one();
  EXPECT_THAT(fds, testing::Each(-EMFILE));
}

TEST_F(LuoFileTest, TokensComeInOrderUpToTheRoom) {
  serve([](FakeLuod& self) {
    const wire::ManyEntry entries[] = {{30, 0, 0}, {10, 0, 0}, {20, 0, 0}};
    const Fd list = sealed_memfd("tokens", {reinterpret_cast<const char*>(entries), sizeof entries}).value();
    const int number = list.raw();
    for (const std::uint32_t count : {3U, 3U, 4U, 2U})
      self.answer(self.expect(Command::ListTokens), 0, wire::ManyArg{0, count}, {&number, 1});
  });
  std::uint64_t tokens[4] = {};
  EXPECT_EQ(luo_session_tokens(luo(), session(), tokens, 4), 3);
  EXPECT_THAT(tokens, testing::ElementsAre(30, 10, 20, 0));
  std::uint64_t one = 0;
  EXPECT_EQ(luo_session_tokens(luo(), session(), &one, 1), 3);
  EXPECT_EQ(one, 30U);
  EXPECT_LT(luo_session_tokens(luo(), session(), tokens, 4), 0);  // the list is shorter than announced
  EXPECT_LT(luo_session_tokens(luo(), session(), tokens, 4), 0);  // and longer
}

TEST_F(LuoFileTest, CallsFailOnceLuodIsGone) {
  luod_ = std::make_unique<FakeLuod>([](FakeLuod& self) { (void)self.expect(Command::Present); });
  luo_ = connect(*luod_);
  EXPECT_EQ(luo_unpreserve_fd(luo(), session(), 1), -ECONNRESET);
  EXPECT_EQ(luo_session_create(luo(), "x"), -ECONNRESET);
  EXPECT_THAT(luo_last_error(), HasSubstr("luod is gone"));
}

}  // namespace
}  // namespace luo::client
