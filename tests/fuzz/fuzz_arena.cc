// An arena that somebody has written over: open() refuses it or it can be walked; if check() finds it sound,
// it can be worked with and is sound afterwards. The first byte chooses what was left: bit 0, an arena whose
// owner died inside a transaction.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "damage.h"
#include "kho/arena.h"
#include "kho/format.h"
#include "kho/snapshot.h"

namespace {

using namespace luo;
using namespace luo::kho;
using luo::fuzz::Damage;
using luo::fuzz::found;

constexpr Layout kLayout{"fuzz", 1};

struct Node {
  Ref<Node> next;
  std::uint64_t bytes;
};

/// Some blocks of every kind, some of them freed again, all of them in a list.
void fill(Arena& arena) {
  const std::size_t sizes[] = {16, 24, 100, 100, 100, 4000, 9000, 9000, 30000, 32768, 70000, 150000};
  Tx tx{arena};
  PhysAddr freed[3];
  for (PhysAddr& at : freed) at = *tx.allocate(5000);
  Ref<Node> list;
  for (const std::size_t bytes : sizes) {
    const Ref<Node> node{tx.allocate(bytes)->raw()};
    *arena.get(node) = {list, bytes};
    list = node;
  }
  tx.set_root(0, list.addr());
  tx.commit();
  Tx give_back{arena};
  for (const PhysAddr at : freed) give_back.release(at);
  give_back.commit();
}

class Image {
 public:
  explicit Image(bool dies_inside) {
    Arena arena = *Arena::create({.name = "fuzz-arena", .layout = kLayout, .max_size = 1_MiB});
    fill(arena);
    fd_ = Fd::adopt(fcntl(arena.fd().raw, F_DUPFD_CLOEXEC, 0));
    const Geometry g = geometry_of(std::uint64_t{1} << 20);
    auto* base = static_cast<std::byte*>(mmap(nullptr, g.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.raw(), 0));
    if (base == MAP_FAILED) std::abort();
    const auto section = [&](std::uint64_t at, std::uint64_t bytes) { return std::span{base + at, bytes}; };
    // Of the heap only what the list shows: the rest is nobody's, and large.
    std::vector<std::span<std::byte>> regions{section(offsetof(Header, state), sizeof(HeaderState)),
                                              section(g.table_at, g.chunks * sizeof(Chunk)),
                                              section(g.bitmap_at, g.chunks * kBitmapBytes),
                                              section(g.backed_at, 8),
                                              section(kLogAt, 64 << 10),
                                              section(0, sizeof(HeaderConstants)),
                                              section(g.heap_at, 4096)};
    if (dies_inside) {
      // The transaction stays open: this mapping shows the memory as a SIGKILL would leave it.
      auto* tx = new Tx{arena};
      const PhysAddr large = *tx->allocate(200000);
      tx->set_root(1, large);
      tx->release(arena.root(0));
      damage_.emplace(regions);
      delete tx;
      damage_->restore();
    } else {
      damage_.emplace(regions);
    }
  }

  Damage& damage() { return *damage_; }
  Fd open() const { return Fd::adopt(fcntl(fd_.raw(), F_DUPFD_CLOEXEC, 0)); }

 private:
  Fd fd_;
  std::optional<Damage> damage_;
};

void walk(const Arena& arena, std::span<const std::uint8_t> input) {
  (void)arena.stats();
  for (std::size_t i = 0; i + 8 <= input.size(); i += 8) {
    std::uint64_t at;
    std::memcpy(&at, input.data() + i, 8);
    for (const std::uint64_t address : {at, at & 0xffffff, arena.root(0).raw() + (at & 0xff)}) {
      (void)arena.is_allocated(PhysAddr{address}, at >> 56);
      const std::size_t bytes = arena.usable_size(PhysAddr{address});
      if (bytes != 0 && !arena.is_allocated(PhysAddr{address}, bytes)) found("a block that is not allocated");
    }
  }
  Ref<Node> node{arena.root(0).raw()};
  for (int steps = 0; node && steps < 100; ++steps) {
    const Node* at = arena.checked(node);
    if (at == nullptr) break;
    node = at->next;
  }
}

void work(Arena& arena) {
  {
    Tx tx{arena};
    for (unsigned slot = 0; slot < Arena::kRoots; ++slot)
      if (arena.usable_size(arena.root(slot)) != 0) {
        tx.release(arena.root(slot));
        for (unsigned other = slot; other < Arena::kRoots; ++other)  // two slots may name one block
          if (other != slot && arena.root(other) == arena.root(slot)) tx.set_root(other, PhysAddr{});
        tx.set_root(slot, PhysAddr{});
      }
    tx.commit();
  }
  for (const std::size_t bytes : {16U, 100U, 5000U, 9000U, 40000U, 300000U}) {
    Tx tx{arena};
    const auto block = tx.allocate(bytes);
    if (!block) continue;
    if (!arena.is_allocated(*block, bytes)) found("allocate() gave what is not allocated");
    std::memset(arena.get(Ref<char>{block->raw()}), 0x5a, bytes);
    tx.set_root(2, *block);
    if (bytes == 9000) continue;  // taken back
    tx.commit();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Image left{false}, killed{true};
  if (size == 0) return 0;
  Image& image = (data[0] & 1U) != 0 ? killed : left;
  const std::span<const std::uint8_t> input{data + 1, size - 1};
  image.damage().apply(input);
  {
    (void)Arena::inspect(image.open());
    if (const auto looked = Snapshot::read(image.open()))
      for (const std::uint64_t root : looked->state().roots) {
        std::vector<std::byte> block(looked->block_bytes(PhysAddr{root}));
        (void)looked->read(PhysAddr{root}, block);
      }
    auto arena = Arena::open(image.open(), kLayout);
    if (!arena && (arena.error().code == 0 || arena.error().what.empty())) found("an error without code or text");
    if (arena) {
      walk(*arena, input);
      if (arena->check()) {
        work(*arena);
        if (const auto sound = arena->check(); !sound) found(to_string(sound.error()).c_str());
      }
    }
  }
  image.damage().restore();
  return 0;
}
