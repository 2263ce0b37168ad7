// What came from the kernel before takes the place of the arena: as far as that goes without a kernel, by a saved
// image.
#include "daemon/fetch_state.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/text.h"
#include "kho/image.h"
#include "luo/engine.h"

namespace luo::daemon {
namespace {

using kho::Arena;
using kho::Ref;

class FetchState : public testing::Test {
 protected:
  FetchState() {
    char path[] = "/tmp/fetch-state-XXXXXX";
    EXPECT_NE(mkdtemp(path), nullptr);
    dir = path;
    Arena arena = make_arena(64_MiB, "the old one", 40);
    control = reinterpret_cast<Control*>(page);
    std::ranges::fill(arena.control(), std::byte{0x5a});
    file = arena.release();
    control->arena_fd = file.raw();
    control->device_fd = -1;
    control->own_fd = -1;
    put(control->state_dir, dir);
    control->arrival.store(static_cast<std::uint32_t>(Arrival::ToLook));
  }
  ~FetchState() override { std::filesystem::remove_all(dir); }

  template <std::size_t N>
  static void put(char (&field)[N], const std::string& text) {
    ASSERT_LT(text.size(), N);
    text.copy(field, N - 1);
  }
  /// With `blocks` blocks beside the one that says what it is.
  static Arena make_arena(Bytes size, std::string_view text, int blocks, kho::Layout layout = Engine::kLayout) {
    Arena arena = Arena::create({.name = "fetch-state", .layout = layout, .max_size = size}).value();
    kho::Tx tx{arena};
    const PhysAddr at = tx.allocate(64).value();
    std::memset(arena.get(Ref<char>{at.raw()}), 0, 64);
    text.copy(arena.get(Ref<char>{at.raw()}), 63);
    tx.set_root(0, at);
    for (int i = 0; i < blocks; ++i) {
      const PhysAddr block = tx.allocate(100'000).value();
      std::memset(arena.get(Ref<char>{block.raw()}), i + 1, 100'000);
      tx.set_root(1, block);
    }
    tx.commit();
    return arena;
  }
  std::string saved() const {
    std::string id;
    std::ifstream{"/proc/sys/kernel/random/boot_id"} >> id;
    return dir + "/arrived-" + id + ".image";
  }
  std::vector<std::byte> save(const Arena& arena) const {
    const Fd image = kho::seal(arena, "saved").value();
    std::vector<std::byte> bytes(static_cast<std::size_t>(lseek(image.raw(), 0, SEEK_END)));
    EXPECT_EQ(pread(image.raw(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    write_saved(bytes);
    return bytes;
  }
  void write_saved(const std::vector<std::byte>& bytes) const {
    std::ofstream{saved(), std::ios::binary}.write(reinterpret_cast<const char*>(bytes.data()),
                                                   static_cast<std::streamsize>(bytes.size()));
  }
  Arrival arrival() const { return static_cast<Arrival>(control->arrival.load()); }
  /// What the next worker finds in the arena's file.
  void expect_arena(std::string_view text, int blocks, Bytes size) {
    auto opened = Arena::open(Fd::adopt(fcntl(file.raw(), F_DUPFD_CLOEXEC, 0)), Engine::kLayout);
    ASSERT_TRUE(opened) << to_string(opened.error());
    EXPECT_STREQ(opened->get(Ref<char>{opened->root(0).raw()}), std::string{text}.c_str());
    EXPECT_EQ(opened->stats().blocks, static_cast<std::uint64_t>(blocks) + 1);
    EXPECT_EQ(opened->stats().max_bytes, size.raw());
    if (blocks != 0) {
      EXPECT_EQ(opened->get(Ref<char>{opened->root(1).raw()})[99'999], static_cast<char>(blocks));
    }
    const auto sound = opened->check();
    EXPECT_TRUE(sound) << to_string(sound.error());
    for (const std::byte b : opened->control()) ASSERT_EQ(b, std::byte{0x5a}) << "the control page is this luod's";
    // It works.
    kho::Tx tx{*opened};
    ASSERT_TRUE(tx.allocate(200'000));
    tx.abort();
  }
  std::uint64_t memory() const {
    struct stat st {};
    EXPECT_EQ(fstat(file.raw(), &st), 0);
    return static_cast<std::uint64_t>(st.st_blocks) * 512;
  }

  std::string dir;
  alignas(Control) std::byte page[Arena::kControlBytes]{};
  Control* control = nullptr;
  Fd file;
};

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
    write_saved({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)});
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
