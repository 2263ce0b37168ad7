// What the arena costs: ./bench_arena --benchmark_filter=...
#include <benchmark/benchmark.h>
#include <fcntl.h>

#include <random>
#include <vector>

#include "kho/arena.h"

namespace luo::kho {
namespace {

constexpr Layout kLayout{"bench", 1};

Arena make_arena(Bytes size) { return Arena::create({.name = "bench", .layout = kLayout, .max_size = size}).value(); }

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

}  // namespace
}  // namespace luo::kho

BENCHMARK_MAIN();
