// CarriedHandler over a kernel that is made up: what it takes in, refuses, lets pass; and what it brings back.
#include "handlers/carried.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <map>
#include <memory>

#include "handlers/eventfd.h"
#include "handlers/memfd.h"
#include "medium/fake_kernel.h"

namespace luo::handlers {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr HandlerData kNone{};

Fd memfd(unsigned flags = MFD_ALLOW_SEALING) { return Fd::adopt(memfd_create("carried", MFD_CLOEXEC | flags)); }
FileInfo info_of(const Fd& fd) {
  FileInfo info{fd.raw(), {}};
  EXPECT_EQ(fstat(fd.raw(), &info.st), 0);
  return info;
}

/// The other side of a kexec: gives back what a test has put there.
class NextKernel final : public medium::Device {
 public:
  std::map<std::uint64_t, int> files;  ///< by token, borrowed
  std::map<std::uint64_t, int> errors;
  std::vector<std::string> retrieved;
  Result<Fd> create_session(const std::string&) override { return fail(EIO, "not here"); }
  Result<Fd> retrieve_session(const std::string& name) override {
    retrieved.push_back(name);
    Pipe pipe = LUO_TRY(make_pipe());
    sessions_.push_back(std::move(pipe.write));
    return std::move(pipe.read);
  }
  Result<> preserve(FdRef, int, std::uint64_t) override { return fail(EIO, "not here"); }
  Result<Fd> retrieve(FdRef, std::uint64_t token) override {
    if (errors.contains(token)) return fail(errors[token], "token {}", token);
    if (!files.contains(token)) return fail(ENOENT, "token {}", token);
    return Fd::adopt(fcntl(files[token], F_DUPFD_CLOEXEC, 0));
  }
  Result<> finish(FdRef) override { return {}; }
  bool is_session(FdRef, const std::string&) override { return true; }

 private:
  std::vector<Fd> sessions_;
};

/// Needs all four words for itself.
class FourWords final : public Handler {
 public:
  std::string_view name() const noexcept override { return "four-v1"; }
  bool can_preserve(const FileInfo&) const noexcept override { return true; }
  Result<HandlerData> preserve(const FileInfo&, SessionId, Token) override { return words; }
  void unpreserve(const KeptFile& file) noexcept override { given_up = file.data; }
  Result<HandlerData> freeze(const KeptFile& file) override {
    HandlerData data = file.data;
    ++data[0];
    return data;
  }
  Result<> retrieve(const KeptFile& file) override {
    return file.data == words ? Result<>{} : Result<>{fail(ESTALE, "not what it was")};
  }
  void finish(const KeptFile& file, bool) noexcept override { given_up = file.data; }
  HandlerData words{1, 2, 3, 4}, given_up{};
};

class Carried : public testing::Test {
 protected:
  Carried() : arena{kho::Arena::create({.name = "carried", .layout = {"test", 1}, .max_size = 16_MiB}).value()} {
    EXPECT_TRUE(kernel.reserve());
  }
  /// One transaction, as the engine has one around each call.
  template <class Do>
  auto step(Do what, bool commit = true) {
    kho::Tx tx{arena};
    auto result = what();
    if (commit) tx.commit();
    else tx.abort();
    return result;
  }
  Result<HandlerData> preserve(Handler& handler, const Fd& fd, bool commit = true) {
    auto data = step([&] { return handler.preserve(info_of(fd), SessionId{1}, Token{7}); }, commit);
    if (data && commit) kept[fd.raw()] = *data;
    kernel.settle();
    return data;
  }
  void unpreserve(Handler& handler, const Fd& fd, bool commit = true) {
    const HandlerData data = kept[fd.raw()];
    if (commit) kept.erase(fd.raw());
    step([&] { return handler.unpreserve({fd.raw(), Token{7}, data}), true; }, commit);
    kernel.settle();
  }

