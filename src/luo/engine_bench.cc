// What the engine costs: per operation at 1,500 and 15,000 files and at 900 and 9,000 sessions (each is to
// cost at most 1.3 times as much at the larger number), and how long opening takes (it is in luod's pause).
// Descriptors are dups of one memfd; a fake handler gives each an identity of its own, so that what is
// measured is the engine with two system calls per preserve (fcntl, fstat).
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <random>

#include "luo/engine.h"

namespace luo {
namespace {

class Numbered final : public Handler {
 public:
  std::string_view name() const noexcept override { return "numbered-v1"; }
  bool can_preserve(const FileInfo&) const noexcept override { return true; }
  Identity identity(const FileInfo& file) const noexcept override {
    if (per_open_file) return {file.st.st_dev, file.st.st_ino, true};
    return {1, static_cast<std::uint64_t>(file.fd), false};
  }
  Result<HandlerData> preserve(const FileInfo&, SessionId, Token) override { return HandlerData{}; }
  void unpreserve(const KeptFile&) noexcept override {}
  Result<> retrieve(const KeptFile&) override { return {}; }
  void finish(const KeptFile&, bool) noexcept override {}
  bool per_open_file = false;
};

struct Bench {
  Bench()
      : arena{*kho::Arena::create({.name = "engine-bench", .layout = Engine::kLayout, .max_size = 1_GiB})},
        one{Fd::adopt(memfd_create("bench", MFD_CLOEXEC))} {
    (void)registry.add(handler);
    engine.emplace(*Engine::open(arena, registry, nullptr));
  }
  ~Bench() {
    std::vector<int> fds;
    engine->append_fds(fds);
    for (const int fd : fds) ::close(fd);
  }
  int dup_one() const { return fcntl(one.raw(), F_DUPFD_CLOEXEC, 0); }

  /// Holders are named by numbers that are no pipes: nobody closes them here.
  SessionId create(std::uint64_t n) {
    char name[64] = {};
    fmt::format_to_n(name, 63, "session-{}", n);
    Change change{arena};
    const SessionId id = *engine->create_session(change, std::span<const char, 64>{name},
                                                 {dup_one(), -1, 1'000'000 + n, true, PeerId{1}}, {}, 0);
    change.commit();
    return id;
  }
  void preserve(SessionId id, std::uint64_t token, int fd) {
    Change change{arena};
    (void)engine->preserve(change, id, {Token{token}, fd, 0}).value();
    change.commit();
  }

  Numbered handler;
  HandlerRegistry registry;
  kho::Arena arena;
  Fd one;
  std::optional<Engine> engine;
};

/// One preserve and one unpreserve of another, so that the number of files stays.
void preserve_and_unpreserve(benchmark::State& state, bool per_open_file, std::uint64_t batch) {
  Bench b;
  b.handler.per_open_file = per_open_file;
  const auto files = static_cast<std::uint64_t>(state.range(0));
  const SessionId id = b.create(0);
  const auto fresh = [&] { return per_open_file ? eventfd(0, EFD_CLOEXEC) : b.dup_one(); };
  for (std::uint64_t token = 0; token < files; ++token) b.preserve(id, token, fresh());
  std::uint64_t next = files;
  std::uint64_t oldest = 0;
  std::vector<int> fds(batch);
  for (auto _ : state) {
    state.PauseTiming();
    for (int& fd : fds) fd = fresh();
    state.ResumeTiming();
    {
      Change change{b.arena};
      for (const int fd : fds) (void)b.engine->preserve(change, id, {Token{next++}, fd, 0}).value();
      change.commit();
    }
    {
      Change change{b.arena};
      for (std::uint64_t i = 0; i < batch; ++i) (void)b.engine->unpreserve(change, id, Token{oldest++}).has_value();
      change.commit();
    }
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * batch));
}
void PreserveUnpreserve(benchmark::State& state) { preserve_and_unpreserve(state, false, 253); }
BENCHMARK(PreserveUnpreserve)->Arg(1500)->Arg(15000);
void PreserveUnpreserveByKcmp(benchmark::State& state) { preserve_and_unpreserve(state, true, 253); }
BENCHMARK(PreserveUnpreserveByKcmp)->Arg(1500)->Arg(15000);

/// From empty to full: with all the growth of the tables.
void PreserveAll(benchmark::State& state) {
  const auto files = static_cast<std::uint64_t>(state.range(0));
  for (auto _ : state) {
    state.PauseTiming();
    {
      Bench b;
      const SessionId id = b.create(0);
      std::vector<int> fds(files);
      for (int& fd : fds) fd = b.dup_one();
      state.ResumeTiming();
      for (std::uint64_t done = 0; done < files;) {
        Change change{b.arena};
        for (int i = 0; i < 253 && done < files; ++i, ++done)
          (void)b.engine->preserve(change, id, {Token{done}, fds[done], 0}).value();
        change.commit();
      }
      state.PauseTiming();
    }
    state.ResumeTiming();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * files));
}
BENCHMARK(PreserveAll)->Arg(1500)->Arg(15000);

