// A state directory that is full, and a kernel that has no memory to give: clear words, and nothing is lost.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "scenario.h"
#include "sys/memfd.h"

namespace luo::test {
namespace {

using wire::Command;

/// A file system of its own, of a few pages and files.
class FullDisk : public testing::Test {
 protected:
  void SetUp() override {
    mounted_ = mount("luo-test", dir_.path().c_str(), "tmpfs", 0, "size=16k,nr_inodes=16") == 0;
    if (!mounted_) GTEST_SKIP() << "mount a tmpfs: " << errno_text(errno);
  }
  void TearDown() override {
    luod_.reset();
    if (mounted_) umount2(dir_.path().c_str(), MNT_DETACH);
  }
  /// Not another byte.
  void fill() {
    const Fd file = Fd::adopt(open((dir_ / "filler").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    const std::string page(4096, 'x');
    while (::write(file.raw(), page.data(), page.size()) > 0) {}
    ASSERT_EQ(errno, ENOSPC);
  }
  /// Not another file either.
  void fill_with_files() {
    int n = 0;
    for (;; ++n)
      if (!Fd::adopt(open((dir_ / fmt::format("file{}", n)).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)).valid())
        break;
    ASSERT_EQ(errno, ENOSPC);
  }
  void start() {
    luod_.emplace(LuodOptions{.arguments = {"--state-dir", dir_.path(), "--socket", socket()},
                              .environment = {{"LUO_SOCKET", socket()}},
                              .own_directory = false});
  }
  std::string socket() const { return dir_ / "luod.sock"; }
  /// A luod with a session and a file in it, on a disk that has become full since.
  void start_and_fill() {
    start();
    ASSERT_TRUE(luod_->running()) << luod_->log();
    client_.emplace(*luod_);
    session_ = client_->create("s");
    ASSERT_EQ(luo_preserve_fd(*client_, session_.raw(), file_.raw(), 1), 0) << luo_last_error();
    fill();
    fill_with_files();
    before_ = luod_->state();
  }
  void expect_unchanged() {
    EXPECT_EQ(luod_->state(), before_) << luod_->log();
    const Fd more = memfd_with("more");
    EXPECT_EQ(luo_preserve_fd(*client_, session_.raw(), more.raw(), 2), 0) << luo_last_error();
    EXPECT_EQ(luo_unpreserve_fd(*client_, session_.raw(), 2), 0) << luo_last_error();
  }
  TempDir dir_;
  bool mounted_ = false;
  std::optional<Luod> luod_;
  std::optional<Client> client_;
  Fd session_;
  const Fd file_ = memfd_with("file");
  std::string before_;
};

TEST_F(FullDisk, WithoutRoomForItsLockLuodDoesNotStartAndSaysWhy) {
  fill_with_files();
  start();
  ASSERT_FALSE(luod_->running());
  EXPECT_EQ(luod_->wait_for_exit(), 1);
  for (const char* part : {"luod.lock", "ENOSPC"})
    EXPECT_NE(luod_->log().find(part), std::string::npos) << luod_->log();
}

TEST_F(FullDisk, WithoutRoomForItsSocketLuodDoesNotStartAndSaysWhy) {
  std::ofstream{dir_ / "luod.lock"};
  fill_with_files();
  start();
  ASSERT_FALSE(luod_->running());
  EXPECT_EQ(luod_->wait_for_exit(), 1);
  for (const char* part : {"luod.sock", "ENOSPC"})
    EXPECT_NE(luod_->log().find(part), std::string::npos) << luod_->log();
}

TEST_F(FullDisk, LuodServesWhereNotAByteIsLeft) {
  fill();
  start();
  ASSERT_TRUE(luod_->running()) << luod_->log();
  EXPECT_NE(luod_->log().find("ENOSPC"), std::string::npos) << "its pid is in no lock file; it says so\n"
                                                            << luod_->log();
  const Client client{*luod_};
  EXPECT_TRUE(client.create("s").valid()) << luo_last_error();
  EXPECT_EQ(luod_->stop(), 0);
}

TEST_F(FullDisk, KillsAndUpdatesLoseNothing) {
  start_and_fill();
  luod_->kill_worker();
  expect_unchanged();
  const pid_t keeper = luod_->keeper();
  luod_->kill_keeper();
  while (luod_->keeper() == keeper) sched_yield();
  expect_unchanged();
  const Ran ran = luoctl(*luod_, {"update", "luod", "--image", program("luod")});
  EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
  expect_unchanged();
  const Ran bad = luoctl(*luod_, {"update", "luod", "--image", program("luod_image_start_exits")});
  EXPECT_EQ(bad.status, 1) << bad.out << bad.err;
  EXPECT_NE(bad.err.find("I do not want to"), std::string::npos) << "last words\n" << bad.err;
  expect_unchanged();
  cross(*luod_);
  const Client next{*luod_};
  const Fd again = next.retrieve("s");
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(next, again.raw(), 1))), "file");
}

TEST_F(FullDisk, AnUpdateOfAServiceWithoutRoomForItsLogIsRefusedAndItsOwnerGoesOn) {
  start_and_fill();
  const Ran ran = luoctl(*luod_, {"update", "service", "s", "--log", dir_ / "new.log", "--", "/bin/true"});
  EXPECT_EQ(ran.status, 1) << ran.out << ran.err;
  for (const char* part : {"new.log", "ENOSPC"}) EXPECT_NE(ran.err.find(part), std::string::npos) << ran.err;
  expect_unchanged();
}

TEST_F(FullDisk, TheSuccessorOfACacheWritesItsLogThere) {
  start_and_fill();
  // One file for the log, and no byte to write into it.
  std::filesystem::remove(dir_ / "file0");
  const std::string log = dir_ / "cache.log", path = luod_->dir() / "cache.sock";
  const pid_t child = fork();
  if (child == 0) {
    const int out = open("/dev/full", O_WRONLY);
    for (const int fd : {1, 2}) dup2(out, fd);
    execl(program("luo-cache").c_str(), "luo-cache", "--luod", socket().c_str(), "--port", "0", "--unixsocket",
          path.c_str(), nullptr);
    _exit(127);
  }
  for (int i = 0; i < 30'000 && luod_->show("cache").value("state", "") != "outgoing"; ++i) poll(nullptr, 0, 1);
  ASSERT_EQ(luod_->show("cache").value("state", ""), "outgoing") << luod_->log();
  const auto owner = [&] { return luod_->show("cache")["owner_pid"]; };
  const auto old = owner();
  const Ran ran = luoctl(*luod_, {"--json", "update", "service", "cache", "--log", log, "--", program("luo-cache")});
  EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  const auto report = nlohmann::json::parse(ran.out, nullptr, false);
  const pid_t next = report.is_object() ? report.value("child_pid", -1) : -1;
  EXPECT_EQ(luod_->show("cache").value("state", ""), "outgoing") << luod_->log();
  if (next > 0) {
    EXPECT_EQ(kill(next, SIGTERM), 0);
    EXPECT_TRUE(wait_for_death(next));
  }
}

TEST(ShortOfMemory, AFileSizeLimitIsNamedByALuodThatCannotStart) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1U << 30, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  Luod luod;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  ASSERT_FALSE(luod.running());
  EXPECT_EQ(luod.wait_for_exit(), 1) << luod.log();
  EXPECT_NE(luod.log().find("EFBIG"), std::string::npos) << luod.log();
}

#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// A memory control group whose processes get ENOMEM instead of being killed, as far as they ask for memory by
/// system calls.
class SmallGroup {
 public:
  SmallGroup() {
    std::error_code error;
    made_ = std::filesystem::exists(std::filesystem::path{path_}.parent_path() / "memory.oom_control") &&
            std::filesystem::create_directory(path_, error) && write("memory.oom_control", "1");
  }
  ~SmallGroup() {
    if (made_) rmdir(path_.c_str());
  }
  bool made() const { return made_; }
  bool write(const std::string& file, const std::string& text) const {
    const Fd fd = Fd::adopt(open((path_ + "/" + file).c_str(), O_WRONLY | O_CLOEXEC));
    return fd.valid() && ::write(fd.raw(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
  }

 private:
  const std::string path_ = fmt::format("/sys/fs/cgroup/memory/luo-test-{}", getpid());
  bool made_ = false;
};

/// Preserves by the 253.
struct Batches {
  explicit Batches(RawClient& c) : client{c} {}
  /// The first error; EAGAIN if `stop` says that no answer is to be waited for.
  int preserve(int batches, const std::function<bool()>& stop) {
    for (int i = 0; i < batches; ++i) {
      struct {
        wire::ManyArg many{sizeof(wire::ManyArg), 253};
        wire::ManyEntry entries[253];
      } arg;
      std::vector<Fd> files;
      std::vector<int> numbers;
      for (auto& entry : arg.entries) {
        entry = {next++, 0, 0};
        files.push_back(*make_memfd("many", 0));
        numbers.push_back(files.back().raw());
      }
      if (const auto posted = client.post(Command::PreserveMany, session, arg, numbers); !posted) {
        ADD_FAILURE() << posted.error().what << " [" << strerrorname_np(posted.error().code) << "]";
        return posted.error().code;
      }
      pollfd answered{client.socket().raw, POLLIN, 0};
      while (poll(&answered, 1, 10) == 0)
        if (stop()) return EAGAIN;
      if (const int error = take_answer(); error != 0) return error;
    }
    return 0;
  }
  int take_answer() {
    const auto answer = client.answer();
    if (!answer) return answer.error().code;
    if (answer->error() != 0) return answer->error();
    int first = 0;
    for (std::size_t i = 0; i < 253; ++i) {
      wire::ManyResult result{};
      std::memcpy(&result, answer->payload.data() + sizeof(wire::ManyArg) + i * sizeof result, sizeof result);
      if (result.error == 0) ++kept;
      else if (first == 0) first = result.error;
    }
    return first;
  }
  RawClient& client;
  std::uint64_t session = 0, next = 0;
  int kept = 0;
};

TEST(ShortOfMemory, WhatLuodCannotKeepIsRefusedAndAllElseGoesOn) {
  SmallGroup group;
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory runs short first, in page faults";
  if (!group.made()) GTEST_SKIP() << "no memory control group of version 1 can be made";
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  RawClient client = raw_client(luod);
  // What the worker needs for itself it has from the first time on.
  Batches batches{client};
  RawSession session = raw_session(client, Command::CreateSession, "warm");
  batches.session = session.handle;
  ASSERT_EQ(batches.preserve(40, [] { return false; }), 0);
  session.fd.close();
  session = raw_session(client, Command::CreateSession, "s");
  batches.session = session.handle;
  batches.kept = 0;
  luod.state();
  ASSERT_TRUE(group.write("cgroup.procs", std::to_string(luod.worker())));
  ASSERT_TRUE(group.write("memory.limit_in_bytes", "128k"));
  int polls = 0;  // a page fault that finds no memory is a wait, too, and nothing tells of it
  const auto waits = [&] { return ++polls > 1000 || luod.log().find("cannot take a message") != std::string::npos; };
  const int error = batches.preserve(70, waits);
  ASSERT_TRUE(group.write("memory.limit_in_bytes", "-1"));
  if (error == EAGAIN) batches.take_answer();  // there is memory again, so it comes
  EXPECT_TRUE(error == ENOMEM || error == ENOSPC || error == EAGAIN) << "it never ran short: " << error;
  EXPECT_EQ(luod.status()["files"], batches.kept);
  EXPECT_EQ(luod.status()["worker_restarts"], 0) << luod.log();
  EXPECT_EQ(batches.preserve(1, [] { return false; }), 0) << luod.log();
  EXPECT_EQ(luod.stop(), 0);
  RecordProperty("error", error);
}

TEST(ShortOfMemory, AnAnswerThatTheKernelHasNoMemoryForIsSentWhenItHas) {
  SmallGroup group;
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory runs short first, in page faults";
  if (!group.made()) GTEST_SKIP() << "no memory control group of version 1 can be made";
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  RawClient client = raw_client(luod);
  std::vector<Fd> sessions;
  const auto take = [&] {
    auto answer = client.answer();
    if (answer && answer->error() == 0 && answer->fds.size() == 1) sessions.push_back(std::move(answer->fds[0]));
    return answer.has_value();
  };
  for (int i = 0; i < 3000; ++i) {
    ASSERT_TRUE(client.post(Command::CreateSession, 0, name_arg(fmt::format("warm{}", i))).has_value());
    ASSERT_TRUE(take());
  }
  sessions.clear();
  luod.state();
  const pid_t worker = luod.worker();
  ASSERT_TRUE(group.write("cgroup.procs", std::to_string(worker)));
  ASSERT_TRUE(group.write("memory.limit_in_bytes", "512k"));
  bool waits = false, faults = false;
  for (int i = 0; i < 2500 && !waits; ++i) {
    ASSERT_TRUE(client.post(Command::CreateSession, 0, name_arg(fmt::format("s{}", i))).has_value());
    pollfd answered{client.socket().raw, POLLIN, 0};
    for (int polls = 0; poll(&answered, 1, 10) == 0 && !waits && !faults; ++polls) {
      faults = polls > 1000;  // a page fault that finds no memory is a wait, too, and nothing tells of it
      waits = luod.log().find("cannot take a message") != std::string::npos;
    }
    if (faults) break;
    if (!waits) {
      ASSERT_TRUE(take());
    }
  }
  // It sleeps meanwhile: this comes back only if it does.
  if (waits) {
    EXPECT_FALSE(died_rather_than_idled(worker)) << luod.log();
  }
  ASSERT_TRUE(group.write("memory.limit_in_bytes", "-1"));
  if (!waits) GTEST_SKIP() << "everything else ran short before its answers";
  EXPECT_TRUE(take());
  EXPECT_EQ(luod.list()["sessions"].size(), sessions.size());
  EXPECT_EQ(luod.worker(), worker) << luod.log();
  EXPECT_EQ(luod.stop(), 0);
}

}  // namespace
}  // namespace luo::test