  kho::Arena arena;
  medium::FakeKernel device;
  std::map<int, HandlerData> kept;  ///< of session 1, by descriptor
  medium::Kernel kernel = medium::Kernel::open(arena, device, [this](std::uint64_t, const medium::Visit& visit) {
                            for (const auto& [fd, data] : kept)
                              if (const auto place = CarriedHandler::place_of(data); place.part != 0) visit(place, fd);
                          }).value();
  unsigned carry = 0;
  CarriedHandler::CarryOf carry_of = [this](SessionId) { return carry; };
  MemfdHandler memfd_handler;
  EventfdHandler eventfd_handler;
  FourWords four_words;
  CarriedHandler files{memfd_handler, kernel, carry_of}, events{eventfd_handler, kernel, carry_of},
      wordy{four_words, kernel, carry_of};
};

TEST_F(Carried, AMemfdIsGivenToTheKernelAndTakenBack) {
  const Fd fd = memfd();
  ASSERT_EQ(fchmod(fd.raw(), 0640), 0);
  const auto data = preserve(files, fd);
  ASSERT_TRUE(data) << to_string(data.error());
  EXPECT_TRUE(device.has(fd.raw()));
  EXPECT_TRUE(kernel.holds(CarriedHandler::place_of(*data)));
  EXPECT_TRUE(files.retrieve({fd.raw(), Token{7}, *data})) << "the handler inside sees its own words";
  EXPECT_FALSE(files.retrieve({memfd().raw(), Token{7}, *data}));
  unpreserve(files, fd);
  EXPECT_FALSE(device.has(fd.raw()));
  EXPECT_EQ(device.session_count(), 0U);
}

TEST_F(Carried, WhatTheKernelRefusesIsRefused) {
  const Fd fd = memfd();
  for (const int code : {EBUSY, EFBIG, EOPNOTSUPP, ENOSPC, ENOMEM, EIO}) {
    device.fails = [&](const char* call) { return std::string_view{call} == "preserve" ? code : 0; };
    const auto refused = preserve(files, fd);
    ASSERT_FALSE(refused) << code;
    EXPECT_EQ(refused.error().code, code);
    EXPECT_FALSE(refused.error().what.empty());
    EXPECT_EQ(kernel.counts().files + kernel.counts().lacking, 0U);
    EXPECT_EQ(device.session_count(), 0U);
  }
  const auto error = [&] { return to_string(preserve(files, fd).error()); };
  device.fails = [](const char* call) { return std::string_view{call} == "preserve" ? EOPNOTSUPP : 0; };
  EXPECT_THAT(error(), HasSubstr("transient=allow"));
  device.fails = [](const char* call) { return std::string_view{call} == "preserve" ? ENOMEM : 0; };
  EXPECT_THAT(error(), ::testing::Not(HasSubstr("transient"))) << "it would not help";
}

TEST_F(Carried, WhatTheKernelHasNoHandlerForIsRefusedUnlessItMayStayBehind) {
  const Fd fd = Fd::adopt(eventfd(3, EFD_CLOEXEC));
  const auto refused = preserve(events, fd);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EOPNOTSUPP) << "the kernel says ENOENT, which here would be: no handler at all";
  EXPECT_THAT(to_string(refused.error()), HasSubstr("transient=allow"));
  EXPECT_EQ(device.session_count(), 0U);

  carry = kCarryTransient;
  const auto data = preserve(events, fd);
  ASSERT_TRUE(data) << to_string(data.error());
  EXPECT_EQ(CarriedHandler::place_of(*data).part, 0U);
  EXPECT_TRUE(events.retrieve({fd.raw(), Token{7}, *data}));
  EXPECT_EQ(device.session_count(), 0U) << "nothing is left of the attempt";
  EXPECT_EQ(*step([&] { return files.place_late(SessionId{1}, fd.raw(), *data); }), *data) << "nor is it placed late";
  kernel.settle();
  EXPECT_EQ(device.session_count(), 0U);
  unpreserve(events, fd);
}

TEST_F(Carried, TransientForgivesNothingElse) {
  carry = kCarryTransient;
  const Fd fd = memfd();
  for (const int code : {EBUSY, EFBIG, ENOMEM, ENOSPC, EIO}) {
    device.fails = [&](const char* call) { return std::string_view{call} == "preserve" ? code : 0; };
    EXPECT_EQ(preserve(files, fd).error().code, code);
  }
  device.fails = [](const char* call) { return std::string_view{call} == "preserve" ? EOPNOTSUPP : 0; };
  EXPECT_TRUE(preserve(files, fd)) << "seals that the kernel does not know";
}

