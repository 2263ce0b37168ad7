#include "cli/render.h"

#include <gmock/gmock.h>

namespace luo::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const json kStatus = json::parse(R"({"version": "0.1.0", "pid": 10, "worker_pid": 11, "keeper_pid": 10,
  "socket": "/run/luo/luod.sock", "state_dir": "/run/luo", "handlers": ["memfd", "socket"],
  "sessions": {"outgoing": 3, "incoming": 1}, "files": 1024, "connections": 4, "generation": 9, "uptime_ms": 11520000,
  "worker_restarts": 2, "updates": 5, "arena": {"used_bytes": 1258291, "committed_bytes": 2097152},
  "last_update": {"ok": true, "kind": "service", "session": "cache", "pause_ms": 0.25},
  "open_files": 1100, "open_files_limit": 20000})");

const json kList = json::parse(R"({"sessions": [
  {"name": "vm-7", "id": 1, "state": "outgoing", "pid": 812, "uid": 0, "files": 12, "created_ms": 1000000, "holder": "held",
   "successor": true},
  {"name": "a\u001b[2Jb", "id": 2, "state": "incoming", "pid": 0, "uid": 1000, "files": 0, "created_ms": 990000,
   "holder": "none", "successor": false}]})");

TEST(RenderStatus, SaysWhatLuodIsAndHolds) {
  const auto text = render_status(kStatus, {});
  ASSERT_TRUE(text) << to_string(text.error());
  EXPECT_EQ(*text,
            "luod 0.1.0 at /run/luo/luod.sock, up 3 h 12 min\n"
            "  processes    keeper 10, worker 11 (worker restarted 2 times)\n"
            "  sessions     3 outgoing, 1 incoming\n"
            "  files        1024\n"
            "  connections  4\n"
            "  descriptors  1100 of 20000\n"
            "  arena        1.2 MiB used, 2.0 MiB committed\n"
            "  handlers     memfd, socket\n"
            "  state in     /run/luo\n"
            "  updates      5 of luod\n"
            "  last update  of service 'cache': done, pause 0.250 ms\n");
}

TEST(RenderStatus, DescribesAnUpdateThatFailedOrRuns) {
  json status = kStatus;
  status["last_update"] = {
      {"ok", false}, {"kind", "service"}, {"session", "cache"}, {"error", "it refused"}, {"phase", "failed"}};
  EXPECT_THAT(*render_status(status, {}), HasSubstr("of service 'cache': off: it refused\n"));
  status["last_update"] = {{"ok", false}, {"kind", "simulated"}, {"error", ""}, {"phase", "preparing"}};
  EXPECT_THAT(*render_status(status, {}), HasSubstr("simulated: preparing\n"));
  status["last_update"] = {{"ok", true}, {"kind", "kernel"}, {"dry_run", false}, {"blackout_ms", 1534.25}};
  EXPECT_THAT(*render_status(status, {}), HasSubstr("kernel: done, blackout 1534.2 ms\n"));
  status["last_update"] = {{"ok", true}, {"kind", "kernel"}, {"dry_run", true}, {"phase", "done"}};
  EXPECT_THAT(*render_status(status, {}), HasSubstr("kernel: dry run, all was ready\n"));
  status["last_update"] = {{"ok", true}, {"kind", "kernel"}};
  EXPECT_THAT(*render_status(status, {}), HasSubstr("kernel: done\n"));
  status["last_update"] = {{"ok", false}, {"kind", "kernel"}, {"error", "the kernel said no"}};
  EXPECT_THAT(*render_status(status, {}), HasSubstr("kernel: off: the kernel said no\n"));
  status["last_update"] = nullptr;
  EXPECT_THAT(*render_status(status, {}), testing::Not(HasSubstr("last update")));
}

TEST(RenderList, AlignsItsColumnsAndDisarmsNames) {
  const auto text = render_list(kList, 1'041'000, {});
  ASSERT_TRUE(text);
  EXPECT_EQ(*text,
            "NAME    STATE     FILES  PID   UID   AGE  HOLDER\n"
            "vm-7    outgoing     12  812     0  41 s  held, successor\n"
            "a?[2Jb  incoming      0    0  1000  51 s  none\n");
  EXPECT_EQ(*render_list(json{{"sessions", json::array()}}, 0, {}), "no sessions\n");
}

TEST(RenderList, ColoursDoNotShiftColumns) {
  std::string text = *render_list(kList, 1'041'000, {.colours = true});
  EXPECT_THAT(text, HasSubstr("\033[32moutgoing\033[0m"));
  for (auto at = text.find('\033'); at != std::string::npos; at = text.find('\033'))
    text.erase(at, text.find('m', at) + 1 - at);
  EXPECT_EQ(text, *render_list(kList, 1'041'000, {}));
}

