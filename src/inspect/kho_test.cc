// luoctl inspect --kho's report: of what Linux 7.3.4 showed in a virtual machine (kho_samples), and of damaged copies.
#include "inspect/kho.h"

#include <elf.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "kho/kernel_tree.h"
#include "sys/memfd.h"

namespace luo::inspect {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;

const fs::path kSamples = LUO_KHO_SAMPLES;
using Memory = Result<const PhysicalMemory*>;
const Memory kNone = fail(EPERM, "locked down");

/// A copy that a test may damage.
class KhoReport : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "luo-kho-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    copy_ = name;
  }
  void TearDown() override { fs::remove_all(copy_); }
  void take(const char* sample) { fs::copy(kSamples / sample, copy_, fs::copy_options::recursive); }
  void write(const char* name, std::string_view text) const {
    std::ofstream{copy_ / name, std::ios::binary | std::ios::trunc} << text;
  }
  std::string read(const char* name) const {
    std::ifstream in{copy_ / name, std::ios::binary};
    return {std::istreambuf_iterator<char>{in}, {}};
  }
  Report report(const Memory& memory = kNone) const {
    auto made = kho_report(copy_.string(), memory);
    EXPECT_TRUE(made) << (made ? "" : to_string(made.error()));
    return made ? *std::move(made) : Report{};
  }
  fs::path copy_;
};

/// Pages at the addresses that a test gives them.
class Pages : public PhysicalMemory {
 public:
  std::map<std::uint64_t, std::array<std::uint64_t, 512>> pages;
  Result<> read(std::uint64_t at, std::span<std::byte> into) const override {
    const auto page = pages.find(at);
    if (page == pages.end() || into.size() != 4096) return fail(EBADMSG, "there is no memory at {:#x}", at);
    std::memcpy(into.data(), page->second.data(), 4096);
    return {};
  }
  /// As the kernel keeps it: six levels, the key of a block being its number below a bit that tells its size.
  void preserve(std::uint64_t root, std::uint64_t address, unsigned order) {
    const std::uint64_t key = std::uint64_t{1} << (52 - order) | address >> (12 + order);
    pages.try_emplace(root);
    for (unsigned shift = 51;; shift -= 9) {
      std::uint64_t& entry = pages[root][key >> shift & 511];
      if (entry == 0) entry = 0x100000 + pages.size() * 4096;
      root = entry;
      pages.try_emplace(root);
      if (shift == 15) break;
    }
    pages[root][key % 32768 / 64] |= std::uint64_t{1} << key % 64;
  }
};

TEST_F(KhoReport, OfAKernelThatWasStartedCold) {
  take("cold");
  const Report made = report();
  EXPECT_EQ(made.json["faults"].dump(), "[]");
  EXPECT_TRUE(made.json["in"].is_null());
  const Json& out = made.json["out"];
  EXPECT_EQ(out["tree"]["format"], "kho-v4");
  EXPECT_EQ(out["tree"]["bytes"], 285);  // 233 are shown: so many the tree had when the kernel made the file
  EXPECT_EQ(out["tree"]["shown_bytes"], 233);
  EXPECT_EQ(out["tree"]["map_at"], 0x965000);
  ASSERT_EQ(out["subtrees"].size(), 2U);
  EXPECT_EQ(out["subtrees"][0]["at"], 0x258b000);
  EXPECT_EQ(out["subtrees"][0]["luo"]["format"], "luo-v5");
  EXPECT_EQ(out["subtrees"][0]["luo"]["number"], 1);
  EXPECT_EQ(out["subtrees"][1]["kexec"]["release"], "7.3.4-luo");
  EXPECT_EQ(out["subtrees"][1]["kexec"]["count"], 1);
  EXPECT_EQ(out["scratch"].size(), 2U);  // the third has no bytes
  EXPECT_EQ(out["scratch_bytes"], 0x5800000 + 0x10800000);
  EXPECT_EQ(out["preserved"]["known"], false);
  EXPECT_THAT(out["preserved"]["why"], HasSubstr("locked down"));
}