TEST_F(Carried, WhatIsToGrowIsPlacedLateAndDisplacedAgain) {
  carry = kCarryGrow;
  const Fd fd = memfd();
  const HandlerData before = preserve(files, fd).value();
  EXPECT_EQ(device.calls, 0U);
  EXPECT_EQ(CarriedHandler::place_of(before).part, 0U);
  ASSERT_EQ(ftruncate(fd.raw(), 10'000), 0);

  const auto late = step([&] { return files.place_late(SessionId{1}, fd.raw(), before); });
  ASSERT_TRUE(late) << to_string(late.error());
  kept[fd.raw()] = *late;
  kernel.settle();
  EXPECT_TRUE(device.has(fd.raw()));
  EXPECT_TRUE(kernel.is_late(CarriedHandler::place_of(*late)));
  EXPECT_TRUE(kernel.has_late());
  EXPECT_EQ(*step([&] { return files.place_late(SessionId{1}, fd.raw(), *late); }), *late) << "it has a place";
  EXPECT_TRUE(files.retrieve({fd.raw(), Token{7}, *late}));

  kept[fd.raw()] = step([&] { return files.displace(*late); });
  kernel.settle();
  EXPECT_EQ(kept[fd.raw()], before);
  EXPECT_FALSE(device.has(fd.raw()));
  EXPECT_FALSE(kernel.has_late());
  EXPECT_EQ(device.session_count(), 0U);
  EXPECT_EQ(step([&] { return files.displace(before); }), before) << "nothing to be done";

  // A step that is abandoned places nothing.
  ASSERT_TRUE(step([&] { return files.place_late(SessionId{1}, fd.raw(), before); }, false));
  kernel.settle();
  EXPECT_FALSE(device.has(fd.raw()));

  device.fails = [](const char* call) { return std::string_view{call} == "preserve" ? ENOMEM : 0; };
  EXPECT_EQ(step([&] { return files.place_late(SessionId{1}, fd.raw(), before); }).error().code, ENOMEM);
  device.fails = [](const char* call) { return std::string_view{call} == "preserve" ? EOPNOTSUPP : 0; };
  EXPECT_EQ(*step([&] { return files.place_late(SessionId{1}, fd.raw(), before); }), before);
  device.fails = [](const char*) { return 0; };
  kernel.settle();
  EXPECT_EQ(device.session_count(), 0U);
  EXPECT_EQ(*step([&] { return files.place_late(SessionId{1}, -1, before); }), before) << "a file that was lost";
}

TEST_F(Carried, APlaceThatIsNoneAnyMoreIsReplacedLate) {
  const Fd fd = memfd();
  const HandlerData before = preserve(files, fd).value();
  kernel.end_arrival();  // as after a crossing: the kernel's sessions were given back
  EXPECT_FALSE(device.has(fd.raw()));
  EXPECT_FALSE(kernel.holds(CarriedHandler::place_of(before)));
  const std::uint64_t calls = device.calls;
  step([&] { return files.unpreserve({fd.raw(), Token{7}, before}), true; }, false);
  kernel.settle();
  EXPECT_EQ(device.calls, calls) << "no harm done";
  const auto late = step([&] { return files.place_late(SessionId{1}, fd.raw(), before); });
  ASSERT_TRUE(late) << to_string(late.error());
  kept[fd.raw()] = *late;
  kernel.settle();
  EXPECT_TRUE(kernel.is_late(CarriedHandler::place_of(*late)));
  EXPECT_TRUE(device.has(fd.raw()));
}

TEST_F(Carried, AHandlerThatNeedsAllWordsIsNotCarried) {
  const Fd fd = memfd();
  const auto refused = preserve(wordy, fd);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EOPNOTSUPP);
  EXPECT_EQ(four_words.given_up, four_words.words) << "it was told";
  EXPECT_EQ(device.calls, 0U);
  for (const unsigned how : {unsigned{kCarryTransient}, unsigned{kCarryTransient | kCarryGrow}}) {
    carry = how;
    const auto data = preserve(wordy, fd);
    ASSERT_TRUE(data);
    EXPECT_EQ(*data, four_words.words);
    EXPECT_EQ(CarriedHandler::place_of(*data).part, 0U);
    EXPECT_EQ(*step([&] { return wordy.place_late(SessionId{1}, fd.raw(), *data); }), *data);
    EXPECT_TRUE(wordy.retrieve({fd.raw(), Token{7}, *data})) << "it sees all of its words";
    EXPECT_EQ(*wordy.freeze({fd.raw(), Token{7}, *data}), (HandlerData{2, 2, 3, 4}));
    four_words.given_up = {};
    wordy.finish({fd.raw(), Token{7}, *data}, true);
    EXPECT_EQ(four_words.given_up, *data);
    unpreserve(wordy, fd);
  }
  EXPECT_EQ(device.calls, 0U);
}

TEST_F(Carried, WhichSealsItHasIsWrittenDownAtTheFreeze) {
  const Fd fd = memfd();
  const HandlerData data = preserve(files, fd).value();
  ASSERT_EQ(fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_GROW), 0);
  const auto frozen = files.freeze({fd.raw(), Token{7}, data});
  ASSERT_TRUE(frozen);
  EXPECT_NE(*frozen, data);
  EXPECT_EQ(CarriedHandler::place_of(*frozen).token, CarriedHandler::place_of(data).token);
  EXPECT_EQ(CarriedHandler::place_of(*frozen).part, CarriedHandler::place_of(data).part);
  EXPECT_EQ(*files.freeze({fd.raw(), Token{7}, *frozen}), *frozen) << "nothing more was added";
  const HandlerData gone{data[0], data[1], 0, 0};
  EXPECT_EQ(*files.freeze({-1, Token{7}, gone}), gone) << "a file that was lost";
}

