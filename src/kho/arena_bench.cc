// What the arena costs: ./bench_arena --benchmark_filter=...
#include <benchmark/benchmark.h>
#include <fcntl.h>

#include <random>
#include <vector>

#include "kho/arena.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"bench", 1};

Arena make_arena(Bytes size, Pages pages = Pages::Normal) {
  return Arena::create({.name = "bench", .layout = kLayout, .max_size = size, .pages = pages}).value();
}

void set_8_bytes(benchmark::State& state) {
  Arena arena = make_arena(16_MiB);
  std::uint64_t* words = nullptr;
  {
    Tx tx{arena};
    words = arena.get(Ref<std::uint64_t>{tx.allocate(4096).value().raw()});
    tx.commit();
  }
  std::uint64_t n = 0;
  for (auto _ : state) {
    Tx tx{arena};
    for (unsigned i = 0; i < 1000; ++i) tx.set(words[i % 512], n++);
    tx.commit();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * 1000);
}
BENCHMARK(set_8_bytes);

void transaction_of_6_sets(benchmark::State& state) {
  Arena arena = make_arena(16_MiB);
  std::uint64_t* words = nullptr;
  {
    Tx tx{arena};
    words = arena.get(Ref<std::uint64_t>{tx.allocate(4096).value().raw()});
    tx.commit();
  }
  std::uint64_t n = 0;
  for (auto _ : state) {
    Tx tx{arena};
    for (unsigned i = 0; i < 6; ++i) tx.set(words[i * 64], n++);
    tx.commit();
  }
}
BENCHMARK(transaction_of_6_sets);

void allocate_and_release(benchmark::State& state) {
  Arena arena = make_arena(64_MiB);
  const auto bytes = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    Tx tx{arena};
    tx.release(tx.allocate(bytes).value());
    tx.commit();
  }
}
BENCHMARK(allocate_and_release)->Arg(64)->Arg(1000)->Arg(20000)->Arg(65536)->Arg(300000);

/// As a cache does it: a block in, another out, all over a heap of 1.5 million blocks.
void replace_one_of_many(benchmark::State& state) {
  Arena arena = make_arena(1_GiB);
  std::mt19937_64 random{1};
  std::vector<PhysAddr> blocks;
  while (blocks.size() < 1'500'000) {
    Tx tx{arena};
    for (unsigned i = 0; i < 1000; ++i) blocks.push_back(tx.allocate(16 + random() % 400).value());
    tx.commit();
  }
  for (auto _ : state) {
    PhysAddr& block = blocks[random() % blocks.size()];
    Tx tx{arena};
    tx.release(block);
    block = tx.allocate(16 + random() % 400).value();
    tx.commit();
  }
}
BENCHMARK(replace_one_of_many);

void open_a_heap(benchmark::State& state) {
  Arena arena = make_arena(4_GiB);
  const auto bytes = static_cast<std::uint64_t>(state.range(0)) << 20;
  for (std::uint64_t used = 0; used < bytes;) {  // half small blocks, half large ones
    Tx tx{arena};
    for (unsigned i = 0; i < 40; ++i) used += arena.usable_size(tx.allocate(i % 20 == 0 ? 300000 : 20000).value());
    tx.commit();
  }
  Fd fd = arena.release();
  for (auto _ : state) {
    Fd again = Fd::adopt(::fcntl(fd.raw(), F_DUPFD_CLOEXEC, 0));
    auto opened = Arena::open(std::move(again), kLayout);
    if (!opened) state.SkipWithError(to_string(opened.error()).c_str());
  }
}
BENCHMARK(open_a_heap)->Arg(128)->Arg(1024)->Arg(2048)->Unit(benchmark::kMicrosecond);

// Side by side: pages of 4 KiB (0), huge ones (1) and those of the pool (2), of the second argument in MiB.

