// luoctl inspect --live, of a luod that serves meanwhile: always one moment's state, for administrators only, and
// nobody notices.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "scenario.h"

namespace luo::test {
namespace {

using nlohmann::json;

class Inspect : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  json inspect(std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"--json", "inspect", "--live"});
    const Ran ran = luoctl(luod_, more);
    EXPECT_EQ(ran.status, 0) << ran.out.substr(0, 2000) << ran.err;
    return ran.status == 0 ? json::parse(ran.out) : json::object();
  }
  Luod luod_;
};

TEST_F(Inspect, ShowsWhatLuodKeeps) {
  const Client client{luod_};
  const Fd session = client.create("vm-7"), file = memfd_with("state");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 42), 0) << luo_last_error();
  const std::string before = luod_.state();
  const json report = inspect();
  EXPECT_EQ(report["kind"], "image");
  EXPECT_EQ(report["layout"]["tag"], "luod");
  ASSERT_EQ(report["engine"]["outgoing"].size(), 1U);
  const json& shown = report["engine"]["outgoing"][0];
  EXPECT_EQ(shown["name"], "vm-7");
  EXPECT_EQ(shown["holders"][0]["pid"], getpid());
  ASSERT_EQ(shown["files"].size(), 1U);
  EXPECT_EQ(shown["files"][0]["token"], 42);
  EXPECT_EQ(shown["files"][0]["handler"], "memfd-v1");
  struct stat st {};
  ASSERT_EQ(fstat(file.raw(), &st), 0);
  EXPECT_EQ(shown["files"][0]["inode"], st.st_ino);
  EXPECT_EQ(report["daemon"]["control"]["worker_pid"], luod_.worker());
  EXPECT_EQ(report["daemon"]["control"]["socket"], luod_.socket());
  std::set<std::string> programs;
  for (const json& peer : report["daemon"]["connections"]) programs.insert(peer["program"]);
  EXPECT_TRUE(programs.contains("luoctl"));
  ASSERT_EQ(report["daemon"]["grants"].size(), 1U);
  EXPECT_EQ(report["daemon"]["grants"][0]["session"], shown["id"]);
  EXPECT_EQ(luod_.state(), before) << "it has changed something";

  const Ran text = luoctl(luod_, {"inspect", "--live"});
  EXPECT_NE(text.out.find("session 'vm-7'"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("token 42: memfd-v1, kept"), std::string::npos) << text.out;
  const Ran dts = luoctl(luod_, {"inspect", "--live", "--dts"});
  EXPECT_NE(dts.out.find("label = \"vm-7\";"), std::string::npos) << dts.out;
}

TEST_F(Inspect, ShowsBothSidesOfACrossing) {
  {
    const Client client{luod_};
    const Fd session = client.create("came"), file = memfd_with("state");
    ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
    cross(luod_);
  }
  const Client client{luod_};
  const Fd fresh = client.create("made");
  const json engine = inspect()["engine"];
  EXPECT_EQ(engine["generation"], 1);
  ASSERT_EQ(engine["incoming"].size(), 1U);
  EXPECT_EQ(engine["incoming"][0]["name"], "came");
  EXPECT_EQ(engine["incoming"][0]["state"], "incoming");
  EXPECT_EQ(engine["incoming"][0]["files"][0]["status"], "kept");
  ASSERT_EQ(engine["outgoing"].size(), 1U);
  EXPECT_EQ(engine["outgoing"][0]["name"], "made");
}

TEST_F(Inspect, IsOneMomentsStateUnderLoad) {
  std::atomic<bool> stop = false;
  std::thread load{[&] {
    const Client client{luod_};
    // Pairs that are there together or not at all: a batch is one transaction.
    for (unsigned n = 0; !stop; ++n) {
      const Fd session = client.create("s" + std::to_string(n));
      const Fd file = memfd_with("state"), other = memfd_with("other");
      const int fds[] = {file.raw(), other.raw()};
      const std::uint64_t tokens[] = {1, 2};
      int errors[2] = {};
      ASSERT_EQ(luo_preserve_many(client, session.raw(), fds, tokens, errors, 2), 2)
          << n << ": " << errors[0] << " " << luo_last_error();
      EXPECT_EQ(luo_session_hold(client, session.raw(), n % 2 == 0 ? LUO_HOLD_USER : LUO_HOLD_OFF), 0);
      EXPECT_EQ(luo_session_hold(client, session.raw(), LUO_HOLD_OFF), 0);
    }
  }};
  int with_files = 0;
  for (int n = 0; n < 60; ++n) {
    const json report = inspect();  // sound, or luoctl says 1
    for (const json& session : report["engine"]["outgoing"]) {
      const std::size_t files = session["files"].size();
      EXPECT_TRUE(files == 0 || files == 2) << files;
      with_files += files == 2 ? 1 : 0;
    }
  }
  stop = true;
  load.join();
  EXPECT_GT(with_files, 0);
}

