// An arena whose content can be told as text, for tests that kill what works on it.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "kho/arena.h"

namespace luo::kho {

inline constexpr Layout kLayout{"crash", 1};
inline constexpr std::size_t kSlots = 24;

struct Item {
  std::uint64_t at, bytes;
};
/// What root 0 leads to: every block there is, besides this one.
struct Directory {
  Item items[kSlots];
  std::uint64_t number;
};

class Stage {
 public:
  void make(Bytes size, Pages pages = Pages::Normal) {
    arena_.reset();  // first: huge pages may be few
    arena_.emplace(Arena::create({.name = "crash", .layout = kLayout, .max_size = size, .pages = pages}).value());
    Tx tx{*arena_};
    const auto directory = tx.make<Directory>().value();
    tx.set_root(0, directory.addr());
    tx.commit();
  }
  Arena& arena() { return *arena_; }
  Directory& directory() { return *arena_->get(Ref<Directory>{arena_->root(0).raw()}); }
  Result<Fd> memfd() {
    Fd fd = Fd::adopt(::fcntl(arena_->fd().raw, F_DUPFD_CLOEXEC, 0));
    if (!fd.valid()) return sys_fail("fcntl(F_DUPFD_CLOEXEC)");
    return fd;
  }

  void add(Tx& tx, std::size_t slot, std::size_t bytes) {
    const PhysAddr at = tx.allocate(bytes).value();
    // Not all of a large block: the harness compares every page that was written.
    std::memset(arena_->get(Ref<std::byte>{at.raw()}), static_cast<int>(slot + 1), std::min<std::size_t>(bytes, 600));
    tx.set(directory().items[slot], Item{at.raw(), bytes});
  }
  void drop(Tx& tx, std::size_t slot) {
    tx.release(PhysAddr{directory().items[slot].at});
    tx.set(directory().items[slot], Item{});
  }
  void add(std::size_t slot, std::size_t bytes) {
    Tx tx{*arena_};
    add(tx, slot, bytes);
    tx.commit();
  }
  void drop(std::size_t slot) {
    Tx tx{*arena_};
    drop(tx, slot);
    tx.commit();
  }

 private:
  std::optional<Arena> arena_;
};

/// What a child leaves that ends inside a transaction.
inline void die_inside(Stage& stage) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    Tx tx{stage.arena()};
    stage.drop(tx, 0);
    stage.add(tx, 2, 300);
    stage.add(tx, 3, 300000);
    tx.set_root(1, stage.arena().root(0));
    tx.set(stage.directory().number, 5);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  ASSERT_EQ(status, 0);
  ASSERT_TRUE(Arena::inspect(stage.arena().fd())->open_transaction);
}

/// Takes over, checks everything, describes it, and shows that it can be worked with.
inline Result<std::string> recover(Fd memfd) {
  Arena arena = LUO_TRY(Arena::open(std::move(memfd), kLayout));
  LUO_TRY(arena.check());
  const Directory* directory = arena.checked(Ref<Directory>{arena.root(0).raw()});
  if (directory == nullptr) return fail(EBADMSG, "root 0 leads nowhere");
  std::string text = fmt::format("number {}, root 1 {:#x},", directory->number, arena.root(1).raw());
  std::uint64_t blocks = 1;
  for (std::size_t slot = 0; slot < kSlots; ++slot) {
    const Item item = directory->items[slot];
    if (item.at == 0) continue;
    ++blocks;
    const auto* bytes = arena.checked(Ref<unsigned char>{item.at}, item.bytes);
    if (bytes == nullptr) return fail(EBADMSG, "item {} is not in a block", slot);
    for (std::size_t i = 0; i < std::min<std::size_t>(item.bytes, 600); ++i)
      if (bytes[i] != slot + 1) return fail(EBADMSG, "item {}: byte {} is {}", slot, i, bytes[i]);
    text += fmt::format(" {}: {} bytes", slot, item.bytes);
  }
  const ArenaStats stats = arena.stats();
  if (stats.blocks != blocks) return fail(EBADMSG, "{} blocks, {} can be reached", stats.blocks, blocks);
  text += fmt::format(", {} bytes in blocks", stats.used_bytes);

  Tx tx{arena};
  for (const std::size_t bytes : {std::size_t{16}, std::size_t{400}, std::size_t{70000}}) {
    const auto at = tx.allocate(bytes);
    if (at) tx.release(*at);
  }
  tx.commit();
  LUO_TRY(arena.check());
  return text;
}

}  // namespace luo::kho
