// A handler that answers later holds nobody up but those who want the same session, and what becomes of
// the request that waits for it when anything around it goes. With a luod that has such a handler
// (images/slow_luod.cc).
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "scenario.h"
#include "sys/memfd.h"

namespace luo::test {
namespace {

using wire::Command;

bool until(const std::function<bool()>& holds) {
  for (int i = 0; i < 15'000; ++i) {
    if (holds()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
  return false;
}

bool is_answered(const RawClient& client) {
  pollfd one{client.socket().raw, POLLIN, 0};
  return poll(&one, 1, 0) > 0;
}

class Pending : public testing::Test {
 protected:
  Pending() {
    LUO_CHECK(mkfifo(fifo_.c_str(), 0600) == 0);
    wake_ = Fd::adopt(open(fifo_.c_str(), O_RDWR | O_CLOEXEC));
    luod_.emplace(LuodOptions{.environment = {{"LUO_TEST_WAKE", fifo_}}, .program = program("luod_slow")});
    LUO_CHECK(luod_->running());
    owner_.emplace(raw_client(*luod_, "owner"));
    session_ = raw_session(*owner_, Command::CreateSession, "s");
  }
  static Fd slow_file(char answer = 'w') {
    Fd file = *make_memfd("slow", 0);
    LUO_CHECK(write_all(file, std::string(1, answer)).has_value());
    return file;
  }
  static void now(const Fd& file, char answer) { LUO_CHECK(pwrite(file.raw(), &answer, 1, 0) == 1); }
  void wake() { LUO_CHECK(write(wake_.raw(), "w", 1) == 1); }
  /// How often the handler has been asked about the token, and has asked for more time.
  int asked(std::uint64_t token) const {
    const std::string log = luod_->log(), entry = fmt::format("[{} waits]", token);
    int times = 0;
    for (std::size_t at = 0; (at = log.find(entry, at)) != std::string::npos; ++at) ++times;
    return times;
  }
  /// Asks for it; returns when the handler has been asked.
  void begin(const Fd& file, std::uint64_t token) {
    const int fd = file.raw(), before = asked(token);
    LUO_CHECK(owner_->post(Command::PreserveFd, session_.handle, token_arg(token), {&fd, 1}).has_value());
    LUO_CHECK(until([&] { return asked(token) > before; }));
  }
  /// Another connection that knows the session.
  RawClient second(std::uint64_t& handle) {
    RawClient client = raw_client(*luod_, "second");
    const int fd = session_.fd.raw();
    const auto presented = client.call(Command::Present, 0, plain_arg(), {&fd, 1});
    LUO_CHECK(presented.has_value() && presented->error() == 0);
    handle = presented->header.session;
    return client;
  }
  int preserve(RawClient& client, std::uint64_t handle, std::uint64_t token) {
    const Fd file = memfd_with("x");
    const int fd = file.raw();
    const auto answer = client.call(Command::PreserveFd, handle, token_arg(token), {&fd, 1});
    return answer ? answer->error() : -answer.error().code;
  }
  std::vector<int> tokens() {
    std::vector<int> out;
    const nlohmann::json session = luod_->show("s");
    for (const auto& file : session["files_list"]) out.push_back(file["token"]);
    return out;
  }
  /// luod serves others: another session's life, from its beginning to its end.
  void others_are_served() {
    const Client client{*luod_};
    const Fd session = client.create("other");
    const Fd file = memfd_with("x");
    ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0) << luo_last_error();
    ASSERT_EQ(luo_unpreserve_fd(client, session.raw(), 1), 0) << luo_last_error();
  }

  TempDir dir_;
  std::string fifo_ = dir_ / "wake";
  Fd wake_;
  std::optional<Luod> luod_;
  std::optional<RawClient> owner_;
  RawSession session_;
};

TEST_F(Pending, IsAnsweredWhenTheHandlerIsDoneAndHoldsNobodyElseUp) {
  const Fd file = slow_file();
  begin(file, 1);
  others_are_served();
  EXPECT_FALSE(is_answered(*owner_));
  EXPECT_TRUE(tokens().empty());
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  EXPECT_EQ(tokens(), std::vector<int>{1});
  EXPECT_EQ(preserve(*owner_, session_.handle, 2), 0);
}

TEST_F(Pending, AWakeThatChangesNothingAsksAgain) {
  const Fd file = slow_file();
  begin(file, 1);
  for (int round = 1; round <= 12; ++round) {  // more often than a request may end a worker
    const int before = asked(1);
    wake();
    ASSERT_TRUE(until([&] { return asked(1) > before; }));
    ASSERT_FALSE(is_answered(*owner_));
  }
  now(file, 'g');
  wake();
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  others_are_served();
  EXPECT_EQ(tokens().size(), 1U);
}

TEST_F(Pending, AFailureThatComesLateIsTheAnswerAndTheTokenIsFree) {
  const Fd file = slow_file();
  begin(file, 1);
  now(file, 'f');
  wake();
  const auto answer = owner_->answer();
  EXPECT_EQ(answer->error(), EREMOTEIO);
  EXPECT_NE(answer->text().find("it came to nothing"), std::string::npos) << answer->text();
  EXPECT_TRUE(tokens().empty());
  EXPECT_EQ(preserve(*owner_, session_.handle, 1), 0);
}

TEST_F(Pending, OthersWaitForTheSessionAndComeAfterIt) {
  ASSERT_EQ(preserve(*owner_, session_.handle, 5), 0);
  std::uint64_t handle = 0;
  RawClient other = second(handle), third = second(handle);
  const Fd file = slow_file();
  begin(file, 1);
  // If it were not to wait, there would be no such token.
  ASSERT_TRUE(other.post(Command::UnpreserveFd, handle, token_arg(1)).has_value());
  ASSERT_TRUE(third.post(Command::UnpreserveFd, handle, token_arg(5)).has_value());
  others_are_served();
  EXPECT_FALSE(is_answered(other));
  EXPECT_FALSE(is_answered(third));
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  EXPECT_EQ(other.answer()->error(), 0);
  EXPECT_EQ(third.answer()->error(), 0);
  EXPECT_TRUE(tokens().empty());
}

TEST_F(Pending, ABatchWaitsAsAWhole) {
  const Fd file = slow_file(), before = memfd_with("b"), after = memfd_with("a");
  struct {
    wire::ManyArg many{sizeof(wire::ManyArg), 3};
    wire::ManyEntry entries[3] = {{1, 0, 0}, {2, 0, 0}, {3, 0, 0}};
  } arg;
  const int fds[] = {before.raw(), file.raw(), after.raw()};
  ASSERT_TRUE(owner_->post(Command::PreserveMany, session_.handle, arg, fds).has_value());
  ASSERT_TRUE(until([&] { return asked(2) > 0; }));
  others_are_served();
  EXPECT_TRUE(tokens().empty());
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  EXPECT_EQ(tokens().size(), 3U);
}

TEST_F(Pending, ItsClientDiesAndTheSessionIsFree) {
  std::uint64_t handle = 0;
  RawClient other = second(handle);
  const Fd file = slow_file();
  begin(file, 1);
  const Fd behind = memfd_with("x");
  const int fd = behind.raw();
  ASSERT_TRUE(other.post(Command::PreserveFd, handle, token_arg(2), {&fd, 1}).has_value());
  owner_->close();
  EXPECT_EQ(other.answer()->error(), 0);
  EXPECT_EQ(tokens(), std::vector<int>{2});
}

TEST_F(Pending, ItsSessionIsClosed) {
  const int before = luod_->descriptors();
  const Fd file = slow_file();
  begin(file, 1);
  session_.fd.close();
  EXPECT_EQ(owner_->answer()->error(), EBADF);
  EXPECT_TRUE(luod_->list()["sessions"].empty());
  // The session's pipe went, the thread's FIFO came; the file is not here.
  EXPECT_EQ(luod_->descriptors(), before);
  session_ = raw_session(*owner_, Command::CreateSession, "s");
  EXPECT_EQ(preserve(*owner_, session_.handle, 1), 0);
}

TEST_F(Pending, AKilledWorkerIsFollowedByOneThatAsksAgain) {
  std::uint64_t handle = 0;
  RawClient other = second(handle);
  const Fd file = slow_file();
  begin(file, 1);
  ASSERT_TRUE(other.post(Command::UnpreserveFd, handle, token_arg(1)).has_value());
  for (int round = 0; round < 12; ++round) {  // nor is it taken for what ends them
    const int before = asked(1);
    luod_->kill_worker();
    ASSERT_TRUE(until([&] { return asked(1) > before; })) << luod_->log();
  }
  EXPECT_FALSE(is_answered(*owner_));
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  // Behind the first, or, if the next worker looked at this connection first, before it: there was no token then.
  const int second_answer = other.answer()->error();
  EXPECT_TRUE(second_answer == 0 ? tokens().empty() : second_answer == ENOENT && tokens().size() == 1);
}

TEST_F(Pending, UpdateOfLuodGoesOnAndTheNextOneAsksAgain) {
  const Fd file = slow_file();
  begin(file, 1);
  const int before = asked(1);
  const Ran ran = luoctl(*luod_, {"update", "luod", "--image", program("luod_slow"), "--json"});
  ASSERT_EQ(ran.status, 0) << ran.out << ran.err;
  ASSERT_TRUE(until([&] { return asked(1) > before; })) << luod_->log();
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  EXPECT_EQ(tokens().size(), 1U);
}

TEST_F(Pending, ACrossingDoesNotWaitForWhatNobodyWasPromised) {
  ASSERT_EQ(preserve(*owner_, session_.handle, 5), 0);
  const Fd file = slow_file();
  begin(file, 1);
  cross(*luod_);
  EXPECT_TRUE(owner_->closed_by_luod());
  EXPECT_EQ(tokens(), std::vector<int>{5});
  EXPECT_EQ(luod_->show("s")["state"], "incoming");
}

TEST_F(Pending, AHandoverWaitsForItAndTakesItAlong) {
  ASSERT_EQ(preserve(*owner_, session_.handle, 5), 0);
  const Fd file = slow_file();
  begin(file, 1);
  RawClient admin = raw_client(*luod_, "admin");
  const auto offer = admin.call(Command::UpdateService, 0, update_arg("s"));
  ASSERT_EQ(offer->error(), 0) << offer->text();
  RawClient successor = raw_client(*luod_, "successor", offer->as<wire::UpdateArg>().ticket);
  const auto taken = successor.call(Command::RetrieveSession, 0, name_arg("s"));
  ASSERT_EQ(taken->error(), 0) << taken->text();
  const std::uint64_t handle = taken->header.session;
  ASSERT_TRUE(successor.post(Command::Accept, handle, plain_arg()).has_value());
  others_are_served();
  EXPECT_FALSE(is_answered(successor));
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  EXPECT_EQ(successor.answer()->error(), 0);
  wire::WaitArg wait{};
  wait.size = sizeof wait;
  wait.timeout_ms = 20'000;
  EXPECT_EQ(successor.call(Command::TakeOver, handle, wait)->error(), 0);
  for (const std::uint64_t token : {1U, 5U})
    EXPECT_EQ(successor.call(Command::RetrieveFd, handle, token_arg(token))->fds.size(), 1U);
  EXPECT_EQ(successor.call(Command::Renew, handle, plain_arg())->error(), 0);
  EXPECT_EQ(tokens(), (std::vector<int>{5, 1}));
}

TEST_F(Pending, ASuccessorThatGivesUpMeanwhileChangesNothing) {
  RawClient admin = raw_client(*luod_, "admin");
  const auto offer = admin.call(Command::UpdateService, 0, update_arg("s"));
  RawClient successor = raw_client(*luod_, "successor", offer->as<wire::UpdateArg>().ticket);
  const RawSession taken = raw_session(successor, Command::RetrieveSession, "s");
  ASSERT_NE(taken.handle, 0U);
  const Fd file = slow_file();
  begin(file, 1);
  admin.close();
  // The successor gives up while it waits for the session: it is the owner's as before.
  successor.close();
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  EXPECT_EQ(tokens(), std::vector<int>{1});
  EXPECT_EQ(luod_->show("s")["state"], "outgoing");
}

TEST_F(Pending, AWakeThatComesBeforeTheAnswerCounts) {
  const Fd file = slow_file('e');
  const int fd = file.raw();
  EXPECT_EQ(owner_->call(Command::PreserveFd, session_.handle, token_arg(1), {&fd, 1})->error(), 0);
  EXPECT_EQ(tokens(), std::vector<int>{1});
}

TEST_F(Pending, TwoSessionsWaitEachForTheirOwn) {
  RawClient other = raw_client(*luod_, "other");
  const RawSession session = raw_session(other, Command::CreateSession, "t");
  const Fd here = slow_file(), there = slow_file();
  begin(here, 1);
  const int fd = there.raw();
  ASSERT_TRUE(other.post(Command::PreserveFd, session.handle, token_arg(2), {&fd, 1}).has_value());
  ASSERT_TRUE(until([&] { return asked(2) > 0; }));
  now(there, 'g');
  wake();
  EXPECT_EQ(other.answer()->error(), 0);
  EXPECT_FALSE(is_answered(*owner_));
  EXPECT_EQ(preserve(other, session.handle, 3), 0);
  now(here, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
}

TEST_F(Pending, EveryKindOfRequestOnTheSessionWaits) {
  struct Wait {
    Command command;
    int error;
    RawClient client;
  };
  std::vector<Wait> waits;
  std::uint64_t handle = 0;
  for (const auto& [command, error] : {std::pair{Command::GetName, 0},
                                       {Command::ListTokens, 0},
                                       {Command::Finish, EINVAL},
                                       {Command::Renew, EINVAL},
                                       {Command::RetrieveFd, EINVAL},
                                       {Command::PreserveFd, EEXIST}})
    waits.push_back({command, error, second(handle)});
  const Fd file = slow_file(), more = memfd_with("x");
  const int fd = more.raw();
  begin(file, 1);
  for (Wait& wait : waits) {
    switch (wait.command) {
      case Command::GetName: {
        wire::GetNameArg arg{};
        arg.size = sizeof arg;
        ASSERT_TRUE(wait.client.post(wait.command, handle, arg).has_value());
        break;
      }
      case Command::PreserveFd:
        ASSERT_TRUE(wait.client.post(wait.command, handle, token_arg(1), {&fd, 1}).has_value());
        break;
      case Command::RetrieveFd: ASSERT_TRUE(wait.client.post(wait.command, handle, token_arg(1)).has_value()); break;
      default: ASSERT_TRUE(wait.client.post(wait.command, handle, plain_arg()).has_value());
    }
  }
  others_are_served();
  for (const Wait& wait : waits) EXPECT_FALSE(is_answered(wait.client)) << static_cast<int>(wait.command);
  now(file, 'g');
  wake();
  EXPECT_EQ(owner_->answer()->error(), 0);
  for (Wait& wait : waits) EXPECT_EQ(wait.client.answer()->error(), wait.error) << static_cast<int>(wait.command);
  EXPECT_EQ(tokens(), std::vector<int>{1});
}

TEST_F(Pending, ItsOwnerDies) {
  std::uint64_t handle = 0;
  RawClient other = second(handle);
  const Fd file = slow_file();
  begin(file, 1);
  ASSERT_TRUE(other.post(Command::UnpreserveFd, handle, token_arg(1)).has_value());
  others_are_served();
  session_.fd.close();
  owner_->close();
  EXPECT_EQ(other.answer()->error(), EBADF);
  EXPECT_TRUE(luod_->list()["sessions"].empty());
  others_are_served();
}

}  // namespace
}  // namespace luo::test