void Retrieve(benchmark::State& state) {
  Bench b;
  const auto files = static_cast<std::uint64_t>(state.range(0));
  const SessionId id = b.create(0);
  for (std::uint64_t token = 0; token < files; ++token) b.preserve(id, token, b.dup_one());
  (void)b.engine->freeze_all().has_value();
  {
    Change change{b.arena};
    (void)b.engine->cross(change).has_value();
    change.commit();
  }
  b.engine->sweep();
  {
    Change change{b.arena};
    const char name[64] = "session-0";
    (void)b.engine->retrieve_session(change, std::span<const char, 64>{name}, {b.dup_one(), -1, 7, true, PeerId{1}},
                                     {});
    change.commit();
  }
  std::mt19937_64 random{1};
  for (auto _ : state) {
    Change change{b.arena};
    benchmark::DoNotOptimize(b.engine->retrieve(change, id, Role::Owner, Token{random() % files}).value());
    change.commit();
  }
}
BENCHMARK(Retrieve)->Arg(1500)->Arg(15000);

/// One session made and one closed, so that their number stays.
void CreateAndClose(benchmark::State& state) {
  Bench b;
  const auto sessions = static_cast<std::uint64_t>(state.range(0));
  std::vector<SessionId> ids;
  for (std::uint64_t n = 0; n < sessions; ++n) ids.push_back(b.create(n));
  std::uint64_t n = sessions;
  for (auto _ : state) {
    ids.push_back(b.create(n));
    Change change{b.arena};
    b.engine->holder_closed(change, ids[n - sessions], Role::Owner);
    change.commit();
    ++n;
  }
}
BENCHMARK(CreateAndClose)->Arg(900)->Arg(9000);

/// What the next worker does. `files` are spread over the sessions; half are told apart by kcmp.
void Open(benchmark::State& state) {
  Bench b;
  const auto sessions = static_cast<std::uint64_t>(state.range(0));
  const auto files = static_cast<std::uint64_t>(state.range(1));
  std::vector<SessionId> ids;
  for (std::uint64_t n = 0; n < sessions; ++n) ids.push_back(b.create(n));
  for (std::uint64_t token = 0; token < files; ++token) {
    b.handler.per_open_file = token % 2 == 0;
    b.preserve(ids[token % sessions], token, b.handler.per_open_file ? eventfd(0, EFD_CLOEXEC) : b.dup_one());
  }
  b.engine.reset();
  for (auto _ : state) b.engine.emplace(*Engine::open(b.arena, b.registry, nullptr));
}
BENCHMARK(Open)->Args({1000, 10000})->Unit(benchmark::kMillisecond);

void FreezeAndUnfreezeAll(benchmark::State& state) {
  Bench b;
  for (std::uint64_t n = 0; n < 1000; ++n) {
    const SessionId id = b.create(n);
    for (std::uint64_t token = 0; token < 10; ++token) b.preserve(id, token, b.dup_one());
  }
  for (auto _ : state) {
    (void)b.engine->freeze_all().has_value();
    b.engine->unfreeze_all();
  }
}
BENCHMARK(FreezeAndUnfreezeAll)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace luo

BENCHMARK_MAIN();
