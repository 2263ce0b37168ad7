// Seeded random runs of the kernel medium against a model: files come, move and go in steps that are committed,
// abandoned in whole or part, or cut short by a kill at any call into the kernel, which refuses at random.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

#include "medium/fake_kernel.h"
#include "medium/kernel.h"

namespace luo::medium {
namespace {

struct Killed {};

/// The worker is killed before or after a call. What it had not written down is then closed by the next one.
class DeadlyKernel final : public Device {
 private:
  template <class Call>
  auto deadly(Call call) {
    die();
    auto result = call();
    die();
    return result;
  }
  void die() {
    if (until_kill >= 0 && until_kill-- == 0) throw Killed{};
  }

 public:
  FakeKernel kernel;
  int until_kill = -1;  ///< half calls; -1: it lives
  Result<Fd> create_session(const std::string& name) override {
    return deadly([&] { return kernel.create_session(name); });
  }
  Result<Fd> retrieve_session(const std::string& name) override { return kernel.retrieve_session(name); }
  Result<> preserve(FdRef session, int fd, std::uint64_t token) override {
    // Whether a token is there is looked at before all that can fail.
    if (fd >= 0) return deadly([&] { return kernel.preserve(session, fd, token); });
    const auto fails = std::exchange(kernel.fails, [](const char*) { return 0; });
    auto result = kernel.preserve(session, fd, token);
    kernel.fails = fails;
    die();
    return result;
  }
  Result<Fd> retrieve(FdRef session, std::uint64_t token) override { return kernel.retrieve(session, token); }
  Result<> finish(FdRef session) override { return kernel.finish(session); }
  bool is_session(FdRef fd, const std::string& name) override { return kernel.is_session(fd, name); }
};

struct File {
  std::uint64_t group;
  int object;  ///< which of the world's files
  Place place;
};
using Files = std::map<std::uint64_t, File>;

class RandomRun {
 public:
  explicit RandomRun(std::uint64_t seed) : random_{seed} {
    for (int i = 0; i < 24; ++i) objects_.push_back(Fd::adopt(memfd_create("model", MFD_CLOEXEC)));
    device_.kernel.most_sessions = seed % 3 == 0 ? 3 : 1000;
    device_.kernel.most_files = seed % 3 == 1 ? 4 : 1000;
    start();
  }
  ~RandomRun() {
    std::vector<int> fds;
    kernel_->append_fds(fds);
    for (const int fd : fds) close(fd);
  }

  void step() {
    const bool refuses = chance(4);
    device_.kernel.fails = [this, refuses](const char* call) {
      constexpr int kErrors[] = {ENOMEM, ENOSPC, EBUSY, EIO, EEXIST};
      const bool create = std::string_view{call} == "create";  // of a preserve EEXIST says that it is there
      return refuses && chance(3) ? kErrors[below(create ? 5 : 4)] : 0;
    };
    const Files before = files_;
    device_.until_kill = chance(3) ? static_cast<int>(below(12)) : -1;
    bool committed = false;
    try {
      {
        kho::Tx tx{*arena_};
        const std::size_t count = 1 + below(5);
        for (std::size_t i = 0; i < count; ++i) {
          const kho::Tx::Mark mark = tx.mark();
          const Files then = files_;
          one_change();
          if (!chance(6)) continue;
          tx.back_to(mark);
          files_ = then;
        }
        if (chance(4)) {
          tx.abort();
          files_ = before;
        } else {
          tx.commit();
        }
        committed = true;
      }
      kernel_->settle();
      ASSERT_TRUE(kernel_->reserve());
    } catch (const Killed&) {
      // The transaction went with its scope, as the next worker's Arena::open() takes it back.
      if (!committed) files_ = before;
      restart();
    }
    device_.until_kill = -1;
    if (chance(10)) restart();
    expect_nothing_too_much();
    if (::testing::Test::HasFailure()) return;
    if (chance(8)) expect_all();
  }
  /// As before a kexec.
  void expect_all() {
    device_.kernel.fails = [](const char*) { return 0; };
    device_.kernel.most_sessions = device_.kernel.most_files = 1000;
    const auto whole = kernel_->complete();
    ASSERT_TRUE(whole) << to_string(whole.error());
    const Kernel::Counts counts = kernel_->counts();
    EXPECT_EQ(counts.lacking, 0U);
    EXPECT_EQ(counts.files, files_.size());
    EXPECT_EQ(counts.sessions, device_.kernel.session_count());
    for (const auto& [key, file] : files_) {
      EXPECT_TRUE(kernel_->holds(file.place)) << key;
      EXPECT_TRUE(in_kernel(file)) << key;
    }
    expect_nothing_too_much();
  }

