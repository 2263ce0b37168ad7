// Each refusal of the kernel, at each of its calls, through a whole step of the engine: what the client is told, and
// that nothing else has changed.
#include <gmock/gmock.h>

#include <set>

#include "handlers/carried.h"
#include "handlers/memfd.h"
#include "luo/engine_testing.h"
#include "medium/fake_kernel.h"

namespace luo::handlers {
namespace {

using luo::testing::memfd;
using luo::testing::World;
using ::testing::HasSubstr;

constexpr int kErrors[] = {EBUSY, EFBIG, ENOSPC, ENOMEM, ENOENT, EOPNOTSUPP, EIO, EMFILE};

/// As luod has it: the engine in front, the medium asks it for the files that it has.
class CarriedEngine : public ::testing::TestWithParam<int> {
 protected:
  CarriedEngine() : world{{&early}} {
    kernel.emplace(medium::Kernel::open(*world.arena, device, [this](std::uint64_t group, const medium::Visit& visit) {
                     const auto of = [&](SessionId id) {
                       world.engine->for_each_file(id, [&](const FileView& file) {
                         if (const auto place = CarriedHandler::place_of(file.data); place.part != 0)
                           visit(place, file.fd);
                       });
                     };
                     if (group != medium::kShared) return of(SessionId{group});
                     world.engine->for_each_session([&](const SessionView& session) { of(session.id); });
                   }).value());
    EXPECT_TRUE(kernel->reserve());
    carried.emplace(inner, *kernel, [this](SessionId id) { return world.engine->carry_of(id); });
    first = world.create("first");
    second = world.create("second");
    for (std::uint64_t token = 0; token < 3; ++token) preserve(token).value();
    expect_as_before();
  }
  ~CarriedEngine() override {
    std::vector<int> sessions;
    kernel->append_fds(sessions);
    for (const int fd : sessions) close(fd);
  }
  Result<> preserve(std::uint64_t token, bool in_second = false) {
    auto result = world.try_preserve(in_second ? second : first, token, memfd());
    kernel->settle();
    EXPECT_TRUE(kernel->reserve());
    return result;
  }
  void expect_as_before() { expect_files(3); }
  void expect_files(std::uint64_t count) {
    EXPECT_EQ(world.engine->file_count(), count);
    EXPECT_EQ(device.file_count(), count);
    const auto counts = kernel->counts();
    EXPECT_EQ(counts.files, count);
    EXPECT_EQ(counts.lacking, 0U);
    EXPECT_EQ(counts.sessions, device.session_count());
    const auto sound = kernel->check();
    EXPECT_TRUE(sound) << to_string(sound.error());
    world.expect_sound();
  }
  /// All calls from the n-th on, or that one alone.
  void fail_at(int n, bool from_there) {
    device.fails = [this, n, from_there, seen = 0](const char*) mutable {
      ++seen;
      const bool now = from_there ? seen >= n : seen == n;
      failed = failed || now;
      return now ? GetParam() : 0;
    };
    failed = false;
  }
  void fail_no_more() {
    device.fails = [](const char*) { return 0; };
  }
  /// What the client gets: an errno of preserve's, and why.
  void expect_told(const Error& error) {
    EXPECT_EQ(error.code, GetParam() == ENOENT ? EOPNOTSUPP : GetParam());
    EXPECT_THAT(error.what, HasSubstr("by the test")) << "what the kernel said";
    if (GetParam() != EIO && GetParam() != EMFILE) {
      EXPECT_THAT(error.what, ::testing::AnyOf(HasSubstr("the kernel"), HasSubstr("larger"))) << "and what that means";
    }
    EXPECT_EQ(error.what.find("transient=allow") != std::string::npos, error.code == EOPNOTSUPP) << error.what;
  }

  /// In the registry; the medium can only be there after the arena is.
  class Forwarding final : public Handler {
   public:
    explicit Forwarding(std::optional<CarriedHandler>& to) : to_{to} {}
    std::string_view name() const noexcept override { return "memfd-v1"; }
    bool can_preserve(const FileInfo& file) const noexcept override { return to_->can_preserve(file); }
    Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override {
      return to_->preserve(file, session, token);
    }
    void unpreserve(const KeptFile& file) noexcept override { to_->unpreserve(file); }
    Result<HandlerData> freeze(const KeptFile& file) override { return to_->freeze(file); }
    void unfreeze(const KeptFile& file) noexcept override { to_->unfreeze(file); }
    Result<> retrieve(const KeptFile& file) override { return to_->retrieve(file); }
    void finish(const KeptFile& file, bool retrieved) noexcept override { to_->finish(file, retrieved); }

