// PageTracker beside CRoaring's bitmap of 64-bit numbers (in the process's memory, without transactions):
//   ./bench_pages --benchmark_min_time=0.2
#include <benchmark/benchmark.h>
#if defined(LUO_HAVE_ROARING)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <roaring/roaring64map.hh>
#pragma GCC diagnostic pop
#endif

#include <random>
#include <vector>

#include "kho/pages.h"

namespace luo::kho {
namespace {

constexpr std::uint64_t kTebibyte = std::uint64_t{1} << 28;  // in pages
constexpr std::uint64_t kGibibyte = std::uint64_t{1} << 18;
constexpr unsigned kBatch = 100;  // changes in one transaction

std::vector<std::uint64_t> random_pages(std::uint64_t space, unsigned n) {
  std::mt19937_64 random{42};
  std::vector<std::uint64_t> pages(n);
  for (auto& page : pages) page = random() % space;
  return pages;
}

class Ours {
 public:
  Ours() : arena_{Arena::create({.name = "bench", .layout = {"bench", 1}, .max_size = 1_GiB}).value()} {
    Tx tx{arena_};
    const auto record = PageTracker::create(tx, arena_).value();
    tx.commit();
    empty_ = arena_.stats().used_bytes;
    pages_.emplace(PageTracker::open(arena_, record).value());
  }
  void add(std::uint64_t first, std::uint64_t count) { change(first, count, true); }
  void remove(std::uint64_t first, std::uint64_t count) { change(first, count, false); }
  void settle() {
    tx_.reset();
    for (bool done = false; !done;) {
      Tx tx{arena_};
      done = pages_->tidy(tx).value();
      tx.commit();
    }
  }
  bool has(std::uint64_t page) const { return pages_->is_preserved(page); }
  template <class Visit>
  void ranges(Visit visit) const {
    pages_->for_each_range(visit);
  }
  std::uint64_t bytes() const { return arena_.stats().used_bytes - empty_; }

 private:
  void change(std::uint64_t first, std::uint64_t count, bool set) {
    if (!tx_) tx_.emplace(arena_);
    if (!(set ? pages_->preserve(*tx_, first, count) : pages_->unpreserve(*tx_, first, count))) std::abort();
    if (++in_transaction_ % kBatch == 0) {
      tx_->commit();
      tx_.reset();
    }
  }
  Arena arena_;
  std::optional<PageTracker> pages_;
  std::optional<Tx> tx_;
  unsigned in_transaction_ = 0;
  std::uint64_t empty_ = 0;
};

#if defined(LUO_HAVE_ROARING)
class CRoaring {
 public:
  void add(std::uint64_t first, std::uint64_t count) {
    if (count == 1) set_.add(first);
    else range(first, count, true);
  }
  void remove(std::uint64_t first, std::uint64_t count) {
    if (count == 1) set_.remove(first);
    else range(first, count, false);
  }
  void settle() {
    set_.runOptimize();
    set_.shrinkToFit();
  }
  bool has(std::uint64_t page) const { return set_.contains(page); }
  template <class Visit>
  void ranges(Visit visit) const {
    std::uint64_t first = 0, count = 0;
    for (const std::uint64_t page : set_) {
      if (count != 0 && page == first + count) {
        ++count;
        continue;
      }
      if (count != 0) visit(first, count);
      first = page;
      count = 1;
    }
    if (count != 0) visit(first, count);
  }
  std::uint64_t bytes() const { return set_.getSizeInBytes(); }  // written out: no less in memory

