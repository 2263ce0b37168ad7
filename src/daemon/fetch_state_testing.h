// What the tests of fetch_state() share.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <span>

#include "base/text.h"
#include "daemon/fetch_state.h"
#include "kho/image.h"
#include "luo/engine.h"

namespace luo::daemon {

using kho::Arena;
using kho::Ref;

class FetchState : public testing::Test {
 protected:
  FetchState() : FetchState{64_MiB} {}
  explicit FetchState(Bytes size) {
    char path[] = "/tmp/fetch-state-XXXXXX";
    EXPECT_NE(mkdtemp(path), nullptr);
    dir = path;
    Arena arena = make_arena(size, "the old one", size < 64_MiB ? 2 : 40);
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
  void write_saved(std::span<const std::byte> bytes) const {
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

}  // namespace luo::daemon