TEST_F(Carried, WhichModeItHasIsWrittenDownAtTheFreeze) {
  const Fd fd = memfd();
  const HandlerData data = preserve(files, fd).value();
  ASSERT_EQ(fchmod(fd.raw(), 0600), 0);
  const HandlerData frozen = files.freeze({fd.raw(), Token{7}, data}).value();
  EXPECT_EQ(frozen[3] >> 48 & 0xfff, 0600U);
  EXPECT_EQ(CarriedHandler::place_of(frozen).token, CarriedHandler::place_of(data).token);
}

TEST_F(Carried, UnpreserveOfAnAbandonedStepHasNoEffect) {
  const Fd fd = memfd(), other = memfd();
  ASSERT_TRUE(preserve(files, fd));
  ASSERT_TRUE(preserve(files, other));
  for (int again = 0; again < 3; ++again) {
    unpreserve(files, fd, false);
    EXPECT_TRUE(device.has(fd.raw()));
    EXPECT_EQ(kernel.counts().files, 2U);
  }
  unpreserve(files, fd);
  EXPECT_FALSE(device.has(fd.raw()));
  EXPECT_TRUE(device.has(other.raw()));
  EXPECT_TRUE(preserve(files, fd, false));
  EXPECT_FALSE(device.has(fd.raw()));
  EXPECT_TRUE(preserve(files, fd)) << "again, the same file";
  EXPECT_TRUE(device.has(fd.raw()));
}

/// As after a simulated update: the kernel was not left, and has it still.
TEST_F(Carried, WhatIsFinishedTheKernelNeedNotHave) {
  const Fd fd = memfd(), other = memfd();
  const HandlerData data = preserve(files, fd).value();
  ASSERT_TRUE(preserve(files, other));
  const auto finish = [&](bool commit) {
    step([&] { return files.finish({fd.raw(), Token{7}, data}, true), true; }, commit);
    if (commit) kept.erase(fd.raw());
    kernel.settle();
  };
  finish(false);
  EXPECT_TRUE(device.has(fd.raw()));
  finish(true);
  EXPECT_FALSE(device.has(fd.raw()));
  EXPECT_TRUE(device.has(other.raw()));
}

/// What a luod finds on the other side of a kexec.
class Brought : public Carried {
 protected:
  Brought() {
    EXPECT_EQ(fchmod(fd.raw(), 0640), 0);
    EXPECT_EQ(write(fd.raw(), "content", 7), 7);
    data = preserve(files, fd).value();
  }
  Engine::Arrival bring(const HandlerData& of, int error = 0) {
    const std::uint64_t token = CarriedHandler::place_of(of).token;
    if (error != 0) next.errors[token] = error;
    else next.files[token] = came.raw();
    arrived.arrive();
    return over.bring(session, {Token{7}, "memfd-v1", -1, 0, 1, 2, of, 0, 0});
  }
  const Fd fd = memfd(), came = memfd();
  HandlerData data;
  NextKernel next;
  medium::Kernel arrived = medium::Kernel::open(arena, next, {}).value();
  CarriedHandler over{memfd_handler, arrived, carry_of};
  SessionView session{};
};

TEST_F(Brought, TheFileIsTheNewOneWithItsPropertiesAsTheyWere) {
  ASSERT_EQ(fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_GROW), 0);
  data = files.freeze({fd.raw(), Token{7}, data}).value();
  const auto arrival = bring(data);
  ASSERT_GE(arrival.fd, 0);
  const Fd file = Fd::adopt(arrival.fd);
  const FileInfo info = info_of(file);
  EXPECT_EQ(info.st.st_ino, info_of(came).st.st_ino);
  EXPECT_EQ(info.st.st_mode & 07777U, 0640U);
  EXPECT_EQ(fcntl(file.raw(), F_GET_SEALS), F_SEAL_GROW) << "added after it was preserved";
  EXPECT_EQ(fcntl(file.raw(), F_GETFD), 0) << "it goes over luod's next exec";
  EXPECT_EQ(arrival.data, (HandlerData{info.st.st_ino, info.st.st_dev, 0, 0})) << "the kernel has it no more";
  EXPECT_TRUE(over.retrieve({file.raw(), Token{7}, arrival.data}));
  EXPECT_EQ(next.retrieved.size(), 1U);
  arrived.end_arrival();
}

