// The C API against a scripted luod: connections and sessions.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "client/api_testing.h"

namespace luo::client {
namespace {

using ::testing::HasSubstr;
using wire::Command;

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

}  // namespace
}  // namespace luo::client