TEST_F(KhoReport, OfAKernelThatCameFromAKexec) {
  take("after-kexec");
  const Report made = report();
  EXPECT_EQ(made.json["faults"].dump(), "[]");
  const Json &in = made.json["in"], &out = made.json["out"];
  EXPECT_EQ(in["tree"]["shown_bytes"], 285);
  EXPECT_EQ(in["subtrees"][0]["name"], "LUO");
  EXPECT_EQ(in["subtrees"][0]["given_back"], true) << "what the file shows is another program's memory";
  EXPECT_FALSE(in["subtrees"][0].contains("luo"));
  EXPECT_EQ(in["subtrees"][1]["kexec"]["count"], 1);
  EXPECT_THAT(in["preserved"]["why"], HasSubstr("gives the map of it up"));
  EXPECT_EQ(out["tree"]["shown"], false);
  EXPECT_THAT(out["tree"]["why"], HasSubstr("came from a kexec"));
  EXPECT_EQ(out["preserved"]["why"], out["tree"]["why"]);
  ASSERT_EQ(out["subtrees"].size(), 2U);
  EXPECT_EQ(out["subtrees"][0]["luo"]["number"], 2);
  EXPECT_EQ(out["subtrees"][1]["kexec"]["count"], 2);
}

TEST_F(KhoReport, CountsWhatIsPreserved) {
  take("cold");
  Pages memory;
  for (const std::uint64_t page : {0x5000, 0x6000, 0x40000000}) memory.preserve(0x965000, page, 0);
  memory.preserve(0x965000, 0x5000, 0);  // again: nothing new
  memory.preserve(0x965000, 0x200000, 9);
  memory.preserve(0x965000, 0, 10);
  const Json counted = report(&memory).json["out"]["preserved"];
  EXPECT_EQ(counted["known"], true);
  EXPECT_EQ(counted["bytes"], 3 * 4096 + (4096 << 9) + (4096 << 10));
  EXPECT_EQ(counted["blocks"], 5);
  EXPECT_EQ(counted["map_bytes"], memory.pages.size() * 4096);
}

TEST_F(KhoReport, AMapThatIsNoneIsNamed) {
  take("cold");
  Pages memory;
  const auto refused = [&](const char* text) {
    const Report made = report(&memory);
    ASSERT_EQ(made.faults.size(), 1U);
    EXPECT_THAT(made.faults[0].what, HasSubstr(text));
    EXPECT_EQ(made.json["out"]["preserved"]["known"], false);
  };
  refused("no memory at 0x965000");
  memory.pages[0x965000][0] = 0x1001;
  refused("which is no page");
  memory.pages[0x965000].fill(0x965000);  // a table that is its own table: ends at what cannot be a key
  refused("which is no block");
}

TEST_F(KhoReport, ThereIsNothing) {
  const auto none = kho_report(copy_.string(), kNone);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ENOENT);
  write("in", "no folder");
  EXPECT_FALSE(kho_report(copy_.string(), kNone));
}

TEST_F(KhoReport, WhatIsDamagedIsNamedAndTheRestIsShown) {
  const std::pair<const char*, std::pair<std::string, const char*>> damages[] = {
      {"out/fdt", {"", "it has 0 bytes"}},
      {"out/fdt", {std::string(400, 'x'), "its magic is 0x78787878"}},
      {"out/sub_fdts/LUO", {"luo-v5", "6 bytes are shown, it has 32"}},
      {"out/sub_fdts/LUO", {"luo-v6" + std::string(26, '\0'), "its format is 'luo-v6'"}},
      {"out/sub_fdts/LUO", {std::string(32, '\033'), "its format is '\\x1b"}},
      {"out/sub_fdts/kexec-metadata", {std::string(73, 2), "version 33686018 of 73 bytes"}},
      {"out/sub_fdts/kexec-metadata", {"a", "1 bytes are shown"}},
      {"out/sub_fdts/other", {"a", "sub_fdts/other: it is not in the device tree"}},
      {"out/scratch_len", {"0x1000\n0x\n", "'0x' is no number"}},
      {"out/scratch_len", {"0x1000\n", "scratch_phys has 3 numbers, scratch_len 1"}},
      {"out/scratch_phys", {"17\n", "'17' is no number"}},
      {"out/scratch_len", {"0xffffffffffffffff\n0x2\n0x0\n", "more than there can be"}},
  };
  for (const auto& [file, damage] : damages) {
    fs::remove_all(copy_);
    take("cold");
    write(file, damage.first);
    const Report made = report();
    EXPECT_FALSE(made.json["sound"].get<bool>());
    ASSERT_FALSE(made.faults.empty()) << damage.second;
    EXPECT_THAT(to_string(made.faults[0]), HasSubstr(damage.second));
    EXPECT_THAT(made.faults[0].what, HasSubstr("out: "));
    EXPECT_FALSE(made.json["out"]["subtrees"].empty());
  }
}