TEST(RenderShow, ListsTheFiles) {
  json session = kList["sessions"][0];
  session["files_list"] =
      json::parse(R"([{"token": 18446744073709551615, "handler": "memfd", "status": "kept", "inode": 7, "size": 4096},
                                          {"token": 0, "handler": "socket", "status": "failed", "inode": 81749}])");
  const auto text = render_show(session, 1'041'000, {});
  ASSERT_TRUE(text);
  EXPECT_EQ(*text,
            "session vm-7\n"
            "  state        outgoing\n"
            "  owner        pid 812, uid 0\n"
            "  holder       held, successor\n"
            "  made         41 s ago\n"
            "  files        12\n"
            "\n"
            "               TOKEN  HANDLER  STATUS  INODE     SIZE\n"
            "18446744073709551615  memfd    kept        7  4.0 KiB\n"
            "                   0  socket   failed  81749        -\n");
}

TEST(RenderUpdate, HasOneLineForEachKind) {
  EXPECT_EQ(*render_update({{"kind", "luod"}, {"from_version", "0.1"}, {"to_version", "0.2"}, {"pause_ms", 18.784}}),
            "luod updated from 0.1 to 0.2: pause 18.8 ms\n");
  EXPECT_EQ(
      *render_update({{"kind", "service"}, {"session", "c"}, {"pause_ms", 0.032}, {"successor_pid", 7}, {"files", 1}}),
      "service 'c' updated: pause 0.032 ms, new pid 7, 1 file\n");
  EXPECT_EQ(*render_update({{"kind", "simulated"}, {"sessions", 2}, {"files", 5}, {"pause_ms", 3.0}}),
            "2 sessions with 5 files crossed: pause 3.0 ms; retrieve them by name\n");
}

TEST(Render, MissingAndStrangeMembersAreErrorsAndNothingElse) {
  for (const auto& item : kStatus.items()) {
    if (item.key() == "pid" || item.key() == "generation") continue;  // not shown
    json less = kStatus, strange = kStatus;
    less.erase(item.key());
    EXPECT_EQ(render_status(less, {}).error().code, EBADMSG) << item.key();
    if (item.key() == "last_update") continue;  // anything but an object is "none"
    strange[item.key()] = json{{"x", json::array()}};
    EXPECT_EQ(render_status(strange, {}).error().code, EBADMSG) << item.key();
  }
  EXPECT_EQ(render_list(json::object(), 0, {}).error().code, EBADMSG);
  EXPECT_EQ(render_list({{"sessions", {1, 2}}}, 0, {}).error().code, EBADMSG);
  EXPECT_EQ(render_show(kList["sessions"][0], 0, {}).error().code, EBADMSG);
  EXPECT_EQ(render_update(json::object()).error().code, EBADMSG);
}

TEST(ParseReport, RefusesEveryTruncation) {
  const std::string whole = kList.dump();
  for (std::size_t n = 0; n < whole.size(); ++n)
    EXPECT_EQ(parse_report(std::string_view{whole}.substr(0, n)).error().code, EBADMSG) << n << " bytes";
  EXPECT_TRUE(parse_report(whole));
  EXPECT_EQ(parse_report("[1]").error().code, EBADMSG);
}

TEST(RenderDuration, UsesTwoUnitsAtMost) {
  EXPECT_EQ(render_duration(-5), "0 ms");
  EXPECT_EQ(render_duration(999), "999 ms");
  EXPECT_EQ(render_duration(59'999), "59 s");
  EXPECT_EQ(render_duration(61'000), "1 min 1 s");
  EXPECT_EQ(render_duration(3'660'000), "1 h 1 min");
  EXPECT_EQ(render_duration(90'000'000), "1 d 1 h");
}

TEST(RenderBytes, PicksTheUnit) {
  EXPECT_EQ(render_bytes(0), "0 B");
  EXPECT_EQ(render_bytes(1023), "1023 B");
  EXPECT_EQ(render_bytes(1024), "1.0 KiB");
  EXPECT_EQ(render_bytes(1024 * 1024 - 1), "1.0 MiB");
  EXPECT_EQ(render_bytes(UINT64_MAX), "16.0 EiB");
}

TEST(RenderLastWords, MarksLinesAndDisarmsThem) {
  EXPECT_EQ(render_last_words("one\n\ttwo\n\033[2Jthree"), "  | one\n  |  two\n  | ?[2Jthree\n");
  EXPECT_EQ(render_last_words(""), "");
}

TEST(RenderKernelUpdate, TakesAReportWithoutTimesAndRefusesWhatIsNone) {
  const json report = {{"sessions", 2}, {"files", 1}, {"dry_run", true}};
  const auto text = render_kernel_update(report, "");
  ASSERT_TRUE(text) << to_string(text.error());
  EXPECT_THAT(*text, testing::StartsWith("dry run: 2 sessions with 1 file can cross into the new kernel"));
  EXPECT_THAT(*text, testing::Not(HasSubstr("prepare")));
  EXPECT_EQ(render_kernel_update(json{{"ok", true}}, "7.3").error().code, EBADMSG);
}

}  // namespace
}  // namespace luo::cli
