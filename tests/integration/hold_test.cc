// Sessions that outlive their owner: kept, given back to the right one, dropped, carried over every update.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "scenario.h"
#include "support/kill_process.h"

namespace luo::test {
namespace {

class Hold : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }

  /// A service that makes session "s" with one file, holds it, and is killed.
  void service_dies(luo_hold hold = LUO_HOLD_USER) {
    ASSERT_EQ(in_fork([&] {
                const Client client{luod_};
                const Fd session = client.create("s"), file = memfd_with("state");
                if (luo_preserve_fd(client, session.raw(), file.raw(), 1) != 0) return 1;
                if (luo_session_hold(client, session.raw(), hold) != 0) return 2;
                return kill(getpid(), SIGKILL);
              }),
              -SIGKILL);
    ASSERT_EQ(luod_.show("s")["holder"], "none") << luod_.list();
  }
  static std::string content(const Client& client, const Fd& session) {
    const Fd file = Fd::adopt(luo_retrieve_fd(client, session.raw(), 1));
    return file.valid() ? content_of(file) : luo_last_error();
  }
  /// What a process of another uid gets; 0: the session.
  int as_uid(uid_t uid) {
    chmod(luod_.dir().path().c_str(), 0755);
    chmod(luod_.socket().c_str(), 0666);
    return in_fork([&] {
      if (setresuid(uid, uid, uid) != 0) return 255;
      const Client client{luod_};
      if (client.error() != 0) return 254;
      const int session = luo_session_retrieve(client, "s");
      return session >= 0 ? 0 : -session;
    });
  }
  Luod luod_;
};

TEST_F(Hold, TheNextOwnerGetsWhatADeadOneLeft) {
  service_dies();
  EXPECT_EQ(luod_.show("s")["on_close"], "hold");
  for (int generation = 0; generation < 3; ++generation) {
    EXPECT_EQ(in_fork([&] {
                const Client client{luod_};
                const Fd session = client.retrieve("s");
                if (!session.valid() || content(client, session) != "state") return 1;
                if (luo_session_renew(client, session.raw()) != 0) return 2;
                const Fd more = memfd_with("more");
                if (luo_preserve_fd(client, session.raw(), more.raw(), static_cast<uint64_t>(10 + generation)) != 0)
                  return 3;
                return kill(getpid(), SIGKILL);
              }),
              -SIGKILL);
    EXPECT_EQ(luod_.show("s")["files"], 2 + generation);
    if (generation == 1) luod_.kill_worker();
  }
}

