#include "cli/running_kernel.h"

#include <gmock/gmock.h>

#include <cstring>

namespace luo::cli {
namespace {

using testing::ElementsAre;

TEST(RunningKernel, ItsConstantsAreWhereIomemSays) {
  const auto found = constants_in(
      "00000000-00000fff : Reserved\n00100000-7fffffff : System RAM\n  01000000-01ffffff : Kernel code\n"
      "  02000000-0245afff : Kernel rodata\n  02600000-026fffff : Kernel data\n80000000-800fffff : x Kernel rodata "
      "y\n");
  ASSERT_TRUE(found);
  EXPECT_THAT(*found, ElementsAre(Range{0x2000000, 0x245b000}));
}

TEST(RunningKernel, WhereNothingSensibleStandsNothingIsRead) {
  for (const char* const text :
       {"", "garbage", " : Kernel rodata", "  00000000-00000000 : Kernel rodata\n", "  5 : Kernel rodata",
        "  2000-1000 : Kernel rodata", "  0-ffffffffffffffff : Kernel rodata", "zz-yy : Kernel rodata"})
    EXPECT_EQ(constants_in(text).error().code, EBADMSG) << text;
}

struct FakeMemory final : inspect::PhysicalMemory {
  std::string content;
  std::uint64_t begin = 0x1000;
  Result<> read(std::uint64_t at, std::span<std::byte> into) const override {
    if (at < begin || at + into.size() > begin + content.size()) return fail(EFAULT, "read {:#x}", at);
    std::memcpy(into.data(), content.data() + (at - begin), into.size());
    return {};
  }
};

TEST(RunningKernel, FormatsAreFoundAmongTheConstants) {
  FakeMemory memory;
  memory.content = std::string((1 << 20) - 4, 'x') + std::string{"\0kho-v4\0luo-v5\0", 15} + std::string(5000, '\0');
  const std::uint64_t end = memory.begin + memory.content.size();
  EXPECT_THAT(*formats_in(memory, {{memory.begin, end}}), ElementsAre("kho-v4", "luo-v5"));
  EXPECT_EQ(formats_in(memory, {{memory.begin, memory.begin + 100}}).error().code, EBADMSG);
  EXPECT_EQ(formats_in(memory, {{memory.begin, end + 1}}).error().code, EFAULT);
}

}  // namespace
}  // namespace luo::cli
