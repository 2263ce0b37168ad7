#include "inspect/report.h"

#include <gmock/gmock.h>
#include <sys/wait.h>

#include <fstream>
#include <random>

#include "daemon/control.h"
#include "kho/image.h"
#include "kho/image_format.h"
#include "kho/image_testing.h"
#include "kho/pages.h"
#include "kho/subtrees.h"
#include "luo/engine_testing.h"
#include "luo/records.h"

namespace luo::inspect {
namespace {

using luo::testing::duplicate;
using luo::testing::World;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Fd another(FdRef fd) { return Fd::adopt(fcntl(fd.raw, F_DUPFD_CLOEXEC, 0)); }

Json sound_report(Fd file, bool all = false) {
  const auto made = report(std::move(file), all);
  EXPECT_TRUE(made) << (made ? "" : to_string(made.error()));
  if (!made) return {};
  EXPECT_EQ(made->json["faults"].dump(), "[]");
  EXPECT_EQ(made->json["sound"], true);
  return made->json;
}

TEST(Inspect, ShowsTheMemoryOfAProgramThatItDoesNotKnow) {
  kho::Arena arena = kho::Arena::create({.name = "kv", .layout = {"kho-kv", 3}, .max_size = 64_MiB}).value();
  kho::fill_arena(arena);
  for (const Json& json :
       {sound_report(another(arena.fd()), true), sound_report(kho::seal(arena, "kv").value(), true)}) {
    EXPECT_EQ(json["layout"]["tag"], "kho-kv");
    EXPECT_EQ(json["layout"]["version"], 3);
    const Json& heap = json["heap"];
    EXPECT_EQ(heap["used_bytes"], arena.stats().used_bytes);
    EXPECT_EQ(heap["blocks"], arena.stats().blocks);
    EXPECT_EQ(heap["memory_bytes"].get<std::uint64_t>(),
              heap["used_bytes"].get<std::uint64_t>() + heap["free_bytes"].get<std::uint64_t>());
    std::uint64_t blocks = 0, used = 0;
    for (const Json& size : heap["small"]) {
      blocks += size["used_blocks"].get<std::uint64_t>();
      used += size["used_bytes"].get<std::uint64_t>();
    }
    for (const Json& size : heap["large"]) {
      blocks += size["blocks"].get<std::uint64_t>();
      used += size["blocks"].get<std::uint64_t>() * size["block_bytes"].get<std::uint64_t>();
    }
    EXPECT_EQ(blocks, arena.stats().blocks);
    EXPECT_EQ(used, arena.stats().used_bytes);
    std::uint64_t bytes = 0;
    for (const Json& chunk : heap["chunk_list"]) bytes += chunk["bytes"].get<std::uint64_t>();
    EXPECT_EQ(bytes, heap["chunks"].get<std::uint64_t>() * 65536);
    ASSERT_EQ(json["roots"].size(), 2U);
    EXPECT_EQ(json["roots"][1]["slot"], 3);
    EXPECT_EQ(json["roots"][1]["at"], arena.root(3).raw());
    EXPECT_FALSE(json.contains("engine"));
  }
  EXPECT_FALSE(sound_report(another(arena.fd()))["heap"].contains("chunk_list"));
}

TEST(Inspect, ShowsPreservedPages) {
  kho::Arena arena = kho::Arena::create({.name = "pages", .layout = {"pages", 1}, .max_size = 64_MiB}).value();
  kho::Tx tx{arena};
  const auto record = kho::PageTracker::create(tx, arena).value();
  tx.set_root(2, record.addr());
  tx.commit();
  auto pages = kho::PageTracker::open(arena, record).value();
  std::mt19937_64 random{3};
  for (int n = 0; n < 300; ++n) {  // single pages, sparse and dense leaves, blocks, nodes of several levels
    kho::Tx change{arena};
    const std::uint64_t first = random() % (n % 3 == 0 ? std::uint64_t{1} << 40 : std::uint64_t{1} << 18);
    ASSERT_TRUE(pages.preserve(change, first, n % 50 == 0 ? 200000 : 1 + random() % 90));
    ASSERT_TRUE(n % 7 != 0 || pages.unpreserve(change, first + 3, 70));
    change.commit();
  }
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges, shown;
  pages.for_each_range([&](std::uint64_t first, std::uint64_t count) { ranges.emplace_back(first, count); });
  const Json json = sound_report(another(arena.fd()), true);
  ASSERT_EQ(json["preserved_pages"].size(), 1U);
  const Json& of = json["preserved_pages"][0];
  EXPECT_EQ(of["root"], 2);
  EXPECT_EQ(of["pages"], pages.count());
  EXPECT_EQ(of["ranges"], ranges.size());
  for (const Json& range : of["range_list"])
    shown.emplace_back(range["first"].get<std::uint64_t>(), range["pages"].get<std::uint64_t>());
  EXPECT_EQ(shown, ranges);
  EXPECT_EQ(sound_report(another(arena.fd()))["preserved_pages"][0]["range_list"].size(), 64U);

  arena.get(record)->count += 1;
  const auto wrong = report(another(arena.fd()), false);
  ASSERT_EQ(wrong->faults.size(), 1U);
  EXPECT_THAT(wrong->faults[0].what, HasSubstr("preserved pages"));
}

TEST(Inspect, ShowsPreservedMemory) {
  kho::Arena arena = kho::Arena::create({.name = "memory", .layout = {"memory", 1}, .max_size = 64_MiB}).value();
  kho::Tx tx{arena};
  const auto record = kho::PreservedMemory::create(tx, arena).value();
  tx.set_root(4, record.addr());
  auto memory = kho::PreservedMemory::open(arena, record).value();
  const auto old = memory.make_subtree(tx).value();
  const auto block = memory.alloc_preserve(tx, old, Bytes{5000}).value();
  ASSERT_TRUE(memory.advance(tx));
  const auto fresh = memory.make_subtree(tx).value();
  const auto scattered = memory.alloc_preserve_scattered(tx, fresh, 7, 1).value();
  ASSERT_TRUE(memory.fill(tx, scattered));
  ASSERT_TRUE(kho::Subtrees{memory}.add(tx, "cache", Bytes{300}));
  tx.commit();
  const Json json = sound_report(another(arena.fd()));
  ASSERT_EQ(json["preserved_memory"].size(), 1U) << json.dump(2);
  const Json& of = json["preserved_memory"][0];
  EXPECT_EQ(of["epoch"], memory.epoch());
  ASSERT_EQ(of["subtrees"].size(), 3U);
  EXPECT_EQ(of["subtrees"][1]["name"], "cache");
  EXPECT_EQ(of["subtrees"][1]["blob_bytes"], 300);
  EXPECT_EQ(of["subtrees"][1]["blob"], of["subtrees"][1]["items"][0]["block"]);
  EXPECT_EQ(of["subtrees"][0]["side"], "current");
  EXPECT_EQ(of["subtrees"][0]["items"][0]["blocks_there"], 7);
  EXPECT_EQ(of["subtrees"][0]["items"][0]["block_bytes"], 8192);
  EXPECT_EQ(of["subtrees"][2]["side"], "incoming");
  EXPECT_EQ(of["subtrees"][2]["items"][0]["bytes"], 5000);
  EXPECT_EQ(of["subtrees"][2]["items"][0]["block"], memory.address(block).raw());

  arena.get(scattered)->next = scattered.at;  // a cycle
  const auto wrong = report(another(arena.fd()), false);
  ASSERT_FALSE(wrong->faults.empty());
  EXPECT_THAT(wrong->faults[0].what, HasSubstr("preserved memory"));
}

/// Sessions on both sides, held, with dependent files.
class OfLuod : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::uint64_t magic = daemon::Control::kMagic;
    std::memcpy(world_.arena->control().data(), &magic, sizeof magic);
    was_ = world_.create("came \"in\"\\\n");
    world_.preserve(was_, 70);
    world_.cross();
    first_ = world_.create("vm-1");
    world_.preserve(first_, 1);
    Fd second = luo::testing::memfd();
    const std::uint64_t after[] = {1};
    const auto preserved = world_.step([&](Change& c) {
      return world_.engine->preserve(c, first_,
                                     {.token = Token{2}, .fd = second.raw(), .after = after, .now_ms = 9000});
    });
    ASSERT_TRUE(preserved) << to_string(preserved.error());
    (void)second.release();  // the engine's now
    second_ = world_.create("vm-2");
    const auto held =
        world_.step([&](Change& c) { return world_.engine->set_hold(c, second_, Hold::Unit, "a.service"); });
    ASSERT_TRUE(held) << to_string(held.error());
  }
  Fd image() { return kho::seal(*world_.arena, "luod", {.control = true}).value(); }
  Ref<RootRecord> root() { return {world_.arena->root(0).raw()}; }

