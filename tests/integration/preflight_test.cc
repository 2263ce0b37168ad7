// What a luod that carries nothing over a kexec says about an update of the kernel. What one that does says is tested
// with real kernels, tests/vm.
#include <sys/stat.h>

#include "scenario.h"

namespace luo::test {
namespace {

using nlohmann::json;

class Preflight : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }

  json ask() {
    RawClient client = raw_client(luod_);
    wire::QueryArg arg{};
    arg.size = sizeof arg;
    arg.kind = static_cast<std::uint32_t>(wire::QueryKind::Preflight);
    const auto answer = client.call(wire::Command::Query, 0, arg);
    if (!answer || answer->error() != 0 || answer->fds.size() != 1) {
      ADD_FAILURE() << (answer ? answer->text() : to_string(answer.error()));
      return {};
    }
    return json::parse(content_of(answer->fds[0]));
  }
  static wire::UpdateKernelArg update_kernel(std::uint32_t flags = 0, std::uint32_t reserved = 0) {
    return {sizeof(wire::UpdateKernelArg), 0, flags, reserved};
  }
  Luod luod_;  // --medium exec, as all of them are
};

TEST_F(Preflight, SaysThatNothingCrossesAndWhatToDo) {
  const json empty = ask();
  EXPECT_EQ(empty["ok"], false);
  EXPECT_EQ(empty["medium"], "exec");
  ASSERT_EQ(empty["checks"].size(), 1U);
  EXPECT_EQ(empty["checks"][0]["name"], "medium");
  EXPECT_EQ(empty["checks"][0]["level"], "error");
  EXPECT_NE(empty["checks"][0]["fix"].get<std::string>().find("--medium kernel"), std::string::npos);
  EXPECT_EQ(empty["sessions"], 0);
  EXPECT_EQ(empty["will_not_cross"], json::array());
  EXPECT_EQ(empty["unclaimed"], json::array());

  {
    const Client client{luod_};
    const Fd session = client.create("left");
    const Fd file = memfd_with("state");
    ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 7), 0) << luo_last_error();
    cross(luod_);
  }
  const Client client{luod_};
  const Fd session = client.create("mine");
  const Fd file = memfd_with("state");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 42), 0) << luo_last_error();
  const std::string before = luod_.state();
  const json full = ask();
  EXPECT_EQ(full["sessions"], 1);
  EXPECT_EQ(full["files"], 0);
  ASSERT_EQ(full["will_not_cross"].size(), 1U);
  EXPECT_EQ(full["will_not_cross"][0]["session"], "mine");
  EXPECT_EQ(full["will_not_cross"][0]["token"], 42);
  EXPECT_EQ(full["will_not_cross"][0]["handler"], "memfd-v1");
  EXPECT_EQ(full["unclaimed"], json::array({"left"}));
  EXPECT_EQ(luod_.state(), before) << "nothing has changed";
}

TEST_F(Preflight, AnUpdateIsRefusedWithWhatToDo) {
  RawClient client = raw_client(luod_);
  const std::string before = luod_.state();
  for (const std::uint32_t flags :
       {0U, std::uint32_t{wire::kUpdateDryRun}, std::uint32_t{wire::kUpdateDryRun | wire::kUpdateDropUnclaimed}}) {
    const auto answer = client.call(wire::Command::UpdateKernel, 0, update_kernel(flags));
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->error(), EOPNOTSUPP) << flags;
    EXPECT_NE(answer->text().find("--medium kernel"), std::string::npos) << answer->text();
  }
  for (const auto& arg : {update_kernel(1U << 2), update_kernel(1U << 31), update_kernel(0, 1)}) {
    const auto answer = client.call(wire::Command::UpdateKernel, 0, arg);
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->error(), EINVAL) << answer->text();
  }
  EXPECT_EQ(luod_.state(), before);
  EXPECT_EQ(luod_.status()["history"], json::array()) << "none was begun";
}

TEST_F(Preflight, AnUpdateIsForAdministratorsOnly) {
  chmod(luod_.dir().path().c_str(), 0755);
  chmod(luod_.socket().c_str(), 0666);
  for (const std::uint32_t flags : {0U, 1U << 2})
    EXPECT_EQ(in_fork([&] {
                if (setresuid(12345, 12345, 12345) != 0) return 255;
                RawClient client = raw_client(luod_);
                const auto answer = client.call(wire::Command::UpdateKernel, 0, update_kernel(flags));
                return answer ? answer->error() : 254;
              }),
              EACCES)
        << flags;
}

}  // namespace
}  // namespace luo::test