TEST_F(Brought, AccessAndAppendingAreAsTheyWere) {
  const std::vector<int> ways{O_RDONLY, O_WRONLY, O_RDWR, O_RDONLY | O_APPEND, O_RDWR | O_APPEND};
  std::vector<Fd> given;
  std::vector<std::pair<int, HandlerData>> crossed;
  for (const int how : ways) {
    const Fd own = memfd();
    given.push_back(Fd::adopt(open(("/proc/self/fd/" + std::to_string(own.raw())).c_str(), how | O_CLOEXEC)));
    ASSERT_TRUE(given.back().valid());
    crossed.emplace_back(how, preserve(files, given.back()).value());
    crossed.emplace_back(how, files.freeze({given.back().raw(), Token{7}, crossed.back().second}).value());
  }
  for (const auto& [how, of] : crossed) {
    const auto arrival = bring(of);
    ASSERT_GE(arrival.fd, 0);
    const Fd file = Fd::adopt(arrival.fd);
    EXPECT_EQ(fcntl(file.raw(), F_GETFL) & (O_ACCMODE | O_APPEND), how);
    EXPECT_EQ(fcntl(file.raw(), F_GETFD), 0) << "it goes over luod's next exec";
    EXPECT_EQ(info_of(file).st.st_ino, info_of(came).st.st_ino);
    EXPECT_EQ(arrival.data[0], info_of(came).st.st_ino);
  }
  arrived.end_arrival();
}

/// One that was open for reading only and comes back with seals that it did not have: copied, and then opened again,
/// under the number that the one before the copy had.
TEST_F(Brought, WhatIsRememberedIsTheCopyThatIsKept) {
  const Fd reader = Fd::adopt(open(("/proc/self/fd/" + std::to_string(fd.raw())).c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(reader.valid());
  data = files.freeze({reader.raw(), Token{7}, data}).value();
  ASSERT_EQ(fcntl(came.raw(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  const auto arrival = bring(data);
  ASSERT_GE(arrival.fd, 0);
  const Fd file = Fd::adopt(arrival.fd);
  EXPECT_NE(info_of(file).st.st_ino, info_of(came).st.st_ino) << "it is a copy";
  EXPECT_EQ(fcntl(file.raw(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(arrival.data[0], info_of(file).st.st_ino);
  const auto retrieved = over.retrieve({file.raw(), Token{7}, arrival.data});
  EXPECT_TRUE(retrieved) << to_string(retrieved.error());
  arrived.end_arrival();
}

TEST_F(Brought, WhatWasNotGivenToTheKernelIsGone) {
  const auto arrival = over.bring(session, {Token{7}, "memfd-v1", -1, 0, 1, 2, {5, 6, 0, 0}, 0, 0});
  EXPECT_TRUE(arrival.gone);
  EXPECT_EQ(arrival.fd, -1);
  const auto words = over.bring(session, {Token{7}, "memfd-v1", -1, 0, 1, 2, four_words.words, 0, 0});
  EXPECT_TRUE(words.gone);
  EXPECT_TRUE(next.retrieved.empty());
}

TEST_F(Brought, WhatTheKernelLostSaysWhy) {
  for (const int code : {ENOMEM, EIO, ENOENT}) {
    const auto arrival = bring(data, code);
    EXPECT_EQ(arrival.fd, -1);
    EXPECT_FALSE(arrival.gone);
    EXPECT_EQ(arrival.error, code);
    EXPECT_EQ(CarriedHandler::place_of(arrival.data).part, 0U);
    EXPECT_EQ(arrival.data[0], data[0]);
  }
  HandlerData elsewhere = data;  // of a part that there is none of
  elsewhere[3] += 5;
  EXPECT_EQ(bring(elsewhere).error, ENOENT);
  arrived.end_arrival();
}

TEST_F(Brought, OneThatCannotBeMendedIsLostAndClosed) {
  const Fd sealed = memfd();
  ASSERT_EQ(fcntl(sealed.raw(), F_ADD_SEALS, F_SEAL_SEAL), 0);
  ASSERT_EQ(fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL), 0);
  data = files.freeze({fd.raw(), Token{7}, data}).value();
  next.files[CarriedHandler::place_of(data).token] = sealed.raw();
  arrived.arrive();
  const auto arrival = over.bring(session, {Token{7}, "memfd-v1", -1, 0, 1, 2, data, 0, 0});
  EXPECT_EQ(arrival.fd, -1);
  EXPECT_EQ(arrival.error, EPERM);
  arrived.end_arrival();
}

}  // namespace
}  // namespace luo::handlers