TEST_F(Hold, OnlyOneAtATimeHasIt) {
  service_dies();
  const Client first{luod_}, second{luod_};
  Fd session = first.retrieve("s");
  ASSERT_TRUE(session.valid()) << luo_last_error();
  EXPECT_EQ(luo_session_retrieve(second, "s"), -EINVAL);
  EXPECT_EQ(luo_session_create(second, "s"), -EEXIST);
  EXPECT_EQ(luo_session_drop(second, "s"), -EBUSY);
  // Whoever waits gets it as soon as the first lets go of it.
  const pid_t waiting = fork();
  if (waiting == 0) {
    session.close();  // the copy that fork made
    const Client third{luod_};
    const Fd mine = Fd::adopt(luo_session_retrieve_wait(third, "s", 30'000));
    _exit(mine.valid() && content(third, mine) == "state" ? 0 : 1);
  }
  session.close();
  int status = 0;
  ASSERT_EQ(waitpid(waiting, &status, 0), waiting);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(content(second, second.retrieve("s")), "state");
}

TEST_F(Hold, AFormerOwnersConnectionHasNoRightToItAnyMore) {
  const Client former{luod_}, next{luod_};
  Fd session = former.create("s");
  ASSERT_EQ(luo_session_hold(former, session.raw(), LUO_HOLD_USER), 0) << luo_last_error();
  RawClient raw = raw_client(luod_);
  session.close();
  // Not noticed before the next one asks: the close is carried out on the way, and takes nothing from the next.
  for (int i = 0; i < 50; ++i) {
    Fd mine = next.retrieve("s");
    ASSERT_TRUE(mine.valid()) << luo_last_error();
    const Fd file = memfd_with("x");
    ASSERT_EQ(luo_preserve_fd(next, mine.raw(), file.raw(), 5), 0) << luo_last_error();
    ASSERT_EQ(luo_unpreserve_fd(next, mine.raw(), 5), 0) << luo_last_error();
    mine.close();
    mine = former.retrieve("s");
    ASSERT_TRUE(mine.valid()) << luo_last_error();
    ASSERT_EQ(luo_session_get_state(former, mine.raw()), LUO_STATE_NORMAL) << luo_last_error();
  }
}

TEST_F(Hold, IsForItsOwnerOnly) {
  if (geteuid() != 0) GTEST_SKIP() << "needs to become another user";
  chmod(luod_.dir().path().c_str(), 0755);
  chmod(luod_.socket().c_str(), 0666);
  ASSERT_EQ(in_fork([&] {
              if (setresuid(1001, 1001, 1001) != 0) return 255;
              const Client client{luod_};
              const Fd session = client.create("s");
              const int held = luo_session_hold(client, session.raw(), LUO_HOLD_USER);
              return held == 0 ? 0 : -held;
            }),
            0);
  EXPECT_EQ(as_uid(1002), EACCES);
  EXPECT_EQ(as_uid(1001), 0);
  EXPECT_EQ(as_uid(0), 0) << "root may";
  cross(luod_);
  EXPECT_EQ(as_uid(1002), EACCES) << "nor after an update";
}

TEST_F(Hold, IsForTheSameExecutableIfItSaysSo) {
  const std::string tool = luod_.dir() / "tool";
  std::filesystem::copy_file("/proc/self/exe", tool);
  service_dies(LUO_HOLD_EXECUTABLE);
  const auto held_for = luod_.show("s")["held_for"];
  EXPECT_EQ(held_for["executable"], std::filesystem::read_symlink("/proc/self/exe").string());
  // The same program, from another path.
  const Ran other = run_program({tool, "--gtest_filter=OtherExecutable.*"},
                                {{"LUO_SOCKET", luod_.socket()}, {"LUO_TEST_ELSEWHERE", "1"}});
  EXPECT_NE(other.out.find("is held for the executable"), std::string::npos) << other.out << other.err;
  const Client client{luod_};
  EXPECT_EQ(content(client, client.retrieve("s")), "state") << luo_last_error();
}
/// Run by the test above, from another path.
TEST(OtherExecutable, RetrieveS) {
  if (getenv("LUO_TEST_ELSEWHERE") == nullptr) GTEST_SKIP() << "is run by Hold.IsForTheSameExecutableIfItSaysSo";
  luo_connection* luo = nullptr;
  ASSERT_EQ(luo_open(nullptr, &luo), 0);
  EXPECT_EQ(luo_session_retrieve(luo, "s"), -EACCES);
  std::cout << luo_last_error() << std::endl;
  luo_close(luo);
}

TEST_F(Hold, IsForTheSameUnitIfItSaysSo) {
  std::ifstream file{"/proc/self/cgroup"};
  std::string line, group;
  while (std::getline(file, line))
    if (line.starts_with("0::")) group = line.substr(3);
  if (group.empty()) GTEST_SKIP() << "no control groups of version 2";
  service_dies(LUO_HOLD_UNIT);
  EXPECT_EQ(luod_.show("s")["held_for"]["unit"], group);
  const Client client{luod_};
  EXPECT_EQ(content(client, client.retrieve("s")), "state") << luo_last_error();
}

TEST_F(Hold, CrossesEveryUpdate) {
  service_dies();
  for (int i = 0; i < 3; ++i) {
    cross(luod_);
    const Ran updated = luoctl(luod_, {"update", "luod", "--image", program("luod")});
    ASSERT_EQ(updated.status, 0) << updated.err;
    EXPECT_EQ(luod_.show("s")["state"], "incoming");
  }
  const Client client{luod_};
  Fd session = client.retrieve("s");
  EXPECT_EQ(content(client, session), "state");
  EXPECT_EQ(luo_session_get_state(client, session.raw()), LUO_STATE_UPDATED);
  session.close();
  EXPECT_EQ(luod_.show("s")["state"], "incoming") << "its owner died before it was whole";
  session = client.retrieve("s");
  ASSERT_EQ(luo_session_renew(client, session.raw()), 0) << luo_last_error();
  session.close();
  EXPECT_EQ(luod_.show("s")["state"], "outgoing");
}

TEST_F(Hold, OfAServiceThatDiesWhileASuccessorWarms) {
  Client owner{luod_};
  Fd session = owner.create("s");
  ASSERT_EQ(luo_session_hold(owner, session.raw(), LUO_HOLD_USER), 0);
  RawClient admin = raw_client(luod_);
  auto answer = admin.call(wire::Command::UpdateService, 0, update_arg("s"));
  ASSERT_TRUE(answer.has_value() && answer->error() == 0);
  wire::UpdateArg update{};
  std::memcpy(&update, answer->payload.data(), sizeof update);
  session.close();
  EXPECT_EQ(luod_.show("s")["holder"], "none");
  RawClient successor = raw_client(luod_, "successor", update.ticket);
  const RawSession taken = raw_session(successor, wire::Command::RetrieveSession, "s");
  ASSERT_TRUE(taken.fd.valid());
  wire::WaitArg wait{sizeof wait, UINT32_MAX, {}};
  ASSERT_EQ(successor.call(wire::Command::TakeOver, taken.handle, wait)->error(), 0);
  ASSERT_EQ(successor.call(wire::Command::Renew, taken.handle, plain_arg())->error(), 0);
  EXPECT_EQ(luod_.show("s")["holder"], "held");
}

TEST_F(Hold, LuoctlShowsItAndDropsIt) {
  service_dies();
  EXPECT_NE(luoctl(luod_, {"list"}).out.find("none, kept for its owner"), std::string::npos);
  EXPECT_NE(luoctl(luod_, {"show", "s"}).out.find("kept for its user"), std::string::npos);
  const Ran files = luoctl(luod_, {"--json", "files", "--handler", "memfd-v1"});
  const auto listed = nlohmann::json::parse(files.out);
  ASSERT_EQ(listed["files"].size(), 1U) << files.out << files.err;
  EXPECT_EQ(listed["files"][0]["session"], "s");
  EXPECT_EQ(listed["files"][0]["token"], 1);
  EXPECT_EQ(nlohmann::json::parse(luoctl(luod_, {"--json", "files", "--handler", "pipe-v1"}).out)["files"].size(), 0U);
  EXPECT_EQ(luoctl(luod_, {"drop", "nothing"}).status, 1);
  const Ran dropped = luoctl(luod_, {"drop", "s"});
  EXPECT_EQ(dropped.status, 0) << dropped.err;
  EXPECT_TRUE(luod_.list()["sessions"].empty());
  EXPECT_NE(luoctl(luod_, {"drop", "s"}).err.find("luoctl list"), std::string::npos);
}

TEST_F(Hold, RecordsSayWhatAFileCostsAndSinceWhen) {
  const Client client{luod_};
  const Fd session = client.create("s"), file = memfd_with(std::string(1 << 20, 'x'));
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
  const auto shown = luod_.show("s");
  EXPECT_EQ(shown["files_list"][0]["charge_bytes"], 1 << 20);
  const auto since = shown["files_list"][0]["preserved_s"].get<std::int64_t>();
  EXPECT_LE(std::abs(since - time(nullptr)), 600);
  EXPECT_EQ(shown["uid"], geteuid());
}

// --- events and dependencies over the wire ----------------------------------------------------------------

TEST_F(Hold, EventsFollowOneAnother) {
  const Client client{luod_};
  Fd session = client.create("s");
  const Fd file = memfd_with("1"), other = memfd_with("2");
  const auto event = [&](luo_event e) { return luo_session_set_event(client, session.raw(), e); };
  const auto state = [&] { return luo_session_get_state(client, session.raw()); };
  EXPECT_EQ(state(), LUO_STATE_NORMAL);
  EXPECT_EQ(event(LUO_EVENT_FREEZE), -EINVAL);
  EXPECT_EQ(event(LUO_EVENT_FINISH), -EINVAL);
  EXPECT_EQ(event(LUO_EVENT_PREPARE), 0) << luo_last_error();
  EXPECT_EQ(state(), LUO_STATE_PREPARED);
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
  EXPECT_EQ(event(LUO_EVENT_FREEZE), 0) << luo_last_error();
  EXPECT_EQ(state(), LUO_STATE_FROZEN);
  luod_.kill_worker();
  EXPECT_EQ(state(), LUO_STATE_FROZEN);
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), other.raw(), 2), -EBUSY);
  EXPECT_EQ(luo_unpreserve_fd(client, session.raw(), 1), -EBUSY);
  EXPECT_EQ(event(LUO_EVENT_CANCEL), 0) << luo_last_error();
  EXPECT_EQ(luo_unpreserve_fd(client, session.raw(), 1), 0);
  EXPECT_EQ(event(LUO_EVENT_PREPARE), 0);
  EXPECT_EQ(event(LUO_EVENT_FREEZE), 0);
  cross(luod_);
  const Client after{luod_};
  session = after.retrieve("s");
  EXPECT_EQ(luo_session_get_state(after, session.raw()), LUO_STATE_UPDATED);
  EXPECT_EQ(luo_session_set_event(after, session.raw(), LUO_EVENT_PREPARE), -EINVAL);
  EXPECT_EQ(luo_session_set_event(after, session.raw(), LUO_EVENT_FINISH), 0) << luo_last_error();
  EXPECT_EQ(luo_session_get_state(after, session.raw()), LUO_STATE_NORMAL);
}

