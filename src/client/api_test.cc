// The C API against a scripted luod: sessions and files.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>

#include <numeric>

#include "client/fake_luod.h"
#include "luo/luo.h"
#include "sys/memfd.h"

namespace luo::client {
namespace {

using ::testing::HasSubstr;
using wire::Command;

struct Closer {
  void operator()(luo_connection* c) const { luo_close(c); }
};
using Luo = std::unique_ptr<luo_connection, Closer>;

Luo connect(const FakeLuod& luod) {
  luo_connection* c = nullptr;
  EXPECT_EQ(luo_open(luod.path().c_str(), &c), 0) << luo_last_error();
  return Luo{c};
}

ino_t inode_of(int fd) {
  struct stat info {};
  EXPECT_EQ(fstat(fd, &info), 0);
  return info.st_ino;
}

Fd memfd() { return make_memfd("test", 0).value(); }

/// No descriptor above those that are open now, until the end of the scope.
class NoMoreDescriptors {
 public:
  NoMoreDescriptors() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &old_), 0);
    const Fd lowest = Fd::adopt(dup(0));
    const rlimit none{static_cast<rlim_t>(lowest.raw()), old_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  ~NoMoreDescriptors() { setrlimit(RLIMIT_NOFILE, &old_); }

 private:
  rlimit old_{};
};

TEST(LuoOpen, ReportsWhereItLookedAndWhatToDo) {
  luo_connection* c = nullptr;
  EXPECT_EQ(luo_open("/tmp/luo-no-such.sock", &c), -ENOENT);
  EXPECT_EQ(c, nullptr);
  EXPECT_THAT(luo_last_error(), testing::HasSubstr("/tmp/luo-no-such.sock"));
  EXPECT_THAT(luo_last_error(), testing::HasSubstr("[ENOENT]; is luod running?"));
  EXPECT_EQ(luo_open("/tmp", nullptr), -EINVAL);
}

TEST(LuoOpen, TreatsACharacterDeviceAsTheKernels) {
  luo_connection* c = nullptr;
  ASSERT_EQ(luo_open("/dev/null", &c), 0);
  const Luo luo{c};
  EXPECT_EQ(luo_session_create(c, "x"), -ENOTTY);
  EXPECT_EQ(luo_session_retrieve_wait(c, "x", 0), -ENOTSUP);
  const Fd file = memfd();
  EXPECT_EQ(luo_preserve_fd(c, file.raw(), file.raw(), 1), -ENOTTY);
  EXPECT_EQ(luo_unpreserve_fd(c, file.raw(), 1), -ENOTSUP);
  EXPECT_EQ(luo_session_renew(c, file.raw()), -ENOTSUP);
  EXPECT_EQ(luo_fd(c), -ENOTSUP);
  EXPECT_EQ(luo_dispatch(c), -ENOTSUP);
  EXPECT_FALSE(luo_is_successor(c));
}

TEST(LuoOpen, UsesTheTicketForOneConnectionOfTheProcess) {
  setenv("LUO_TICKET", "1f", 1);
  {
    FakeLuod luod{[](FakeLuod& self) {
      EXPECT_EQ(self.hello.arg<wire::HelloArg>().ticket, 0x1FU);  // and luod's answer repeats it
      self.expect_end();
    }};
    EXPECT_TRUE(luo_is_successor(connect(luod).get()));
  }
  FakeLuod luod{[](FakeLuod& self) {
    EXPECT_EQ(self.hello.arg<wire::HelloArg>().ticket, 0U);
    self.expect_end();
  }};
  EXPECT_FALSE(luo_is_successor(connect(luod).get()));
  unsetenv("LUO_TICKET");
}

TEST(LuoOpen, IsNoSuccessorIfLuodDoesNotKnowTheTicket) {
  setenv("LUO_TICKET", "1f", 1);
  FakeLuod luod{[](FakeLuod& self) {
                  self.answer(self.expect(Command::Hello), 0, wire::HelloArg{});
                  self.expect_end();
                },
                false};
  EXPECT_FALSE(luo_is_successor(connect(luod).get()));
  unsetenv("LUO_TICKET");
}

TEST(LuoSession, IsCreatedThenAcceptedThenUsedByItsHandle) {
  Fd held;
  FakeLuod luod{[&](FakeLuod& self) {
    held = self.hand_out(Command::CreateSession, 41);
    const auto request = self.expect(Command::Finish);
    EXPECT_EQ(request.header.session, 41U);
    self.answer(request, EINVAL);
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    const Fd session = Fd::adopt(luo_session_create(luo.get(), "vm-7"));
    ASSERT_TRUE(session.valid()) << luo_last_error();
    EXPECT_EQ(fcntl(session.raw(), F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(luo_session_finish(luo.get(), session.raw()), -EINVAL);
    EXPECT_STREQ(luo_last_error(),
                 "finish session 'vm-7': Invalid argument [EINVAL]; only a retrieved session can be finished");
  }
  luod.join();
  EXPECT_TRUE(reader_gone(held.raw()));  // the library kept no copy
}

TEST(LuoSession, OptionsGoToLuodAsTheyAreGiven) {
  Fd held;
  const std::string longer = "transient" + std::string(100, 'x');
  FakeLuod luod{[&](FakeLuod& self) {
    held = self.hand_out(Command::CreateSession, 41);
    const auto set = self.expect(Command::SetOption);
    EXPECT_EQ(set.header.session, 41U);
    EXPECT_EQ(wire::text_in(set.arg<wire::OptionArg>().key), "transient");
    EXPECT_EQ(wire::text_in(set.arg<wire::OptionArg>().value), "allow");
    self.answer(set);
    const auto cut = self.expect(Command::SetOption);
    EXPECT_EQ(wire::text_in(cut.arg<wire::OptionArg>().key), longer.substr(0, 32));
    EXPECT_EQ(wire::text_in(cut.arg<wire::OptionArg>().value), "");
    self.answer(cut, EINVAL);
    self.expect_end();
  }};
  const Luo luo = connect(luod);
  const Fd session = Fd::adopt(luo_session_create(luo.get(), "vm-7"));
  ASSERT_TRUE(session.valid()) << luo_last_error();
  EXPECT_EQ(luo_session_set_option(luo.get(), session.raw(), "transient", "allow"), 0) << luo_last_error();
  EXPECT_EQ(luo_session_set_option(luo.get(), session.raw(), longer.c_str(), nullptr), -EINVAL);
  EXPECT_THAT(luo_last_error(), HasSubstr("of session 'vm-7'"));
  EXPECT_THAT(luo_last_error(), HasSubstr("transient and grow"));
}

TEST(LuoSession, OptionsNeedALuodThatHasThem) {
  Fd held;
  FakeLuod luod{[&](FakeLuod& self) {
                  const auto hello = self.expect(Command::Hello);
                  auto arg = hello.arg<wire::HelloArg>();
                  arg.capabilities &= ~std::uint64_t{wire::kCapKernel};
                  self.answer(hello, 0, arg);
                  held = self.hand_out(Command::CreateSession, 41);
                  self.expect_end();
                },
                false};
  const Luo luo = connect(luod);
  const Fd session = Fd::adopt(luo_session_create(luo.get(), "vm-7"));
  ASSERT_TRUE(session.valid()) << luo_last_error();
  EXPECT_EQ(luo_session_set_option(luo.get(), session.raw(), "grow", "allow"), -ENOTSUP);
}

TEST(LuoSession, NameArrivesWholeAlsoIfItIsTooLong) {
  const std::string longest(63, 'n'), too_long(64, 'n'), far_too_long(100, 'n');
  FakeLuod luod{[&](FakeLuod& self) {
    for (const std::size_t length : {0U, 63U, 64U, 64U}) {
      const auto request = self.expect(Command::CreateSession);
      EXPECT_EQ(wire::text_in(request.arg<wire::NameArg>().name), std::string(length, 'n'));
      self.answer(request, EINVAL, wire::NameArg{});
    }
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    for (const auto& name : {std::string{}, longest, too_long, far_too_long})
      EXPECT_EQ(luo_session_create(luo.get(), name.c_str()), -EINVAL);
  }
}

TEST(LuoSession, WithoutAFreeNumberNothingIsAsked) {
  FakeLuod luod{[](FakeLuod& self) { self.expect_end(); }};
  {
    const Luo luo = connect(luod);
    const NoMoreDescriptors none;
    EXPECT_EQ(luo_session_create(luo.get(), ""), -EMFILE);
    EXPECT_EQ(luo_session_retrieve(luo.get(), "x"), -EMFILE);
  }
}

TEST(LuoSession, IsNotAcceptedWhenItsDescriptorDidNotArrive) {
  std::atomic<bool> returned = false;
  FakeLuod luod{[&](FakeLuod& self) {
    const auto request = self.expect(Command::CreateSession);
    Pipe pipe = make_pipe().value();
    const int number = pipe.read.raw();
    {
      const NoMoreDescriptors none;
      self.answer(request, 0, wire::NameArg{}, {&number, 1}, 41);
      returned.wait(false);
    }
    pipe.read.close();
    EXPECT_TRUE(reader_gone(pipe.write.raw()));
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    EXPECT_EQ(luo_session_create(luo.get(), "x"), -EMFILE);
    returned = true;
    returned.notify_one();
  }
}

TEST(LuoSession, AnAnswerWithoutASessionIsRefused) {
  FakeLuod luod{[](FakeLuod& self) {
    self.answer(self.expect(Command::CreateSession), 0, wire::NameArg{}, {}, 41);
    const auto request = self.expect(Command::RetrieveSession);
    const Fd file = memfd();
    const int number = file.raw();
    self.answer(request, 0, wire::NameArg{}, {&number, 1}, 41);
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    EXPECT_EQ(luo_session_create(luo.get(), "x"), -EPROTO);
    EXPECT_EQ(luo_session_retrieve(luo.get(), "x"), -EPROTO);
  }
}

TEST(LuoSession, FromElsewhereIsPresentedOnceAndAgainWhenItsNumberIsAnotherPipe) {
  Pipe first = make_pipe().value(), second = make_pipe().value();
  FakeLuod luod{[&](FakeLuod& self) {
    for (const std::uint64_t handle : {5U, 6U}) {
      const auto present = self.expect(Command::Present);
      EXPECT_EQ(present.fds.size(), 1U);
      self.answer(present, 0, wire::PlainArg{}, {}, handle);
      for (int i = 0; i < 2; ++i) {
        const auto request = self.expect(Command::Finish);
        EXPECT_EQ(request.header.session, handle);
        self.answer(request);
      }
    }
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(luo_session_finish(luo.get(), first.read.raw()), 0);
    ASSERT_EQ(dup3(second.read.raw(), first.read.raw(), O_CLOEXEC), first.read.raw());
    for (int i = 0; i < 2; ++i) EXPECT_EQ(luo_session_finish(luo.get(), first.read.raw()), 0);
  }
}

TEST(LuoSession, IsPresentedAgainOnceWhenLuodForgotTheHandle) {
  Pipe pipe = make_pipe().value();
  FakeLuod luod{[&](FakeLuod& self) {
    self.answer(self.expect(Command::Present), 0, wire::PlainArg{}, {}, 5);
    self.answer(self.expect(Command::Finish));
    self.answer(self.expect(Command::Finish), EBADF);
    self.answer(self.expect(Command::Present), 0, wire::PlainArg{}, {}, 6);
    const auto request = self.expect(Command::Finish);
    EXPECT_EQ(request.header.session, 6U);
    self.answer(request);
    self.answer(self.expect(Command::Finish), EBADF);
    self.answer(self.expect(Command::Present), EBADF);
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    EXPECT_EQ(luo_session_finish(luo.get(), pipe.read.raw()), 0);
    EXPECT_EQ(luo_session_finish(luo.get(), pipe.read.raw()), 0);
    EXPECT_EQ(luo_session_finish(luo.get(), pipe.read.raw()), -ENOTTY);
  }
}

TEST(LuoSession, OtherDescriptorsAreRefusedAsTheKernelRefusesThem) {
  Pipe pipe = make_pipe().value();
  FakeLuod luod{[&](FakeLuod& self) {
    self.answer(self.expect(Command::Present), EBADF);
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    EXPECT_EQ(luo_session_finish(luo.get(), pipe.read.raw()), -ENOTTY);
    EXPECT_EQ(luo_session_finish(luo.get(), memfd().raw()), -ENOTTY);
    EXPECT_EQ(luo_session_finish(luo.get(), 19'999), -EBADF);
    const Fd path = Fd::adopt(open(fmt::format("/proc/self/fd/{}", pipe.read.raw()).c_str(), O_PATH | O_CLOEXEC));
    EXPECT_EQ(luo_session_finish(luo.get(), path.raw()), -EBADF);
  }
}

TEST(LuoSession, NameIsGivenBack) {
  Pipe pipe = make_pipe().value();
  FakeLuod luod{[&](FakeLuod& self) {
    self.answer(self.expect(Command::Present), 0, wire::PlainArg{}, {}, 5);
    wire::GetNameArg arg{};
    wire::put_text(arg.name, "vm-7");
    self.answer(self.expect(Command::GetName), 0, arg);
    std::memset(arg.name, 'x', sizeof arg.name);
    self.answer(self.expect(Command::GetName), 0, arg);
    self.expect_end();
  }};
  {
    const Luo luo = connect(luod);
    char name[LUO_NAME_LENGTH];
    EXPECT_EQ(luo_session_get_name(luo.get(), pipe.read.raw(), name), 0);
    EXPECT_STREQ(name, "vm-7");
    EXPECT_EQ(luo_session_get_name(luo.get(), pipe.read.raw(), name), -EPROTO);
  }
}

TEST(LuoSession, ChildOfAForkIsToldToConnectItself) {
  FakeLuod luod{[](FakeLuod& self) { self.expect_end(); }};
  {
    const Luo luo = connect(luod);
    const pid_t pid = fork();
    if (pid == 0) {
      const bool refused = luo_session_create(luo.get(), "x") == -EOWNERDEAD && luo_dispatch(luo.get()) == -EOWNERDEAD;
      _exit(refused ? 0 : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0);
  }
}

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
  EXPECT_THAT(luo_last_error(), testing::HasSubstr("luod is gone"));
}

}  // namespace
}  // namespace luo::client