 private:
  std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>{0, n - 1}(random_); }
  bool chance(std::size_t in) { return below(in) == 0; }
  bool in_kernel(const File& file) { return device_.kernel.has(objects_[static_cast<std::size_t>(file.object)].raw()); }

  void start() {
    kernel_.reset();
    kernel_ = std::make_unique<Kernel>(Kernel::open(*arena_, device_, [this](std::uint64_t group, const Visit& visit) {
                                         for (const auto& [key, file] : files_)
                                           if (group == kShared || file.group == group)
                                             visit(file.place, objects_[static_cast<std::size_t>(file.object)].raw());
                                       }).value());
    const auto sound = kernel_->check();
    ASSERT_TRUE(sound) << to_string(sound.error());
    ASSERT_TRUE(kernel_->reserve());
  }
  /// A worker that is killed while it recovers is followed by one that is not.
  void restart() {
    device_.until_kill = chance(2) ? static_cast<int>(below(30)) : -1;
    for (bool again = true; again;) {
      again = false;
      try {
        start();
        kernel_->recover();
      } catch (const Killed&) {
        again = true;
      }
    }
    device_.until_kill = -1;
  }
  void one_change() {
    if (!files_.empty() && chance(2)) {
      auto at = files_.begin();
      std::advance(at, static_cast<std::ptrdiff_t>(below(files_.size())));
      kernel_->unpreserve(at->second.place);
      files_.erase(at);
      return;
    }
    const int object = static_cast<int>(below(objects_.size()));
    // The engine refuses the same file twice before the medium is asked.
    if (std::ranges::any_of(files_, [&](const auto& entry) { return entry.second.object == object; })) return;
    const std::uint64_t group = 1 + below(5);
    const auto place =
        kernel_->preserve(group, objects_[static_cast<std::size_t>(object)].raw(), chance(8) ? When::Late : When::Now);
    if (place) files_[next_++] = {group, object, *place};
    else EXPECT_FALSE(place.error().what.empty());
  }
  /// The kernel has nothing that the engine has not, and counts are right.
  void expect_nothing_too_much() {
    std::size_t there = 0, wanted = 0;
    for (std::size_t i = 0; i < objects_.size(); ++i) there += device_.kernel.has(objects_[i].raw()) ? 1 : 0;
    for (const auto& [key, file] : files_) wanted += in_kernel(file) ? 1 : 0;
    EXPECT_EQ(there, wanted) << "something is preserved that nobody has";
    const Kernel::Counts counts = kernel_->counts();
    EXPECT_EQ(counts.files, wanted);
    EXPECT_EQ(counts.files + counts.lacking, files_.size());
    EXPECT_EQ(counts.sessions, device_.kernel.session_count());
  }

  std::mt19937_64 random_;
  std::vector<Fd> objects_;
  DeadlyKernel device_;
  std::unique_ptr<kho::Arena> arena_ = std::make_unique<kho::Arena>(
      kho::Arena::create({.name = "model", .layout = {"test", 1}, .max_size = 4_MiB}).value());
  Files files_;
  std::uint64_t next_ = 1;
  std::unique_ptr<Kernel> kernel_;
};

class KernelModel : public testing::TestWithParam<std::uint64_t> {};

TEST_P(KernelModel, AgreesAfterEveryStep) {
  RandomRun run{GetParam()};
  for (int i = 0; i < 400 && !HasFailure(); ++i) {
    SCOPED_TRACE(i);
    run.step();
  }
  run.expect_all();
}

INSTANTIATE_TEST_SUITE_P(Seeds, KernelModel, testing::Range<std::uint64_t>(1, 41));

}  // namespace
}  // namespace luo::medium
