// A freeze of more files than one transaction's log has room for.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "luo/engine.h"

namespace luo {
namespace {

/// Each file is another one to it, whatever descriptor it has.
class Counting final : public Handler {
 public:
  std::string_view name() const noexcept override { return "counting-v1"; }
  bool can_preserve(const FileInfo&) const noexcept override { return true; }
  Identity identity(const FileInfo&) const noexcept override { return {1, ++files_, false}; }
  Result<HandlerData> preserve(const FileInfo&, SessionId, Token) override { return HandlerData{}; }
  void unpreserve(const KeptFile&) noexcept override {}
  Result<HandlerData> freeze(const KeptFile& file) override {
    ++frozen;
    HandlerData data = file.data;
    if (changes) ++data[0];
    return data;
  }
  void unfreeze(const KeptFile&) noexcept override { --frozen; }
  Result<> retrieve(const KeptFile&) override { return {}; }
  void finish(const KeptFile&, bool) noexcept override {}
  bool changes = false;
  int frozen = 0;

 private:
  mutable std::uint64_t files_ = 0;
};

TEST(Freeze, MoreFilesThanALogHasRoomFor) {
  constexpr int kFiles = 120'000;
  auto arena = *kho::Arena::create({.name = "many", .layout = Engine::kLayout, .max_size = 256_MiB});
  Counting handler;
  HandlerRegistry registry;
  ASSERT_TRUE(registry.add(handler).has_value());
  auto engine = *Engine::open(arena, registry, nullptr);
  const Fd one = Fd::adopt(memfd_create("one", MFD_CLOEXEC)), holder = Fd::adopt(memfd_create("holder", MFD_CLOEXEC));
  SessionId id{};
  {
    Change change{arena};
    const char name[64] = "many";
    id = *engine.create_session(change, std::span<const char, 64>{name}, {holder.raw(), -1, 1'000'000, true, PeerId{1}},
                                {}, 0);
    change.commit();
  }
  for (int i = 0; i < kFiles;) {
    Change change{arena};
    for (int n = 0; n < 200; ++n, ++i)
      ASSERT_TRUE(engine.preserve(change, id, {Token{static_cast<std::uint64_t>(i)}, one.raw(), 0}).has_value());
    change.commit();
  }
  ASSERT_TRUE(engine.freeze_all().has_value()) << "nothing changes, so nothing is logged";
  EXPECT_EQ(handler.frozen, kFiles);
  engine.unfreeze_all();
  EXPECT_EQ(handler.frozen, 0);
  handler.changes = true;
  const auto refused = engine.freeze_all();
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.code, ENOSPC);
  EXPECT_EQ(handler.frozen, 0) << "all that were frozen are unfrozen";
  handler.changes = false;
  EXPECT_TRUE(engine.freeze_all().has_value());
}

}  // namespace
}  // namespace luo