  World world_;
  SessionId was_, first_, second_;
};

TEST_F(OfLuod, ShowsSessionsAndFiles) {
  for (const bool live : {true, false}) {
    const Json json = sound_report(live ? another(world_.arena->fd()) : image());
    const Json& engine = json["engine"];
    EXPECT_EQ(engine["version"], 2);
    EXPECT_EQ(engine["generation"], 1);
    EXPECT_THAT(engine["handlers"], ElementsAre("fake-v1"));
    EXPECT_EQ(engine["tables"]["tokens"]["entries"], 3);
    EXPECT_EQ(engine["tables"]["relations"]["entries"], 2);
    ASSERT_EQ(engine["incoming"].size(), 1U);
    EXPECT_EQ(engine["incoming"][0]["name"], "came \"in\"\\x5c\\x0a");
    EXPECT_EQ(engine["incoming"][0]["state"], "incoming");
    EXPECT_EQ(engine["incoming"][0]["holders"].size(), 0U);
    EXPECT_EQ(engine["incoming"][0]["files"][0]["token"], 70);
    ASSERT_EQ(engine["outgoing"].size(), 2U);
    const Json& first = engine["outgoing"][0];
    EXPECT_EQ(first["name"], "vm-1");
    EXPECT_EQ(first["id"], first_.raw());
    EXPECT_EQ(first["holders"][0]["holds"], "held");
    ASSERT_EQ(first["files"].size(), 2U);
    EXPECT_EQ(first["files"][0]["dependents"], 1);
    EXPECT_EQ(first["files"][1]["after"].dump(), "[1]");
    EXPECT_EQ(first["files"][1]["handler"], "fake-v1");
    EXPECT_EQ(first["files"][1]["status"], "kept");
    EXPECT_EQ(first["files"][1]["data"].dump(), "[2,1,0,0]");
    EXPECT_EQ(first["files"][1]["preserved_s"], 9);
    const Json& second = engine["outgoing"][1];
    EXPECT_EQ(second["on_close"], "hold");
    EXPECT_EQ(second["hold_for"], "unit");
    EXPECT_EQ(second["held_for"], "a.service");
  }
}