   private:
    std::optional<CarriedHandler>& to_;
  };

  medium::FakeKernel device;
  MemfdHandler inner;
  std::optional<medium::Kernel> kernel;
  std::optional<CarriedHandler> carried;
  Forwarding early{carried};
  World world;
  SessionId first, second;
  bool failed = false;
};

TEST_P(CarriedEngine, APreserveThatIsRefusedChangesNothing) {
  // In a session that the kernel has, and in one that it is to make.
  for (const bool in_second : {false, true}) {
    bool refused_once = false;
    for (int n = 1; n < 20; ++n) {
      SCOPED_TRACE(::testing::Message() << (in_second ? "second" : "first") << ", call " << n);
      fail_at(n, true);
      const auto result = preserve(100, in_second);
      fail_no_more();
      if (!failed) {
        EXPECT_TRUE(result);
        break;
      }
      ASSERT_FALSE(result);
      refused_once = true;
      expect_told(result.error());
      expect_as_before();
      if (HasFailure()) return;
    }
    EXPECT_TRUE(refused_once);
    expect_files(4);
    EXPECT_TRUE(world.unpreserve(in_second ? second : first, 100));
    kernel->settle();
    expect_as_before();
  }
}

/// For want of room there is another way: one more session, or somebody else's.
TEST_P(CarriedEngine, ASingleRefusalIsToldOrGoneAround) {
  for (int n = 1; n < 20; ++n) {
    SCOPED_TRACE(n);
    fail_at(n, false);
    const auto result = preserve(100, true);
    fail_no_more();
    if (!failed) {
      EXPECT_TRUE(result);
      break;
    }
    if (result) {
      EXPECT_TRUE(GetParam() == ENOSPC || GetParam() == ENOMEM || GetParam() == EBUSY);
      expect_files(4);
      EXPECT_TRUE(world.unpreserve(second, 100));
      kernel->settle();
    } else {
      expect_told(result.error());
    }
    expect_as_before();
    if (HasFailure()) return;
  }
}

/// Giving one up makes the kernel's session again: what fails then is luod's to put right, the client has its answer.
TEST_P(CarriedEngine, WhatCannotBePutBackIsPutBackLater) {
  for (int n = 1; n < 20; ++n) {
    SCOPED_TRACE(n);
    fail_at(n, true);
    EXPECT_TRUE(world.unpreserve(first, 1)) << "it is given up whatever the kernel says";
    kernel->settle();
    EXPECT_EQ(world.engine->file_count(), 2U);
    EXPECT_EQ(kernel->counts().files + kernel->counts().lacking, 2U);
    EXPECT_EQ(kernel->counts().lacking, failed ? 2U : 0U);
    if (failed) {
      const auto whole = kernel->complete();
      ASSERT_FALSE(whole) << "not before a kexec either";
      EXPECT_EQ(whole.error().code, GetParam());
      EXPECT_FALSE(whole.error().what.empty());
    }
    fail_no_more();
    EXPECT_TRUE(kernel->complete());
    expect_files(2);
    EXPECT_TRUE(preserve(1));
    expect_as_before();
    if (HasFailure() || !failed) return;
  }
  FAIL() << "it always failed";
}

/// A session that its owner closes takes no call that could fail.
TEST_P(CarriedEngine, AClosedSessionIsGoneWhateverTheKernelSays) {
  EXPECT_TRUE(preserve(7, true));
  fail_at(1, true);
  world.closed(second);
  kernel->settle();
  fail_no_more();
  expect_as_before();
}

INSTANTIATE_TEST_SUITE_P(Errno, CarriedEngine, ::testing::ValuesIn(kErrors),
                         [](const auto& of) { return std::string{strerrorname_np(of.param)}; });

}  // namespace
}  // namespace luo::handlers