 private:
  // This version has no ranges of 64-bit numbers: a set of the range is made, and joined or taken out.
  void range(std::uint64_t first, std::uint64_t count, bool set) {
    Roaring64Map other;
    constexpr std::uint64_t kLow = 0xffffffff;
    while (count != 0) {
      const std::uint64_t here = std::min(count, (kLow + 1) - (first & kLow));
      Roaring low;
      low.addRange(first & kLow, (first & kLow) + here);
      if (first >> 32 != 0) {
        for (std::uint64_t page = first; page < first + here; ++page) other.add(page);
      } else {
        other |= Roaring64Map{low};
      }
      first += here;
      count -= here;
    }
    if (set) set_ |= other;
    else set_ -= other;
  }
  Roaring64Map set_;
};
#endif

template <class Set>
void add_random_pages(benchmark::State& state) {
  const auto pages = random_pages(static_cast<std::uint64_t>(state.range(0)), 200'000);
  for (auto _ : state) {
    state.PauseTiming();
    auto set = std::make_unique<Set>();
    state.ResumeTiming();
    for (const std::uint64_t page : pages) set->add(page, 1);
    state.PauseTiming();
    set->settle();
    std::uint64_t count = 0;
    set->ranges([&](std::uint64_t, std::uint64_t n) { count += n; });
    state.counters["bytes_per_page"] = static_cast<double>(set->bytes()) / static_cast<double>(count);
    set.reset();
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(pages.size()));
}

template <class Set>
void add_and_remove_ranges(benchmark::State& state) {
  const auto count = static_cast<std::uint64_t>(state.range(0));
  const auto pages = random_pages(kTebibyte, 1000);
  Set set;
  for (auto _ : state) {
    for (const std::uint64_t page : pages) set.add(page, count);
    for (const std::uint64_t page : pages) set.remove(page, count);
  }
  state.SetItemsProcessed(state.iterations() * 2000);
}

template <class Set>
void memory_of_ranges(benchmark::State& state) {
  const auto count = static_cast<std::uint64_t>(state.range(0));
  Set set;
  for (const std::uint64_t page : random_pages(kTebibyte, 10'000)) set.add(page, count);
  set.settle();
  std::uint64_t pages = 0, runs = 0;
  for (auto _ : state) {
    pages = runs = 0;
    set.ranges([&](std::uint64_t, std::uint64_t n) {
      pages += n;
      ++runs;
    });
  }
  state.counters["bits_per_page"] = 8 * static_cast<double>(set.bytes()) / static_cast<double>(pages);
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(runs));
}

template <class Set>
void look_up(benchmark::State& state) {
  Set set;
  const auto pages = random_pages(static_cast<std::uint64_t>(state.range(0)), 200'000);
  for (const std::uint64_t page : pages) set.add(page, 1);
  set.settle();
  std::size_t n = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(set.has(pages[n] + (n & 1)));
    n = n + 1 == pages.size() ? 0 : n + 1;
  }
  state.SetItemsProcessed(state.iterations());
}

template <class Set>
void iterate_random_pages(benchmark::State& state) {
  Set set;
  const auto pages = random_pages(static_cast<std::uint64_t>(state.range(0)), 200'000);
  for (const std::uint64_t page : pages) set.add(page, 1);
  set.settle();
  std::uint64_t runs = 0;
  for (auto _ : state) {
    runs = 0;
    set.ranges([&](std::uint64_t, std::uint64_t) { ++runs; });
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(runs));
}

#define LUO_BENCH_SET(set)                                                                               \
  BENCHMARK(add_random_pages<set>)->Arg(kTebibyte)->Arg(kGibibyte)->Unit(benchmark::kMillisecond);       \
  BENCHMARK(add_and_remove_ranges<set>)->Arg(16)->Arg(512)->Arg(100'000)->Unit(benchmark::kMillisecond); \
  BENCHMARK(memory_of_ranges<set>)->Arg(16)->Arg(512)->Arg(100'000)->Unit(benchmark::kMillisecond);      \
  BENCHMARK(look_up<set>)->Arg(kTebibyte)->Arg(kGibibyte);                                               \
  BENCHMARK(iterate_random_pages<set>)->Arg(kTebibyte)->Arg(kGibibyte)->Unit(benchmark::kMillisecond);
LUO_BENCH_SET(Ours)
#if defined(LUO_HAVE_ROARING)
LUO_BENCH_SET(CRoaring)
#endif

}  // namespace
}  // namespace luo::kho

BENCHMARK_MAIN();
