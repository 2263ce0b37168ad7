// A handler that fails its freeze: what was frozen before it is unfrozen in order, the update is off, and
// the culprit is named. With a luod that has such a handler (images/stubborn_luod.cc).
#include "scenario.h"
#include "sys/memfd.h"

namespace luo::test {
namespace {

using wire::Command;

class Freeze : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  void preserve(const Fd& session, std::uint64_t token, const std::string& content) {
    const Fd file = *make_memfd("stubborn", 0);
    ASSERT_TRUE(write_all(file, content).has_value());
    ASSERT_EQ(luo_preserve_fd(client_, session.raw(), file.raw(), token), 0) << luo_last_error();
  }
  /// "freeze 1, freeze 2 refused, ...", as the handler was asked.
  std::string calls() {
    std::string out;
    const std::string log = luod_.log();
    for (std::size_t at = 0; (at = log.find('[', at)) != std::string::npos;) {
      const std::size_t end = log.find(']', at);
      const std::string call = log.substr(at + 1, end - at - 1);
      if (call.starts_with("freeze ") || call.starts_with("unfreeze ")) out += (out.empty() ? "" : ", ") + call;
      at = end;
    }
    return out;
  }
  Luod luod_{LuodOptions{.program = program("luod_stubborn")}};
  Client client_{luod_};
};

TEST_F(Freeze, ARefusalIsUndoneInOrderAndNamed) {
  const Fd a = client_.create("a"), b = client_.create("b"), c = client_.create("c"), d = client_.create("d");
  preserve(a, 1, "yes");
  preserve(a, 2, "yes");
  preserve(b, 3, "yes");
  preserve(b, 4, "yes");
  preserve(c, 5, "yes");
  preserve(c, 6, "yes");
  preserve(c, 7, "no");
  preserve(c, 8, "yes");
  preserve(d, 9, "yes");
  const Ran ran = luoctl(luod_, {"--json", "update", "simulated"});
  EXPECT_EQ(ran.status, 1);
  for (const char* part : {"token 7", "'c'", "stubborn-v1", "it does not want to", "EREMOTEIO"})
    EXPECT_NE(ran.out.find(part), std::string::npos) << part << " in " << ran.out;
  EXPECT_EQ(calls(),
            "freeze 1, freeze 2, freeze 3, freeze 4, freeze 5, freeze 6, freeze 7 refused, "
            "unfreeze 5, unfreeze 6, unfreeze 3, unfreeze 4, unfreeze 1, unfreeze 2");
  for (const char* name : {"a", "b", "c", "d"}) EXPECT_EQ(luod_.show(name)["state"], "outgoing");
  EXPECT_EQ(luod_.status()["generation"], 0);
  preserve(d, 10, "yes");
  // Without the culprit it works.
  ASSERT_EQ(luo_unpreserve_fd(client_, c.raw(), 7), 0) << luo_last_error();
  cross(luod_);
  EXPECT_EQ(luod_.status()["sessions"]["incoming"], 4);
}

TEST_F(Freeze, ARefusalCallsAHandoverOff) {
  RawClient owner = raw_client(luod_, "owner"), admin = raw_client(luod_, "admin");
  const RawSession session = raw_session(owner, Command::CreateSession, "s");
  for (const char* content : {"yes", "no"}) {
    const Fd file = *make_memfd("stubborn", 0);
    ASSERT_TRUE(write_all(file, content).has_value());
    const int fd = file.raw();
    ASSERT_EQ(owner.call(Command::PreserveFd, session.handle, token_arg(content[0] == 'y' ? 1 : 2), {&fd, 1})->error(),
              0);
  }
  const auto offer = admin.call(Command::UpdateService, 0, update_arg("s"));
  ASSERT_EQ(offer->error(), 0);
  auto update = offer->as<wire::UpdateArg>();
  RawClient successor = raw_client(luod_, "successor", update.ticket);
  const RawSession taken = raw_session(successor, Command::RetrieveSession, "s");
  wire::WaitArg wait{};
  wait.size = sizeof wait;
  wait.timeout_ms = 20'000;
  EXPECT_EQ(successor.call(Command::TakeOver, taken.handle, wait)->error(), ECANCELED);
  auto ask = update_arg();
  ask.id = update.id;
  const auto outcome = admin.call(Command::UpdateWait, 0, ask);
  EXPECT_EQ(outcome->error(), EREMOTEIO);
  const std::string report = content_of(outcome->fds.at(0));
  for (const char* part : {"token 2", "'s'", "stubborn-v1", "it does not want to"})
    EXPECT_NE(report.find(part), std::string::npos) << part << " in " << report;
  EXPECT_EQ(calls(), "freeze 1, freeze 2 refused, unfreeze 1");
  EXPECT_EQ(luod_.show("s")["state"], "outgoing");
  EXPECT_TRUE(hung_up(taken.fd.raw()));
  EXPECT_EQ(owner.call(Command::UnpreserveFd, session.handle, token_arg(2))->error(), 0);
}

}  // namespace
}  // namespace luo::test
