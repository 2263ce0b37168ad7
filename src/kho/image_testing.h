// What the tests of images share.
#pragma once
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <vector>

#include "kho/image.h"

namespace luo::kho {

inline std::vector<std::byte> content_of(FdRef file) {
  struct stat st {};
  EXPECT_EQ(::fstat(file.raw, &st), 0);
  std::vector<std::byte> bytes(static_cast<std::size_t>(st.st_size));
  EXPECT_EQ(::pread(file.raw, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

/// A file with that content that can still be changed.
inline Fd file_of(const std::vector<std::byte>& bytes) {
  Fd fd = Fd::adopt(::memfd_create("image", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(fd.raw(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return fd;
}

/// Blocks of several classes and sizes, some of them freed again; the first block names the others.
struct Directory {
  static constexpr std::size_t kItems = 14;
  Ref<std::byte> items[kItems];
  std::uint64_t bytes[kItems];
};

inline void fill_arena(Arena& arena, std::size_t largest = 9000000) {
  const std::size_t sizes[Directory::kItems] = {16,      16, 100,  3000,  30000, 30000, 65536,
                                                largest, 16, 9000, 70000, 500,   4096,  16};
  Tx tx{arena};
  const auto directory = tx.make<Directory>().value();
  tx.set_root(0, directory.addr());
  for (std::size_t i = 0; i < Directory::kItems; ++i) {
    const Ref<std::byte> block{tx.allocate(sizes[i]).value().raw()};
    for (std::size_t at = 0; at < sizes[i]; ++at) arena.get(block)[at] = static_cast<std::byte>(at * 7 + i + 1);
    arena.get(directory)->items[i] = block;
    arena.get(directory)->bytes[i] = sizes[i];
  }
  tx.set_root(3, arena.get(directory)->items[10].addr());
  tx.commit();
  Tx again{arena};
  for (const std::size_t i : {1U, 5U, 6U, 7U, 9U}) {
    again.release(arena.get(directory)->items[i]);
    again.set(arena.get(directory)->items[i], Ref<std::byte>{});
  }
  again.commit();
}

inline void expect_filled(const Arena& arena) {
  const Directory* directory = arena.checked(Ref<Directory>{arena.root(0).raw()});
  ASSERT_NE(directory, nullptr);
  EXPECT_EQ(arena.root(3), directory->items[10].addr());
  for (std::size_t i = 0; i < Directory::kItems; ++i) {
    if (!directory->items[i]) continue;
    const std::byte* block = arena.checked(directory->items[i], directory->bytes[i]);
    ASSERT_NE(block, nullptr) << i;
    for (std::size_t at = 0; at < directory->bytes[i]; ++at)
      ASSERT_EQ(block[at], static_cast<std::byte>(at * 7 + i + 1)) << i << " " << at;
  }
  const auto sound = arena.check();
  EXPECT_TRUE(sound) << (sound ? "" : to_string(sound.error()));
}

}  // namespace luo::kho
