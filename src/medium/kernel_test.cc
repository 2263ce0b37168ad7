#include "medium/kernel.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <map>
#include <memory>

#include "medium/fake_kernel.h"

namespace luo::medium {
namespace {

Fd memfd() { return Fd::adopt(memfd_create("kernel-test", MFD_CLOEXEC)); }

/// The engine's side in a few lines: groups of files with places, in which a test keeps what was committed.
class KernelMedium : public testing::Test {
 protected:
  void SetUp() override {
    arena = std::make_unique<kho::Arena>(
        kho::Arena::create({.name = "t", .layout = {"test", 1}, .max_size = 64_MiB}).value());
    start();
  }
  void start() {
    kernel.reset();
    kernel = std::make_unique<Kernel>(Kernel::open(*arena, device, [this](std::uint64_t group, const Visit& visit) {
                                        for (auto& [key, file] : files)
                                          if (group == kShared || key.first == group) visit(file.place, file.fd.raw());
                                      }).value());
    const auto sound = kernel->check();
    ASSERT_TRUE(sound) << to_string(sound.error());
    ASSERT_TRUE(kernel->reserve());
  }
  /// One transaction: takes `count` files in. Stops at the first error.
  Error preserve(std::uint64_t group, int count, When when = When::Now, bool commit = true) {
    kho::Tx tx{*arena};
    std::vector<std::pair<std::uint64_t, std::uint64_t>> added;
    Error error{};
    for (int i = 0; i < count && error.code == 0; ++i) {
      Fd fd = memfd();
      auto place = kernel->preserve(group, fd.raw(), when);
      if (!place) {
        error = place.error();
        break;
      }
      const std::pair key{group, next++};
      files[key] = {*place, std::move(fd)};
      added.push_back(key);
    }
    if (commit) tx.commit();
    else {
      tx.abort();
      for (const auto& key : added) files.erase(key);
    }
    if (kernel) kernel->settle();
    EXPECT_TRUE(kernel->reserve());
    return error;
  }
  void give_up(std::uint64_t group, std::size_t count) {
    kho::Tx tx{*arena};
    for (auto at = files.begin(); at != files.end() && count > 0;) {
      if (at->first.first != group) {
        ++at;
        continue;
      }
      kernel->unpreserve(at->second.place);
      at = files.erase(at);
      --count;
    }
    tx.commit();
    kernel->settle();
  }
  void expect_agreement() {
    EXPECT_EQ(device.file_count(), files.size());
    for (auto& [key, file] : files) EXPECT_TRUE(device.has(file.fd.raw())) << key.first << ' ' << key.second;
    const Kernel::Counts counts = kernel->counts();
    EXPECT_EQ(counts.files, files.size());
    EXPECT_EQ(counts.sessions, device.session_count());
    EXPECT_EQ(counts.lacking, 0U);
    EXPECT_FALSE(device.duplicate_create);
  }