TEST_F(Inspect, IsForAdministratorsOnly) {
  chmod(luod_.dir().path().c_str(), 0755);
  chmod(luod_.socket().c_str(), 0666);
  EXPECT_EQ(in_fork([&] {
              if (setresuid(12345, 12345, 12345) != 0) return 255;
              RawClient client = raw_client(luod_);
              const auto answer = client.call(wire::Command::Inspect, 0, plain_arg());
              return !answer || !answer->fds.empty() ? 254 : answer->error();
            }),
            EACCES);
  RawClient client = raw_client(luod_);
  const auto odd = client.call(wire::Command::Inspect, 0, plain_arg(1));
  ASSERT_TRUE(odd);
  EXPECT_EQ(odd->error(), EINVAL);
  const auto answer = client.call(wire::Command::Inspect, 0, plain_arg());
  ASSERT_TRUE(answer);
  ASSERT_EQ(answer->error(), 0);
  ASSERT_EQ(answer->fds.size(), 1U);
  EXPECT_LT(pwrite(answer->fds[0].raw(), "x", 1, 0), 0) << "it is sealed";
}

TEST_F(Inspect, AKilledWorkersSuccessorAnswers) {
  const Client client{luod_};
  const Fd session = client.create("s");
  for (int n = 0; n < 10; ++n) {
    std::thread killer{[&] { luod_.kill_worker(); }};
    const json report = inspect();
    killer.join();
    EXPECT_EQ(report["engine"]["outgoing"].size(), 1U);
  }
  const int descriptors = luod_.descriptors();
  for (int n = 0; n < 5; ++n) inspect();
  EXPECT_EQ(luod_.descriptors(), descriptors);
}

/// The memfd of a process of that name, as /proc has it.
std::string memfd_of(pid_t pid, const std::string& name) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator{fmt::format("/proc/{}/fd", pid), error})
    if (std::filesystem::read_symlink(entry, error).string() == "/memfd:" + name + " (deleted)") return entry.path();
  return {};
}

TEST_F(Inspect, AStoppedLuodsArenaShowsTheSameAsLuodItself) {
  const Client client{luod_};
  const Fd session = client.create("vm-7"), file = memfd_with("state");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 42), 0) << luo_last_error();
  const json live = inspect();
  const std::string path = memfd_of(luod_.keeper(), "luod-arena");
  ASSERT_FALSE(path.empty());
  const Ran ran = luoctl(luod_, {"--json", "inspect", path});  // it is idle: as good as stopped
  ASSERT_EQ(ran.status, 0) << ran.out << ran.err;
  const json arena = json::parse(ran.out);
  EXPECT_EQ(arena["kind"], "arena");
  EXPECT_EQ(arena["engine"], live["engine"]);
  EXPECT_EQ(arena["geometry"], live["geometry"]);
}

TEST_F(Inspect, OfAnotherProgramsArenaItShowsTheMemory) {
  const std::string path = luod_.dir() / "cache.sock";
  const pid_t child = fork();
  if (child == 0) {
    const int nothing = open("/dev/null", O_RDWR);
    for (const int fd : {0, 1, 2}) dup2(nothing, fd);
    execl(program("luo-cache").c_str(), "luo-cache", "--luod", luod_.socket().c_str(), "--port", "0", "--unixsocket",
          path.c_str(), nullptr);
    _exit(127);
  }
  for (int i = 0; i < 30'000 && luod_.show("cache").value("files", 0) == 0; ++i)  // with its arena
    poll(nullptr, 0, 1);
  kill(child, SIGSTOP);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  const std::string arena = memfd_of(child, "luo-cache");
  EXPECT_FALSE(arena.empty());
  const Ran ran = luoctl(luod_, {"--json", "inspect", "--all", arena});
  kill(child, SIGKILL);
  kill(child, SIGCONT);
  EXPECT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(ran.status, 0) << ran.out.substr(0, 2000) << ran.err;
  const json report = json::parse(ran.out);
  EXPECT_EQ(report["layout"]["tag"], "luo-cache");
  EXPECT_FALSE(report.contains("engine"));
  EXPECT_GT(report["heap"]["used_bytes"], 0);
  EXPECT_GT(report["heap"]["chunk_list"].size(), 0U);
  EXPECT_EQ(report["roots"][0]["what"], "the application's");
}

}  // namespace
}  // namespace luo::test