TEST_F(OfLuod, ADamagedRecordIsNamedAndTheOthersAreShown) {
  auto* session = world_.arena->get(world_.arena->get(root())->outgoing.sessions.first);
  auto* file = world_.arena->get(session->files.first);
  const std::uint64_t good = std::exchange(file->magic, 1);
  auto made = report(another(world_.arena->fd()), false);
  ASSERT_EQ(made->faults.size(), 1U) << made->json["faults"].dump(2);
  EXPECT_THAT(to_string(made->faults[0]), HasSubstr(fmt::format("files of session {}", first_.raw())));
  EXPECT_EQ(made->json["sound"], false);
  EXPECT_EQ(made->json["engine"]["outgoing"].size(), 2U);
  EXPECT_EQ(made->json["engine"]["outgoing"][0]["files"].size(), 0U);
  file->magic = good;

  session->links.next = world_.arena->get(root())->outgoing.sessions.first;  // a cycle
  made = report(another(world_.arena->fd()), false);
  ASSERT_EQ(made->faults.size(), 1U);
  EXPECT_THAT(made->faults[0].what, HasSubstr("outgoing sessions"));
  EXPECT_EQ(made->json["engine"]["incoming"].size(), 1U);
  session->links.next = {session->links.next.at + 8};
  made = report(another(world_.arena->fd()), false);
  ASSERT_EQ(made->faults.size(), 1U);
  EXPECT_THAT(made->faults[0].what, HasSubstr("outgoing sessions"));
}