Pages pages_of(const benchmark::State& state) { return Pages{static_cast<std::uint32_t>(state.range(0))}; }
std::uint64_t bytes_of(const benchmark::State& state) { return static_cast<std::uint64_t>(state.range(1)) << 20; }

/// Whether the pool has enough for what follows.
bool has_pages(benchmark::State& state) {
  if (pages_of(state) != Pages::Hugetlb) return true;
  auto arena = Arena::create({.name = "probe", .layout = kLayout, .max_size = 4_GiB, .pages = Pages::Hugetlb});
  if (arena && Tx{*arena}.allocate(bytes_of(state) + bytes_of(state) / 8)) return true;
  state.SkipWithError("too few huge pages: echo 800 >/proc/sys/vm/nr_overcommit_hugepages");
  return false;
}

std::vector<std::uint64_t*> fill(Arena& arena, std::uint64_t bytes) {
  constexpr std::size_t kBlock = 16000;
  std::vector<std::uint64_t*> blocks;
  for (std::uint64_t used = 0; used < bytes;) {
    Tx tx{arena};
    for (unsigned i = 0; i < 1000; ++i, used += kBlock) {
      blocks.push_back(arena.get(Ref<std::uint64_t>{tx.allocate(kBlock).value().raw()}));
      std::memset(blocks.back(), 1, kBlock);
    }
    tx.commit();
  }
  return blocks;
}

void pages_fill(benchmark::State& state) {
  if (!has_pages(state)) return;
  for (auto _ : state) {
    Arena arena = make_arena(4_GiB, pages_of(state));
    fill(arena, bytes_of(state));
  }
}
BENCHMARK(pages_fill)->ArgsProduct({{0, 1, 2}, {128, 1024}})->Unit(benchmark::kMillisecond);

void pages_random_reads(benchmark::State& state) {
  if (!has_pages(state)) return;
  Arena arena = make_arena(4_GiB, pages_of(state));
  const auto blocks = fill(arena, bytes_of(state));
  std::uint64_t n = 1;
  for (auto _ : state) {
    n = n * 6364136223846793005 + 1442695040888963407;
    // Each address depends on what was read before: what is measured is latency.
    n += blocks[(n >> 33) % blocks.size()][(n >> 20) % 2000];
  }
  benchmark::DoNotOptimize(n);
}
BENCHMARK(pages_random_reads)->ArgsProduct({{0, 1, 2}, {128, 1024}});

/// Opened, and then each page touched: what a successor pays in its first moments.
void pages_open_and_touch(benchmark::State& state) {
  if (!has_pages(state)) return;
  Arena arena = make_arena(4_GiB, pages_of(state));
  std::vector<std::uint64_t> offsets;
  for (const auto* block : fill(arena, bytes_of(state))) offsets.push_back(arena.ref_of(block).at);
  Fd fd = arena.release();
  std::uint64_t sum = 0;
  for (auto _ : state) {
    Arena next = Arena::open(Fd::adopt(::fcntl(fd.raw(), F_DUPFD_CLOEXEC, 0)), kLayout).value();
    for (const std::uint64_t at : offsets)
      for (std::uint64_t i = 0; i < 16000; i += 4096) sum += *next.get(Ref<std::uint64_t>{at + i});
  }
  benchmark::DoNotOptimize(sum);
}
BENCHMARK(pages_open_and_touch)->ArgsProduct({{0, 1, 2}, {128, 1024}})->Unit(benchmark::kMicrosecond);

/// The same while the predecessor still works: not part of the pause.
void pages_warm(benchmark::State& state) {
  if (!has_pages(state)) return;
  Arena arena = make_arena(4_GiB, pages_of(state));
  fill(arena, bytes_of(state));
  for (auto _ : state) benchmark::DoNotOptimize(Arena::warm(arena.fd(), kLayout).has_value());
}
BENCHMARK(pages_warm)->ArgsProduct({{0, 1, 2}, {128, 1024}})->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace luo::kho

BENCHMARK_MAIN();
