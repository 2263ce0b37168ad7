// luoctl inspect --kho, of folders that were saved from a kernel.
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>

#include "cli/commands.h"

namespace luo::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

Options of_folder(const std::string& folder) {
  Options options;
  options.action = Action::Inspect;
  options.kho = true;
  options.kho_folder = folder;
  return options;
}

TEST(InspectKho, ShowsWhatWillBeHandedOver) {
  Options options = of_folder(LUO_KHO_SAMPLES "/cold");
  const Outcome text = run(options, {});
  EXPECT_EQ(text.status, kDone) << text.err;
  EXPECT_EQ(text.err, "");
  EXPECT_THAT(text.out, StartsWith("this kernel was started without a handover\n"));
  EXPECT_THAT(text.out, Not(HasSubstr("handed over to this kernel")));
  for (const char* there :
       {"to be handed over by it", "kho-v4, 285 B, map of preserved memory at 0x965000; of it 233 B are shown",
        "memory       not known: the map of it lies in the memory of the machine", "352.0 MiB in 2 areas",
        "luo-v5, live update 1, sessions are written at the kexec", "kexec 1 from Linux 7.3.4-luo"})
    EXPECT_THAT(text.out, HasSubstr(there));

  options.json = true;
  const json report = json::parse(run(options, {}).out);
  EXPECT_EQ(report["kind"], "kho");
  EXPECT_EQ(report["sound"], true);
  EXPECT_EQ(report["source"], options.kho_folder);
}

TEST(InspectKho, ShowsWhatCame) {
  const Outcome text = run(of_folder(LUO_KHO_SAMPLES "/after-kexec"), {});
  EXPECT_EQ(text.status, kDone) << text.err;
  EXPECT_THAT(text.out, StartsWith("this kernel came from a kexec with handover\n"));
  for (const char* there : {"handed over to this kernel", "read by the kernel, and its memory given back",
                            "not shown: this kernel does not show", "luo-v5, live update 2"})
    EXPECT_THAT(text.out, HasSubstr(there));
  EXPECT_THAT(text.out, Not(HasSubstr("root:")));  // what lies in that memory now
}

TEST(InspectKho, FailuresAreNamed) {
  Options options = of_folder("/tmp/luo-no-such-folder");
  const Outcome missing = run(options, {});
  EXPECT_EQ(missing.status, kFailed);
  EXPECT_THAT(missing.err, HasSubstr("neither in nor out is in /tmp/luo-no-such-folder"));
  options.json = true;
  EXPECT_EQ(json::parse(run(options, {}).out)["ok"], false);

  std::string copy = (fs::temp_directory_path() / "luo-kho-XXXXXX").string();
  ASSERT_NE(mkdtemp(copy.data()), nullptr);
  fs::copy(LUO_KHO_SAMPLES "/cold", copy, fs::copy_options::recursive);
  fs::resize_file(copy + "/out/fdt", 100);
  options.kho_folder = copy;
  const json damaged = json::parse(run(options, {}).out);
  EXPECT_EQ(damaged["ok"], false);
  EXPECT_EQ(damaged["out"]["subtrees"].size(), 2U);
  options.json = false;
  const Outcome text = run(options, {});
  EXPECT_EQ(text.status, kFailed);
  EXPECT_THAT(text.err, HasSubstr("100 of its 285 bytes are shown"));
  EXPECT_THAT(text.out, HasSubstr("damaged: out: "));
  fs::remove_all(copy);
}

}  // namespace
}  // namespace luo::cli