TEST_F(OfLuod, NoDamageKillsWhoLooks) {
  const std::vector<std::byte> whole = kho::content_of(image());
  kho::ImageHeader header;
  std::memcpy(&header, whole.data(), sizeof header);
  std::mt19937_64 random{5};
  for (int n = 0; n < 3000; ++n) {
    std::vector<std::byte> damaged = whole;
    for (int edit = 0; edit < 3; ++edit) {
      const std::size_t at = (header.data_at + random() % (whole.size() - header.data_at - 8)) & ~std::size_t{7};
      const std::size_t from = (header.data_at + random() % (whole.size() - header.data_at - 8)) & ~std::size_t{7};
      if (random() % 2 == 0) damaged[at] ^= static_cast<std::byte>(1U << random() % 8);
      else std::memcpy(damaged.data() + at, whole.data() + from, 8);  // links to real, but wrong records
    }
    const auto made = report(kho::file_of(damaged), false);
    ASSERT_TRUE(made);
    EXPECT_FALSE(damaged != whole && made->faults.empty()) << "data have checksums";
    EXPECT_FALSE(to_dts(made->json).empty());
  }
}

/// What dtc(1) says of it: its exit status and all its output.
std::pair<int, std::string> dtc(const std::string& source) {
  const std::string path = ::testing::TempDir() + fmt::format("luo-inspect-{}.dts", getpid());
  std::ofstream{path} << source;
  FILE* pipe = popen(fmt::format("dtc -I dts -O dts {} 2>&1 </dev/null", path).c_str(), "r");
  std::string text;
  for (int c; (c = fgetc(pipe)) != EOF;) text += static_cast<char>(c);
  const int status = pclose(pipe);
  unlink(path.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text};
}

TEST_F(OfLuod, DeviceTreeSourceIsTakenByDtcWithoutAWarning) {
  if (system("dtc --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "dtc is not installed (device-tree-compiler)";
  const std::string source = to_dts(report(image(), true)->json);
  const auto [status, text] = dtc(source);
  EXPECT_EQ(status, 0) << text;
  EXPECT_EQ(text.find("Warning"), std::string::npos) << text;
  for (const char* there : {"label = \"vm-1\"", "held-for = \"a.service\"", "outgoing {", "session-1 {", "file-1 {",
                            "came \\\"in\\\"\\\\x5c\\\\x0a", "<0x46>"})
    EXPECT_NE(text.find(there), std::string::npos) << there;
  const auto broken = dtc(source + "}");  // the test can fail
  EXPECT_NE(broken.first, 0);
}

TEST(Inspect, DeviceTreeSourceOfEachKindOfValue) {
  const Json json = {{"text", "a\"b\\c\n"},
                     {"yes", true},
                     {"no", false},
                     {"minus", -2},
                     {"big", ~0ULL},
                     {"none", nullptr},
                     {"empty", Json::array()},
                     {"words", {"a", "b"}},
                     {"numbers", {1, 2}},
                     {"name", "x"},
                     {"files", {{{"name", "y"}}}},
                     {"some_node", Json::object()}};
  EXPECT_EQ(to_dts(json),
            "/dts-v1/;\n\n/ {\n\tcompatible = \"luo,inspect-v1\";\n\ttext = \"a\\\"b\\\\c\\x0a\";\n\tyes;\n"
            "\tminus = /bits/ 64 <0xfffffffffffffffe>;\n\tbig = /bits/ 64 <18446744073709551615>;\n"
            "\twords = \"a\", \"b\";\n\tnumbers = /bits/ 64 <1 2>;\n\tlabel = \"x\";\n"
            "\tfiles {\n\t\tfile-0 {\n\t\t\tlabel = \"y\";\n\t\t};\n\t};\n\tsome-node {\n\t};\n};\n");
}

}  // namespace
}  // namespace luo::inspect
