// The harness itself: it must find what is wrong, or its silence means nothing.
#include "support/kill_harness.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/kill_process.h"

namespace luo::test {
namespace {

/// Two words in a memfd that should change together.
class Words {
 public:
  Words() : fd_{Fd::adopt(::memfd_create("words", MFD_CLOEXEC))} {
    EXPECT_EQ(::ftruncate(fd_.raw(), 8192), 0);
    at = static_cast<volatile unsigned long*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.raw(), 0));
  }
  ~Words() { ::munmap(const_cast<unsigned long*>(at), 8192); }
  KillCase make_case(std::function<void()> operate) {
    return {.set_up = [this]() -> Result<Fd> {
              at[0] = 1;
              at[512] = 1;
              return Fd::adopt(::fcntl(fd_.raw(), F_DUPFD_CLOEXEC, 0));
            },
            .operate = std::move(operate),
            .recover = [](Fd memfd) -> Result<std::string> {
              unsigned long first = 0, second = 0;
              if (::pread(memfd.raw(), &first, 8, 0) != 8 || ::pread(memfd.raw(), &second, 8, 4096) != 8)
                return sys_fail("pread");
              return fmt::format("{} {}", first, second);
            },
            .also_right = {}};
  }
  volatile unsigned long* at;

 private:
  Fd fd_;
};

TEST(KillHarness, FindsTheInstructionBetweenTwoStores) {
  if (!kStepsInstructions) GTEST_SKIP() << "no single-stepping under a sanitizer";
  Words words;
  const auto count = kill_at_every_instruction(words.make_case([&] {
    words.at[0] = 2;
    words.at[512] = 2;
  }));
  ASSERT_FALSE(count);
  EXPECT_EQ(count.error().code, EILSEQ);
  EXPECT_NE(to_string(count.error()).find("is: 2 1"), std::string::npos) << to_string(count.error());
}

TEST(KillHarness, AcceptsOneStore) {
  if (!kStepsInstructions) GTEST_SKIP() << "no single-stepping under a sanitizer";
  Words words;
  const auto count = kill_at_every_instruction(words.make_case([&] { words.at[0] = 2; }), 4);
  ASSERT_TRUE(count) << to_string(count.error());
  EXPECT_GE(count->recovered, 2U + 4U);
  EXPECT_GE(count->finished, 1U);
}

TEST(KillHarness, FindsAChangeThatIsTakenBack) {
  if (!kStepsInstructions) GTEST_SKIP() << "no single-stepping under a sanitizer";
  Words words;
  const auto count = kill_at_every_instruction(words.make_case([&] {
    words.at[0] = 2;
    words.at[0] = 1;
    words.at[0] = 2;
  }));
  ASSERT_FALSE(count);
  EXPECT_NE(to_string(count.error()).find("then it was not"), std::string::npos) << to_string(count.error());
}

TEST(KillHarness, FindsTheSystemCallBetweenTwoStores) {
  Words words;
  const auto count = kill_at_every_syscall(words.make_case([&] {
    words.at[0] = 2;
    ::syscall(SYS_getppid);
    words.at[512] = 2;
  }));
  ASSERT_FALSE(count);
  EXPECT_EQ(count.error().code, EILSEQ);
}

TEST(KillHarness, CountsEntryAndExitOfEachSystemCall) {
  Words words;
  const auto count = kill_at_every_syscall(words.make_case([&] {
    ::syscall(SYS_getppid);
    ::syscall(SYS_getppid);
    words.at[0] = 2;
  }));
  ASSERT_TRUE(count) << to_string(count.error());
  EXPECT_EQ(count->points, 5U);  // and the end
  EXPECT_EQ(count->finished, 1U);
}

TEST(KillHarness, AllowsStatesBetweenWhenTold) {
  Words words;
  KillCase c = words.make_case([&] {
    words.at[0] = 2;
    ::syscall(SYS_getppid);
    words.at[512] = 2;
  });
  c.also_right = [](const std::string& state) { return state == "2 1"; };
  EXPECT_TRUE(kill_everywhere(c));
}

