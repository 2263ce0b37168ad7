// What came from the kernel before takes the place of the arena: as far as that goes without a kernel, by a saved
// image.
#include "daemon/fetch_state_testing.h"

namespace luo::daemon {
namespace {

TEST_F(FetchState, WhatAnEarlierLuodSavedIsTaken) {
  save(make_arena(64_MiB, "what came", 7));
  const auto fetched = fetch_state(*control);
  ASSERT_TRUE(fetched) << to_string(fetched.error());
  EXPECT_EQ(arrival(), Arrival::Populated);
  expect_arena("what came", 7, 64_MiB);
  EXPECT_TRUE(fetch_state(*control)) << "a worker that was killed begins again";
  expect_arena("what came", 7, 64_MiB);
  forget_saved_state(*control);
  EXPECT_FALSE(std::filesystem::exists(saved()));
  forget_saved_state(*control);
}

TEST_F(FetchState, NothingOfTheOneBeforeIsLeft) {
  const std::uint64_t before = memory();
  for (const int blocks : {200, 0, 3}) {
    save(make_arena(64_MiB, fmt::format("with {}", blocks), blocks));
    const auto fetched = fetch_state(*control);
    ASSERT_TRUE(fetched) << to_string(fetched.error());
    expect_arena(fmt::format("with {}", blocks), blocks, 64_MiB);
  }
  EXPECT_LT(memory(), before) << "of 40 blocks and 200";
}

TEST_F(FetchState, AnArenaOfAnotherSizeIsRefused) {
  for (const Bytes size : {256_MiB, 8_MiB}) {
    save(make_arena(size, "of another size", 1));
    const auto refused = fetch_state(*control);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, EPROTO) << to_string(refused.error());
    EXPECT_EQ(arrival(), Arrival::ToLook);
    expect_arena("the old one", 40, 64_MiB);
  }
}

TEST_F(FetchState, ADamagedImageLeavesTheArenaAsItIs) {
  const std::vector<std::byte> good = save(make_arena(64_MiB, "what came", 7));
  const std::uint64_t before = memory();
  for (const std::size_t at : {std::size_t{0}, std::size_t{40}, std::size_t{700}, good.size() / 2, good.size() - 1}) {
    std::vector<std::byte> bytes = good;
    bytes[at] ^= std::byte{0x10};
    write_saved(bytes);
    const auto refused = fetch_state(*control);
    ASSERT_FALSE(refused) << at;
    EXPECT_TRUE(refused.error().code == EBADMSG || refused.error().code == EPROTO) << at << to_string(refused.error());
    EXPECT_NE(to_string(refused.error()).find(saved()), std::string::npos) << "names the file";
  }
  for (const std::size_t size : {good.size() - 1, good.size() / 2, std::size_t{100}, std::size_t{0}}) {
    write_saved(std::span{good}.first(size));
    EXPECT_EQ(fetch_state(*control).error().code, EBADMSG) << size;
  }
  EXPECT_EQ(arrival(), Arrival::ToLook);
  EXPECT_EQ(memory(), before);
  EXPECT_TRUE(std::filesystem::exists(saved())) << "for a luod that can read it";
  expect_arena("the old one", 40, 64_MiB);
  write_saved(good);
  EXPECT_TRUE(fetch_state(*control));
  expect_arena("what came", 7, 64_MiB);
}

TEST_F(FetchState, AnImageOfSomethingElseIsRefused) {
  save(make_arena(64_MiB, "another program's", 1, {"other", 1}));
  EXPECT_EQ(fetch_state(*control).error().code, EPROTO);
  save(make_arena(64_MiB, "a later luod's", 1, {"luod", 99}));
  const auto refused = fetch_state(*control);
  EXPECT_EQ(refused.error().code, EPROTO);
  EXPECT_NE(to_string(refused.error()).find("99"), std::string::npos);
  expect_arena("the old one", 40, 64_MiB);
}

TEST_F(FetchState, OfAnotherBootOrThroughALinkItIsNotTaken) {
  save(make_arena(64_MiB, "what came", 7));
  std::filesystem::rename(saved(), dir + "/arrived-00000000-0000-0000-0000-000000000000.image");
  EXPECT_EQ(fetch_state(*control).error().code, EBADF) << "then the kernel is asked, through no device";
  std::filesystem::rename(dir + "/arrived-00000000-0000-0000-0000-000000000000.image", dir + "/elsewhere");
  std::filesystem::create_symlink(dir + "/elsewhere", saved());
  EXPECT_EQ(fetch_state(*control).error().code, EBADF);
  EXPECT_EQ(arrival(), Arrival::ToLook);
  expect_arena("the old one", 40, 64_MiB);
}

}  // namespace
}  // namespace luo::daemon