  struct File {
    Place place;
    Fd fd;
  };
  FakeKernel device;
  std::unique_ptr<kho::Arena> arena;
  std::map<std::pair<std::uint64_t, std::uint64_t>, File> files;
  std::uint64_t next = 1;
  std::unique_ptr<Kernel> kernel;
};

TEST_F(KernelMedium, AGroupHasOneKernelSession) {
  EXPECT_EQ(preserve(1, 5).code, 0);
  EXPECT_EQ(preserve(2, 3).code, 0);
  EXPECT_EQ(device.session_count(), 2U);
  expect_agreement();
  give_up(2, 3);
  EXPECT_EQ(device.session_count(), 1U) << "what is empty is not kept";
  expect_agreement();
}

TEST_F(KernelMedium, GivingOneFileUpBuildsTheSessionAnew) {
  EXPECT_EQ(preserve(1, 5).code, 0);
  give_up(1, 2);
  EXPECT_EQ(files.size(), 3U);
  expect_agreement();
}

TEST_F(KernelMedium, AStepThatIsTakenBackLeavesNothing) {
  EXPECT_EQ(preserve(1, 3).code, 0);
  EXPECT_EQ(preserve(1, 4, When::Now, false).code, 0);
  EXPECT_EQ(preserve(2, 4, When::Now, false).code, 0);
  EXPECT_EQ(files.size(), 3U);
  expect_agreement();
}

TEST_F(KernelMedium, ASessionThatIsFullIsFollowedByAnother) {
  device.most_files = 128;  // Linux 6.19
  EXPECT_EQ(preserve(1, 500).code, 0);
  EXPECT_EQ(device.session_count(), 4U);
  expect_agreement();
  give_up(1, 300);
  expect_agreement();
  give_up(1, 200);
  EXPECT_EQ(device.session_count(), 0U);
}

TEST_F(KernelMedium, WhenThereAreNoMoreSessionsTheyAreShared) {
  device.most_sessions = 3;
  device.most_files = 4;
  for (std::uint64_t group = 1; group <= 6; ++group) EXPECT_EQ(preserve(group, 2).code, 0) << group;
  EXPECT_EQ(device.session_count(), 3U);
  expect_agreement();
  const Error full = preserve(7, 1);
  EXPECT_EQ(full.code, ENOMEM);
  EXPECT_FALSE(full.what.empty());
  expect_agreement();
  give_up(5, 2);
  expect_agreement();
  start();
  expect_agreement();
  EXPECT_EQ(preserve(8, 1).code, 0);
  for (const std::uint64_t group : {1, 2, 3, 4, 6, 8}) give_up(group, 2);
  EXPECT_EQ(device.session_count(), 0U);
}

TEST_F(KernelMedium, RefusalsReachTheCallerAndChangeNothing) {
  EXPECT_EQ(preserve(1, 2).code, 0);
  for (const int code : {EBUSY, EFBIG, EOPNOTSUPP, ENOENT}) {
    device.fails = [&](const char* call) { return std::string_view{call} == "preserve" ? code : 0; };
    const Error error = preserve(1, 1);
    EXPECT_EQ(error.code, code);
    EXPECT_EQ(preserve(2, 1).code, code) << "the first of its group";
    device.fails = [](const char*) { return 0; };
    expect_agreement();
  }
  device.fails = [](const char*) { return ENOMEM; };
  EXPECT_EQ(preserve(1, 1).code, ENOMEM);
  device.fails = [](const char*) { return 0; };
  expect_agreement();
}

TEST_F(KernelMedium, WhatCannotBePutBackIsTriedAgainBeforeAKexec) {
  EXPECT_EQ(preserve(1, 5).code, 0);
  device.fails = [n = 0](const char* call) mutable {
    return std::string_view{call} == "preserve" && ++n > 2 ? ENOMEM : 0;
  };
  give_up(1, 1);
  EXPECT_EQ(kernel->counts().lacking, 4U) << "in part is not at all";
  EXPECT_EQ(device.session_count(), 0U);
  EXPECT_EQ(kernel->complete().error().code, ENOMEM);
  device.fails = [](const char*) { return 0; };
  EXPECT_TRUE(kernel->complete());
  expect_agreement();
}

/// Numbers alone would say that all is well: one file is there, and one should be.
TEST_F(KernelMedium, WhatIsGivenUpWhileOthersAreLackingIsNotTakenForOneOfThem) {
  EXPECT_EQ(preserve(1, 3).code, 0);
  device.fails = [n = 0](const char* call) mutable {
    return std::string_view{call} == "preserve" && ++n > 1 ? ENOMEM : 0;
  };
  give_up(1, 1);  // of the two that stay, the first could be put back, for a moment
  give_up(1, 1);
  device.fails = [](const char*) { return 0; };
  EXPECT_TRUE(kernel->complete());
  expect_agreement();
}

/// A session of a dead owner ends within somebody else's step, who wants a file of it, and the step is taken back.
TEST_F(KernelMedium, AStepThatTakesAFileOverIsTakenBack) {
  for (const bool killed : {false, true}) {
    for (const int others : {0, 2}) {
      const std::uint64_t from = next, to = next + 1;
      EXPECT_EQ(preserve(from, 1 + others).code, 0);
      {
        kho::Tx tx{*arena};
        auto& file = files.lower_bound({from, 0})->second;
        kernel->unpreserve(file.place);
        auto taken = kernel->preserve(to, file.fd.raw(), When::Now);
        ASSERT_TRUE(taken) << taken.error().what;
        const Fd fresh = memfd();
        EXPECT_TRUE(kernel->preserve(from, fresh.raw(), When::Now));
        tx.abort();
      }
      if (killed) {
        start();
        kernel->recover();
      } else {
        kernel->settle();
      }
      expect_agreement();
      give_up(from, 1);  // and it is free for others
      expect_agreement();
    }
  }
}

/// While an old luod is ending, it has copies of the descriptors: what is closed is not free yet.
TEST_F(KernelMedium, WaitsForWhoHasCopiesBeforeItCloses) {
  EXPECT_EQ(preserve(1, 3).code, 0);
  std::vector<Fd> copies;
  for (int fd = 3; fd < 200; ++fd)
    if (Fd copy = Fd::adopt(fcntl(fd, F_DUPFD_CLOEXEC, 500)); copy.valid()) copies.push_back(std::move(copy));
  kernel->before_close([&] { copies.clear(); });
  give_up(1, 1);
  expect_agreement();
}

TEST_F(KernelMedium, LateFilesGoWithTheUpdate) {
  EXPECT_EQ(preserve(1, 2).code, 0);
  EXPECT_EQ(preserve(1, 3, When::Late).code, 0);
  EXPECT_EQ(device.session_count(), 2U);
  EXPECT_TRUE(kernel->has_late());
  expect_agreement();
  start();
  EXPECT_TRUE(kernel->has_late());
  std::size_t late = 0;
  for (auto& [key, file] : files) late += kernel->is_late(file.place) ? 1 : 0;
  EXPECT_EQ(late, 3U);
}

/// A worker that is killed leaves marks; the next one asks the kernel.
TEST_F(KernelMedium, WhatAKilledWorkerHadInWorkIsPutRight) {
  EXPECT_EQ(preserve(1, 3).code, 0);
  for (const bool on_the_way : {true, false}) {
    for (int killed_in = 1; killed_in < 12; ++killed_in) {
      {
        kho::Tx tx{*arena};
        int calls = 0;
        device.fails = [&](const char*) { return ++calls == killed_in ? EINTR : 0; };
        std::vector<Fd> fds;
        for (const std::uint64_t group : {1, 2, 1, 3}) {
          fds.push_back(memfd());
          if (!kernel->preserve(group, fds.back().raw(), When::Now)) break;  // the worker dies here
        }
        if (!on_the_way) kernel->unpreserve(files.begin()->second.place);
        tx.abort();  // as the next worker's Arena::open() does
      }
      device.fails = [](const char*) { return 0; };
      start();
      kernel->recover();
      expect_agreement();
    }
  }
}

/// What only the kernel's counts would not tell: one file for another.
TEST_F(KernelMedium, OneFileIsNotTakenForAnother) {
  ASSERT_EQ(preserve(1, 5).code, 0);
  device.fails = [](const char* call) { return std::string_view{call} == "preserve" ? ENOMEM : 0; };
  give_up(1, 1);  // could not be made again
  EXPECT_EQ(kernel->counts().lacking, 4U);
  device.fails = [](const char*) { return 0; };
  EXPECT_EQ(preserve(1, 1, When::Now, false).code, 0);
  EXPECT_EQ(device.file_count(), 0U) << "what was abandoned is not there in place of what is lacking";
  EXPECT_TRUE(kernel->complete());
  expect_agreement();
}

TEST_F(KernelMedium, AFileMovesWithinOneStepAndTheStepMayBeAbandoned) {
  ASSERT_EQ(preserve(1, 3).code, 0);
  ASSERT_EQ(preserve(2, 1).code, 0);
  for (const bool commit : {false, true}) {
    {
      kho::Tx tx{*arena};
      auto from = files.extract({1, commit ? 2 : 1});
      kernel->unpreserve(from.mapped().place);
      const auto place = kernel->preserve(3, from.mapped().fd.raw(), When::Now);
      ASSERT_TRUE(place) << to_string(place.error());
      auto only = files.extract({2, 4});
      kernel->unpreserve(only.mapped().place);
      const auto other = kernel->preserve(1, only.mapped().fd.raw(), When::Now);
      ASSERT_TRUE(other) << to_string(other.error());
      if (commit) {
        tx.commit();
        files[{3, 2}] = {*place, std::move(from.mapped().fd)};
        files[{1, 4}] = {*other, std::move(only.mapped().fd)};
      } else {
        tx.abort();
        files.insert(std::move(from));
        files.insert(std::move(only));
      }
    }
    kernel->settle();
    expect_agreement();
    for (auto& [key, file] : files) EXPECT_TRUE(kernel->holds(file.place));
  }
}

/// Linux 7.3 does not survive a kexec after a create that met EEXIST, unless another create follows (D1).
TEST_F(KernelMedium, ANameThatIsTakenIsFollowedByAnother) {
  std::string calls;
  device.fails = [&](const char* call) {
    calls += fmt::format("{} ", call);
    return calls == "create " ? EEXIST : 0;
  };
  EXPECT_EQ(preserve(1, 1).code, 0);
  EXPECT_EQ(calls, "create create preserve ");
  device.fails = [](const char*) { return 0; };
  expect_agreement();

  Fd others = device.create_session(Kernel::kOwnName).value();
  const Fd image = memfd();
  calls.clear();
  device.fails = [&](const char* call) {
    calls += fmt::format("{} ", call);
    return 0;
  };
  const auto refused = kernel->offer_image(image);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EEXIST);
  EXPECT_NE(to_string(refused.error()).find("somebody else"), std::string::npos);
  EXPECT_EQ(calls, "create create ");
  EXPECT_EQ(device.session_count(), 2U) << "what was made after it is gone again";
  EXPECT_FALSE(device.has(image.raw()));
  device.fails = [](const char*) { return 0; };
  device.duplicate_create = false;
  others.close();
  EXPECT_TRUE(kernel->offer_image(image));
  EXPECT_TRUE(device.has(image.raw()));
  EXPECT_TRUE(kernel->offer_image(image)) << "again: the one before is withdrawn";
  EXPECT_FALSE(device.duplicate_create);
  kernel->withdraw_image();
  EXPECT_FALSE(device.has(image.raw()));
  expect_agreement();
}

/// What was tried in a part is asked of the kernel after a kill, one by one.
TEST_F(KernelMedium, APartInWhichMuchWasTriedIsFollowedByAnother) {
  ASSERT_EQ(preserve(1, 2).code, 0);
  device.fails = [](const char* call) { return std::string_view{call} == "preserve" ? EFBIG : 0; };
  for (std::uint64_t i = 0; i < kTokensPerPart; ++i) {
    kho::Tx tx{*arena};
    ASSERT_EQ(kernel->preserve(1, files.begin()->second.fd.raw(), When::Now).error().code, EFBIG);
    tx.commit();
    kernel->settle();
  }
  device.fails = [](const char*) { return 0; };
  ASSERT_EQ(preserve(1, 1).code, 0);
  EXPECT_EQ(device.session_count(), 2U);
  expect_agreement();
  for (const auto& [key, file] : files) EXPECT_TRUE(kernel->holds(file.place)) << "no token is of another part";
  start();
  kernel->recover();
  expect_agreement();
  give_up(1, 1);
  expect_agreement();
}

}  // namespace
}  // namespace luo::medium
