// Options of sessions, over the wire: set, shown, and kept over updates.
#include <sys/stat.h>

#include <fstream>

#include "scenario.h"

namespace luo::test {
namespace {

class Option : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }

  std::string shown() {
    const auto session = luod_.show("s");
    return fmt::format("transient {}, grow {}", session["transient"].get<std::string>(),
                       session["grow"].get<std::string>());
  }
  Luod luod_;
};

TEST_F(Option, AreRefuseUntilTheirOwnerSaysSomethingElse) {
  const Client client{luod_};
  const Fd session = client.create("s");
  const auto set = [&](const char* key, const char* value) {
    return luo_session_set_option(client, session.raw(), key, value);
  };
  EXPECT_EQ(shown(), "transient refuse, grow refuse");
  EXPECT_EQ(luoctl(luod_, {"show", "s"}).out.find("transient"), std::string::npos);
  EXPECT_EQ(set("transient", "allow"), 0) << luo_last_error();
  EXPECT_EQ(shown(), "transient allow, grow refuse");
  EXPECT_EQ(set("grow", "allow"), 0);
  EXPECT_EQ(set("grow", "allow"), 0) << "again";
  EXPECT_EQ(set("transient", "refuse"), 0);
  EXPECT_EQ(shown(), "transient refuse, grow allow");
  EXPECT_NE(luoctl(luod_, {"show", "s"}).out.find("grow         allow"), std::string::npos);
  EXPECT_EQ(luod_.list()["sessions"][0]["grow"], "allow");
  EXPECT_NE(luoctl(luod_, {"inspect", "--live"}).out.find("grow: allow"), std::string::npos);

  for (const auto& [key, value] : std::vector<std::pair<const char*, const char*>>{
           {"shrink", "allow"}, {"grow", "yes"}, {"grow", ""}, {"", "allow"}, {"grow\n", "allow"}}) {
    EXPECT_EQ(set(key, value), -EINVAL) << key << " " << value;
    EXPECT_NE(std::string{luo_last_error()}.find("there are transient and grow, each refuse or allow"),
              std::string::npos)
        << luo_last_error();
  }
  EXPECT_EQ(shown(), "transient refuse, grow allow");
}

TEST_F(Option, StayOverEveryUpdate) {
  const Client client{luod_};
  Fd session = client.create("s");
  const Fd file = memfd_with("state");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0) << luo_last_error();
  ASSERT_EQ(luo_session_set_option(client, session.raw(), "transient", "allow"), 0) << luo_last_error();
  ASSERT_EQ(luo_session_set_option(client, session.raw(), "grow", "allow"), 0) << luo_last_error();
  luod_.kill_worker();
  EXPECT_EQ(shown(), "transient allow, grow allow");
  const Ran updated = luoctl(luod_, {"update", "luod", "--image", program("luod")});
  ASSERT_EQ(updated.status, 0) << updated.err;
  EXPECT_EQ(shown(), "transient allow, grow allow");
  cross(luod_);
  EXPECT_EQ(shown(), "transient allow, grow allow");
  const Client after{luod_};
  session = after.retrieve("s");
  ASSERT_EQ(luo_session_set_option(after, session.raw(), "grow", "refuse"), 0) << luo_last_error();
  ASSERT_EQ(luo_session_renew(after, session.raw()), 0) << luo_last_error();
  EXPECT_EQ(shown(), "transient allow, grow refuse");

  // From a service to its next version: the successor may not, before the session is its own.
  RawClient admin = raw_client(luod_);
  const auto answer = admin.call(wire::Command::UpdateService, 0, update_arg("s"));
  ASSERT_TRUE(answer.has_value() && answer->error() == 0);
  wire::UpdateArg update{};
  std::memcpy(&update, answer->payload.data(), sizeof update);
  RawClient successor = raw_client(luod_, "successor", update.ticket);
  const RawSession taken = raw_session(successor, wire::Command::RetrieveSession, "s");
  ASSERT_TRUE(taken.fd.valid());
  wire::OptionArg option{sizeof option, 0, {}, {}};
  wire::put_text(option.key, "transient");
  wire::put_text(option.value, "refuse");
  EXPECT_EQ(successor.call(wire::Command::SetOption, taken.handle, option)->error(), EBUSY);
  const wire::WaitArg wait{sizeof wait, UINT32_MAX, {}};
  ASSERT_EQ(successor.call(wire::Command::TakeOver, taken.handle, wait)->error(), 0);
  ASSERT_EQ(successor.call(wire::Command::Renew, taken.handle, plain_arg())->error(), 0);
  EXPECT_EQ(shown(), "transient allow, grow refuse");
  EXPECT_EQ(successor.call(wire::Command::SetOption, taken.handle, option)->error(), 0);
  EXPECT_EQ(shown(), "transient refuse, grow refuse");
}

TEST_F(Option, OfASessionThatIsFrozenOrNobodys) {
  const Client client{luod_};
  const Fd session = client.create("s");
  ASSERT_EQ(luo_session_set_event(client, session.raw(), LUO_EVENT_PREPARE), 0);
  EXPECT_EQ(luo_session_set_option(client, session.raw(), "grow", "allow"), 0) << luo_last_error();
  ASSERT_EQ(luo_session_set_event(client, session.raw(), LUO_EVENT_FREEZE), 0);
  EXPECT_EQ(luo_session_set_option(client, session.raw(), "grow", "refuse"), -EBUSY);
  EXPECT_EQ(shown(), "transient refuse, grow allow");
  RawClient raw = raw_client(luod_);
  wire::OptionArg option{sizeof option, 0, {}, {}};
  std::ranges::fill(option.key, 'k');  // no NUL at all
  EXPECT_EQ(raw.call(wire::Command::SetOption, 0, option)->error(), EBADF);
  const RawSession mine = raw_session(raw, wire::Command::CreateSession, "t");
  EXPECT_EQ(raw.call(wire::Command::SetOption, mine.handle, option)->error(), EINVAL);
}

TEST_F(Option, AnOlderVersionOfTheRecordsCannotSayThem) {
  const Client client{luod_};
  const Fd session = client.create("s");
  ASSERT_EQ(luo_session_set_option(client, session.raw(), "grow", "allow"), 0);
  const std::string old = luod_.dir() / "old-luod";
  std::ofstream{old} << "#!/bin/sh\n"
                        "echo '{\"program\": \"luod\", \"version\": \"old\", \"layouts\": [{\"tag\": \"luod\", "
                        "\"read\": [1], \"write\": 1}]}'\n";
  chmod(old.c_str(), 0755);
  const Ran refused = luoctl(luod_, {"update", "luod", "--image", old});
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find("session 's'"), std::string::npos) << refused.err;
  EXPECT_EQ(shown(), "transient refuse, grow allow") << "nothing has changed";
}

}  // namespace
}  // namespace luo::test