TEST(KillHarness, ReportsAnOperationThatCrashes) {
  Words words;
  const auto count = kill_at_every_syscall(words.make_case([] { ::raise(SIGKILL); }));
  ASSERT_FALSE(count);
  EXPECT_EQ(count.error().code, ECHILD) << to_string(count.error());
}

/// A child that answers each count in an eventfd with one in another, by read and write.
class Echo {
 public:
  Echo() : ask_{Fd::adopt(::eventfd(0, EFD_CLOEXEC))}, answer_{Fd::adopt(::eventfd(0, EFD_CLOEXEC))}, pid_{::fork()} {
    if (pid_ != 0) return;
    std::uint64_t n = 0;
    while (true) {
      if (::read(ask_.raw(), &n, sizeof n) != sizeof n) continue;
      if (n == 100) ::_exit(0);
      if (::write(answer_.raw(), &n, sizeof n) != sizeof n) ::_exit(1);
    }
  }
  ~Echo() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      reap();
    }
  }
  pid_t pid() const { return pid_; }
  void ask(std::uint64_t n) { ASSERT_EQ(::write(ask_.raw(), &n, sizeof n), static_cast<ssize_t>(sizeof n)); }
  bool answered() {
    pollfd poll{.fd = answer_.raw(), .events = POLLIN, .revents = 0};
    return ::poll(&poll, 1, 0) == 1;
  }
  std::uint64_t wait_for_answer() {
    std::uint64_t n = 0;
    EXPECT_EQ(::read(answer_.raw(), &n, sizeof n), static_cast<ssize_t>(sizeof n));
    return n;
  }
  int reap() {
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return status;
  }

 private:
  Fd ask_, answer_;
  pid_t pid_;
};

TEST(SyscallKill, KillsAtEachStopOfARunningProcess) {
  unsigned answered = 0, not_answered = 0;
  for (unsigned n = 1; n <= 8; ++n) {
    Echo echo;
    auto kill = SyscallKill::arm(echo.pid(), n);
    ASSERT_TRUE(kill) << to_string(kill.error());
    echo.ask(1);
    const auto outcome = kill->wait(std::chrono::seconds{2});
    ASSERT_TRUE(outcome) << to_string(outcome.error());
    if (!outcome->killed) {  // it waits for the next question: where it was when it was armed decides how many stops
      EXPECT_TRUE(echo.wait_for_answer() == 1U);
      ++answered;
      break;
    }
    EXPECT_EQ(outcome->stops, n);
    ++(echo.answered() ? answered : not_answered);
    EXPECT_EQ(WTERMSIG(echo.reap()), SIGKILL);
    if (answered == 2) break;
  }
  EXPECT_GE(not_answered, 2U);  // at least before it had written
  EXPECT_GE(answered, 1U);
}

TEST(SyscallKill, LetsGoOfAProcessThatItDoesNotKill) {
  Echo echo;
  {
    auto kill = SyscallKill::arm(echo.pid(), 1000);
    ASSERT_TRUE(kill) << to_string(kill.error());
    echo.ask(1);
    EXPECT_EQ(echo.wait_for_answer(), 1U);
    const auto outcome = kill->wait(std::chrono::milliseconds{1});
    ASSERT_TRUE(outcome);
    EXPECT_FALSE(outcome->killed);
  }
  echo.ask(7);
  EXPECT_EQ(echo.wait_for_answer(), 7U);
}

TEST(SyscallKill, SaysThatTheProcessEndedByItself) {
  Echo echo;
  auto kill = SyscallKill::arm(echo.pid(), 1000);
  ASSERT_TRUE(kill) << to_string(kill.error());
  echo.ask(100);
  const auto outcome = kill->wait(std::chrono::seconds{20});
  ASSERT_TRUE(outcome);
  EXPECT_FALSE(outcome->killed);
  EXPECT_EQ(outcome->at, "it ended by itself");
}

TEST(SyscallKill, RefusesAProcessThatDoesNotExist) {
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ::waitpid(gone, nullptr, 0);
  const auto kill = SyscallKill::arm(gone, 1);
  ASSERT_FALSE(kill);
  EXPECT_EQ(kill.error().code, ESRCH);
}

}  // namespace
}  // namespace luo::test