TEST_F(Hold, DependenciesAreKept) {
  const Client client{luod_};
  const Fd session = client.create("s");
  const Fd iommu = memfd_with("iommu"), device = memfd_with("device");
  const std::uint64_t after[] = {1};
  EXPECT_EQ(luo_preserve_fd_after(client, session.raw(), device.raw(), 2, after, 1), -ENOLINK);
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), iommu.raw(), 1), 0);
  EXPECT_EQ(luo_preserve_fd_after(client, session.raw(), -1, 2, after, 1), -EBADF);
  EXPECT_EQ(luo_preserve_fd_after(client, session.raw(), device.raw(), 2, after, 1), 0) << luo_last_error();
  EXPECT_EQ(luod_.show("s")["files_list"][1]["after"], nlohmann::json::parse("[1]"));
  EXPECT_EQ(luo_unpreserve_fd(client, session.raw(), 1), -EBUSY);
  EXPECT_EQ(luo_unpreserve_fd(client, session.raw(), 2), 0);
  EXPECT_EQ(luo_unpreserve_fd(client, session.raw(), 1), 0);
}

// --- versions of the records -----------------------------------------------------------------------------

/// Our luod, behind a --probe that says that it reads version 1 only.
std::string old_luod(const TempDir& dir) {
  const std::string path = dir / "old-luod";
  std::ofstream{path} << "#!/bin/sh\n"
                         "if [ \"$1\" = --probe ]; then\n"
                         "  echo '{\"program\": \"luod\", \"version\": \"old\", \"layouts\": [{\"tag\": \"luod\", "
                         "\"read\": [1], \"write\": 1}]}'\n"
                      << "  exit 0\nfi\nexec " << program("luod") << " \"$@\"\n";
  chmod(path.c_str(), 0755);
  return path;
}

