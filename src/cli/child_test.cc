#include "cli/child.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "sys/memfd.h"
#include "sys/pipe.h"

namespace luo::cli {
namespace {

using namespace std::chrono_literals;

class ChildTest : public testing::Test {
 protected:
  ChildTest() {
    char name[] = "/tmp/luoctl-child-XXXXXX";
    folder = mkdtemp(name);
  }
  ~ChildTest() override { std::filesystem::remove_all(folder); }

  Log log() { return open_log(folder + "/log", 0, "", "").value(); }
  static Program shell(std::string script, std::vector<std::pair<std::string, std::string>> environment = {}) {
    return {{"sh", "-c", std::move(script)}, std::move(environment)};
  }
  std::string content(const std::string& file) {
    std::ifstream in{folder + "/" + file};
    return {std::istreambuf_iterator<char>{in}, {}};
  }

  std::string folder;
};

TEST_F(ChildTest, RunsInASessionOfItsOwnWithItsOutputInTheLog) {
  const Log where = log();
  const auto child = start_detached(shell("echo $X; echo $LUO_TICKET >&2; cut -d' ' -f6 /proc/self/stat; cat; exit 3",
                                          {{"LUO_TICKET", "1f"}, {"X", "y"}}),
                                    where);
  ASSERT_TRUE(child) << to_string(child.error());
  EXPECT_EQ(how_it_ended(*child), "exited with status 3");
  EXPECT_EQ(content("log"), fmt::format("y\n1f\n{}\n", child->pid));
  EXPECT_EQ(last_words(where), content("log"));
}

TEST_F(ChildTest, GetsNoDescriptorOfOursAndNoBlockedSignal) {
  const Fd open_across_exec = Fd::adopt(dup(0));
  sigset_t term, before;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, &before);
  const Log where = log();
  const auto child = start_detached(shell("ls /proc/$$/fd; exec grep SigBlk /proc/self/status"), where);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  ASSERT_TRUE(child);
  EXPECT_EQ(how_it_ended(*child), "exited with status 0");
  EXPECT_EQ(content("log"), "0\n1\n2\nSigBlk:\t0000000000000000\n");
}

TEST_F(ChildTest, ReportsThatAProgramCannotBeStarted) {
  const Log where = log();
  EXPECT_EQ(start_detached({{"luo-no-such-program"}, {}}, where).error().code, ENOENT);
  EXPECT_EQ(start_detached({{folder + "/x"}, {}}, where).error().code, ENOENT);
  std::ofstream{folder + "/plain"} << "text";
  EXPECT_EQ(start_detached({{folder + "/plain"}, {}}, where).error().code, EACCES);
  EXPECT_EQ(start_detached({{folder}, {}}, where).error().code, EACCES);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);  // no child is left
}

TEST_F(ChildTest, TerminateAsksFirstAndInsistsThen) {
  const Log where = log();
  const auto polite =
      start_detached(shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"), where);
  ASSERT_TRUE(polite);
  while (content("log") != "up\n") ASSERT_FALSE(ends_within(*polite, 1ms));
  terminate(*polite, 20s);
  EXPECT_EQ(content("log"), "up\nbye\n");

  const auto deaf = start_detached(shell("trap '' TERM; echo deaf; while :; do sleep 0.01; done"), where);
  ASSERT_TRUE(deaf);
  while (!content("log").ends_with("deaf\n")) ASSERT_FALSE(ends_within(*deaf, 1ms));
  terminate(*deaf, 10ms);
  EXPECT_EQ(kill(deaf->pid, 0), -1);
}

TEST_F(ChildTest, LogIsTheOwnersStderrIfThatIsAFile) {
  std::ofstream{folder + "/owner.log"} << "before\n";
  const Fd file = Fd::adopt(open((folder + "/owner.log").c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(lseek(file.raw(), 0, SEEK_END), 7);
  const Pipe hold = make_pipe().value();
  const pid_t owner = fork();
  if (owner == 0) {
    dup2(file.raw(), 2);
    fcntl(hold.read.raw(), F_SETFL, 0);
    char byte;
    (void)!read(hold.read.raw(), &byte, 1);
    (void)!write(2, "owner\n", 6);  // at its own offset: it must not run over the successor's lines
    _exit(0);
  }
  while (std::filesystem::read_symlink(fmt::format("/proc/{}/fd/2", owner)) != folder + "/owner.log") {}
  const auto where = open_log("", owner, folder + "/luod.sock", "cache");
  ASSERT_TRUE(where) << to_string(where.error());
  EXPECT_EQ(where->path, folder + "/owner.log");
  const auto child = start_detached(shell("echo successor"), *where);
  ASSERT_TRUE(child);
  EXPECT_EQ(how_it_ended(*child), "exited with status 0");
  EXPECT_EQ(last_words(*where), "successor\n");
  ASSERT_TRUE(write_all(hold.write, "x"));
  waitpid(owner, nullptr, 0);
  EXPECT_EQ(content("owner.log"), "before\nsuccessor\nowner\n");
}

TEST_F(ChildTest, LogIsElseBesideTheSocketUnderTheSessionsName) {
  const auto where = open_log("", 0, folder + "/luod.sock", "a/../b c");
  ASSERT_TRUE(where);
  EXPECT_EQ(where->path, folder + "/a_.._b_c.log");
  EXPECT_TRUE(std::filesystem::exists(where->path));
  // Nobody may lead us elsewhere from a directory that others can write to.
  std::filesystem::create_symlink("/etc/passwd", folder + "/evil.log");
  EXPECT_EQ(open_log("", 0, folder + "/luod.sock", "evil").error().code, ELOOP);
}

TEST_F(ChildTest, LogThatCannotBeOpenedIsReportedWithItsName) {
  const auto where = open_log(folder + "/no/such", 0, "", "");
  ASSERT_FALSE(where);
  EXPECT_EQ(where.error().code, ENOENT);
  EXPECT_THAT(where.error().what, testing::HasSubstr(folder + "/no/such"));
}

TEST_F(ChildTest, LastWordsAreWholeLinesOfTheEnd) {
  std::ofstream{folder + "/log"} << "old\n";
  const Log where = log();
  EXPECT_EQ(last_words(where), "");
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format("line {}\n", i);
  ASSERT_TRUE(write_all(where.file, text));
  const std::string words = last_words(where);
  EXPECT_LE(words.size(), 4096U);
  EXPECT_GT(words.size(), 4000U);
  EXPECT_TRUE(words.starts_with("line ") && words.ends_with("line 999\n"));
}

}  // namespace
}  // namespace luo::cli