/// Never a crash, and never a tree that says something else than the undamaged one without a fault (the numbers in it
/// excepted: they have no checksum).
TEST_F(KhoReport, EachByteOfTheTreeDamaged) {
  for (const char* sample : {"cold", "after-kexec"}) {
    fs::remove_all(copy_);
    take(sample);
    const char* file = sample[0] == 'c' ? "out/fdt" : "in/fdt";
    const std::string whole = read(file);
    for (std::size_t at = 0; at < whole.size(); ++at)
      for (const char with : {'\0', '\1', '\x7f', '\xff'}) {
        std::string damaged = whole;
        damaged[at] = with;
        const auto root = kho::kernel_tree::read(std::as_bytes(std::span{damaged}));
        if (root) {
          EXPECT_EQ(root->compatible, "kho-v4");
          EXPECT_LE(root->subtrees.size(), 2U);
        } else {
          EXPECT_THAT(root.error().code, AnyOf(EBADMSG, EPROTO));
        }
      }
    for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
      const auto root = kho::kernel_tree::read(std::as_bytes(std::span{whole}.first(bytes)));
      // Cut off within the strings it is still the same tree; anywhere else it is none.
      EXPECT_EQ(root.has_value(), bytes >= 228) << bytes;
      if (root) {
        EXPECT_TRUE(root->completed);
        EXPECT_EQ(root->map, 0x965000U);
      }
    }
    std::mt19937_64 random{20261121};
    for (int i = 0; i < 20000; ++i) {
      std::string damaged = whole;
      for (int n = 0; n < 4; ++n) damaged[random() % damaged.size()] = static_cast<char>(random());
      (void)kho::kernel_tree::read(std::as_bytes(std::span{damaged}));
    }
  }
}

TEST(CoreMemory, ReadsByPhysicalAddress) {
  struct File {
    Elf64_Ehdr header{};
    Elf64_Phdr segments[3]{};
    char text[8] = {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'};
  } file;
  std::memcpy(file.header.e_ident, ELFMAG, SELFMAG);
  file.header.e_ident[EI_CLASS] = ELFCLASS64;
  file.header.e_type = ET_CORE;
  file.header.e_phoff = offsetof(File, segments);
  file.header.e_phentsize = sizeof(Elf64_Phdr);
  file.header.e_phnum = 3;
  for (Elf64_Phdr& segment : file.segments)
    segment.p_type = PT_LOAD, segment.p_paddr = ~0ULL, segment.p_memsz = 1 << 20;
  file.segments[1].p_paddr = 0x1000;
  file.segments[1].p_offset = offsetof(File, text);
  file.segments[1].p_memsz = 6;
  const auto opened = [](const File& of) {
    const Fd memfd = make_memfd("core", 0).value();
    EXPECT_TRUE(write_all(memfd, {reinterpret_cast<const char*>(&of), sizeof of}));
    return CoreMemory::open(fmt::format("/proc/self/fd/{}", memfd.raw()));
  };
  const auto memory = opened(file);
  ASSERT_TRUE(memory) << to_string(memory.error());
  char got[4];
  ASSERT_TRUE(memory->read(0x1002, std::as_writable_bytes(std::span{got})));
  EXPECT_EQ(std::string_view(got, 4), "cdef");
  for (const std::uint64_t at : {0x0fffULL, 0x1003ULL, 0x2000ULL, ~0ULL - 1})
    EXPECT_FALSE(memory->read(at, std::as_writable_bytes(std::span{got}))) << at;

  file.segments[1].p_memsz = 1 << 20;  // the file ends before
  EXPECT_FALSE(opened(file)->read(0x1800, std::as_writable_bytes(std::span{got})));
  file.header.e_phnum = 100;
  EXPECT_FALSE(opened(file));
  file.header.e_type = ET_EXEC;
  EXPECT_FALSE(opened(file));
  EXPECT_EQ(CoreMemory::open("/tmp/luo-no-such-file").error().code, ENOENT);
}

}  // namespace
}  // namespace luo::inspect