TEST_F(Hold, AnOlderLuodGetsRecordsThatItCanRead) {
  const Client client{luod_};
  const Fd session = client.create("s"), file = memfd_with("state");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
  ASSERT_EQ(luo_session_hold(client, session.raw(), LUO_HOLD_USER), 0);
  const std::string before = luod_.state();
  const Ran refused = luoctl(luod_, {"update", "luod", "--image", old_luod(luod_.dir())});
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find("session 's'"), std::string::npos) << refused.err;
  EXPECT_EQ(luod_.state(), before) << "nothing has changed";
  ASSERT_EQ(luo_session_hold(client, session.raw(), LUO_HOLD_OFF), 0);
  const std::string plain = luod_.state();
  const Ran done = luoctl(luod_, {"update", "luod", "--image", old_luod(luod_.dir())});
  EXPECT_EQ(done.status, 0) << done.err;
  EXPECT_EQ(luod_.state(), plain);
  // It was version 1 on the way: what a file costs is not known there.
  EXPECT_EQ(luod_.show("s")["files_list"][0]["preserved_s"], 0);
  ASSERT_EQ(luo_session_hold(client, session.raw(), LUO_HOLD_USER), 0) << "and it is the newest again";
}

TEST_F(Hold, AnOlderLuodThatDoesNotServeGivesTheStateBack) {
  const Client client{luod_};
  const Fd session = client.create("s"), file = memfd_with("state");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
  const std::string before = luod_.state();
  const std::string path = old_luod(luod_.dir());
  std::ofstream{path, std::ios::app};
  std::string text{std::istreambuf_iterator<char>{std::ifstream{path}.rdbuf()}, {}};
  text.replace(text.find("exec "), std::string::npos, "exit 7\n");
  std::ofstream{path} << text;
  const Ran failed = luoctl(luod_, {"update", "luod", "--image", path});
  EXPECT_EQ(failed.status, 1);
  EXPECT_EQ(luod_.state(), before);
  ASSERT_EQ(luo_session_hold(client, session.raw(), LUO_HOLD_USER), 0) << luo_last_error();
}

}  // namespace
}  // namespace luo::test
