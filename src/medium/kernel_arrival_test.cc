// The kernel medium on the other side of a kexec, which is made up: what the first kernel had is what the next one
// gives.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <map>
#include <memory>

#include "base/text.h"
#include "kho/image.h"
#include "medium/fake_kernel.h"
#include "medium/kernel.h"

namespace luo::medium {
namespace {

using ::testing::UnorderedElementsAre;

constexpr kho::Layout kLayout{"test", 1};

Fd memfd() { return Fd::adopt(memfd_create("arrival", MFD_CLOEXEC)); }
std::uint64_t inode_of(int fd) {
  struct stat st {};
  return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

using Crossing = std::map<std::string, std::map<std::uint64_t, Fd>>;  ///< sessions by name, files by token

/// The kernel before: writes down what would cross.
class KernelBefore final : public Device {
 public:
  FakeKernel kernel;
  std::map<int, std::string> names;  ///< of session descriptors
  Crossing crossing;
  Result<Fd> create_session(const std::string& name) override {
    auto fd = kernel.create_session(name);
    if (fd) names[fd->raw()] = name;
    return fd;
  }
  Result<Fd> retrieve_session(const std::string& name) override { return kernel.retrieve_session(name); }
  Result<> preserve(FdRef session, int fd, std::uint64_t token) override {
    LUO_TRY(kernel.preserve(session, fd, token));
    crossing[names[session.raw]][token] = Fd::adopt(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    return {};
  }
  Result<Fd> retrieve(FdRef session, std::uint64_t token) override { return kernel.retrieve(session, token); }
  Result<> finish(FdRef session) override { return kernel.finish(session); }
  bool is_session(FdRef fd, const std::string& name) override { return kernel.is_session(fd, name); }
};

/// The next one. A session is retrieved once, and is there until it is finished.
class KernelAfter final : public Device {
 public:
  Crossing* crossing = nullptr;
  std::vector<std::string> created, retrieved, finished;
  std::map<std::uint64_t, int> errors;  ///< of retrieve, by token
  int finish_error = 0, session_error = 0;
  Result<Fd> create_session(const std::string& name) override {
    created.push_back(name);
    return session(name);
  }
  Result<Fd> retrieve_session(const std::string& name) override {
    if (session_error != 0) return fail(session_error, "session {}, by the test", name);
    if (!crossing->contains(name)) return fail(ENOENT, "session {}", name);
    if (std::ranges::find(retrieved, name) != retrieved.end()) return fail(EINVAL, "session {}, twice", name);
    retrieved.push_back(name);
    return session(name);
  }
  Result<> preserve(FdRef, int, std::uint64_t) override { return {}; }
  Result<Fd> retrieve(FdRef fd, std::uint64_t token) override {
    if (errors.contains(token)) return fail(errors[token], "token {}", token);
    auto& files = (*crossing)[names_.at(inode_of(fd.raw))];
    if (!files.contains(token)) return fail(ENOENT, "token {}", token);
    return Fd::adopt(fcntl(files[token].raw(), F_DUPFD_CLOEXEC, 0));
  }
  Result<> finish(FdRef fd) override {
    if (finish_error != 0) return fail(finish_error, "finish");
    finished.push_back(names_.at(inode_of(fd.raw)));
    return {};
  }
  bool is_session(FdRef fd, const std::string& name) override {
    const auto found = names_.find(inode_of(fd.raw));
    return found != names_.end() && found->second == name;
  }

 private:
  Result<Fd> session(const std::string& name) {
    Pipe pipe = LUO_TRY(make_pipe());
    names_[inode_of(pipe.read.raw())] = name;
    ends_.push_back(std::move(pipe.write));
    return std::move(pipe.read);
  }
  std::map<std::uint64_t, std::string> names_;  ///< by inode
  std::vector<Fd> ends_;
};

class KernelArrival : public testing::Test {
 protected:
  KernelArrival() {
    before.kernel.most_files = 3;
    auto arena_before = kho::Arena::create({.name = "before", .layout = kLayout, .max_size = 8_MiB}).value();
    {
      auto first = Kernel::open(arena_before, before, {}).value();
      EXPECT_TRUE(first.reserve());
      for (const std::uint64_t group : {1, 2, 1, 1, 1}) {
        kho::Tx tx{arena_before};
        files.push_back(memfd());
        places.push_back(first.preserve(group, files.back().raw(), When::Now).value());
        tx.commit();
        first.settle();
      }
      first.clock()[2] = 42;
      EXPECT_TRUE(first.offer_image(image));
      arena = std::make_unique<kho::Arena>(
          kho::populate(kho::seal(arena_before, "image").value(), kLayout, "after").value());
      std::vector<int> fds;
      first.append_fds(fds);
      first.withdraw_image();
      for (const int fd : fds)
        if (fcntl(fd, F_GETFD) >= 0) close(fd);
    }
    after.crossing = &before.crossing;
    start();
  }
  void start() {
    kernel = std::make_unique<Kernel>(Kernel::open(*arena, after, {}).value());
    ASSERT_TRUE(kernel->reserve());
  }
  std::vector<std::string> sessions() const {  // but luod's own
    std::vector<std::string> names;
    for (const auto& [name, of] : before.crossing)
      if (name != Kernel::kOwnName) names.push_back(name);
    return names;
  }

  KernelBefore before;
  KernelAfter after;
  const Fd image = memfd();
  std::vector<Fd> files;
  std::vector<Place> places;
  std::unique_ptr<kho::Arena> arena;
  std::unique_ptr<Kernel> kernel;
};

TEST_F(KernelArrival, EveryFileIsBroughtAndEverySessionGivenBack) {
  ASSERT_EQ(sessions().size(), 3U) << "two groups, of which one has more files than fit";
  EXPECT_FALSE(kernel->arriving());
  kernel->arrive();
  EXPECT_TRUE(kernel->arriving());
  EXPECT_EQ(kernel->clock()[2], 42U);
  for (std::size_t i = 0; i < files.size(); ++i) {
    const auto fd = kernel->bring(places[i]);
    ASSERT_TRUE(fd) << to_string(fd.error());
    EXPECT_EQ(inode_of(fd->raw()), inode_of(files[i].raw())) << i;
  }
  EXPECT_EQ(after.retrieved.size(), 3U) << "each once";
  kernel->end_arrival();
  EXPECT_FALSE(kernel->arriving());
  EXPECT_THAT(after.finished, ::testing::UnorderedElementsAreArray(sessions()));
  std::vector<int> fds;
  kernel->append_fds(fds);
  EXPECT_TRUE(fds.empty());
  for (const Place& place : places) {
    EXPECT_FALSE(kernel->holds(place));
    EXPECT_EQ(kernel->bring(place).error().code, ENOENT);
  }
  // What is preserved from here on has names that were never used.
  {
    kho::Tx tx{*arena};
    const auto place = kernel->preserve(1, files[0].raw(), When::Now);
    ASSERT_TRUE(place);
    tx.commit();
    EXPECT_TRUE(kernel->holds(*place));
    for (const Place& old : places) EXPECT_FALSE(kernel->holds(old));
  }
  ASSERT_EQ(after.created.size(), 1U);
  EXPECT_FALSE(before.crossing.contains(after.created[0]));
}

TEST_F(KernelArrival, WhatNobodyWantsIsGivenBackToo) {
  kernel->arrive();
  ASSERT_TRUE(kernel->bring(places[1])) << "of a session of its own";
  kernel->end_arrival();
  EXPECT_THAT(after.retrieved, ::testing::UnorderedElementsAreArray(sessions()));
  EXPECT_THAT(after.finished, ::testing::UnorderedElementsAreArray(sessions()));
}

TEST_F(KernelArrival, WhatIsLostIsLostAlone) {
  kernel->arrive();
  after.errors[places[0].token] = ENOMEM;
  const auto lost = kernel->bring(places[0]);
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, ENOMEM);
  EXPECT_TRUE(kernel->bring(places[2])) << "of the same session";
  // A whole session.
  before.crossing.erase(sessions().back());
  std::size_t gone = 0;
  for (std::size_t i = 1; i < places.size(); ++i) {
    const auto fd = kernel->bring(places[i]);
    if (!fd) {
      EXPECT_EQ(fd.error().code, ENOENT);
      ++gone;
    }
  }
  EXPECT_GE(gone, 1U);
  after.finish_error = EBUSY;
  kernel->end_arrival();
  EXPECT_FALSE(kernel->arriving()) << "what cannot be finished is closed";
}

/// Each call, each errno: it is told with its file, what was not taken is not given back, and another try finds all.
TEST_F(KernelArrival, WhateverTheKernelRefusesCanBeTriedAgain) {
  for (const int code : {EBUSY, EFBIG, ENOSPC, ENOMEM, ENOENT, EOPNOTSUPP, EIO, EMFILE, ENFILE, EINVAL}) {
    SCOPED_TRACE(errno_text(code));
    kernel->arrive();
    after.session_error = code;
    for (const Place& place : places) {
      const auto lost = kernel->bring(place);
      ASSERT_FALSE(lost);
      EXPECT_EQ(lost.error().code, code);
      EXPECT_NE(lost.error().what.find("take a kernel session back"), std::string::npos) << lost.error().what;
    }
    EXPECT_EQ(Kernel::find_image(after).has_value(), code == ENOENT) << "nothing came, as far as one can tell";
    after.session_error = 0;
    EXPECT_TRUE(after.retrieved.empty());
    EXPECT_TRUE(kernel->arriving());
  }
  for (const Place& place : places) after.errors[place.token] = EIO;
  for (const Place& place : places) EXPECT_EQ(kernel->bring(place).error().code, EIO);
  after.errors.clear();
  for (std::size_t i = 0; i < files.size(); ++i) {
    const auto fd = kernel->bring(places[i]);
    ASSERT_TRUE(fd) << to_string(fd.error());
    EXPECT_EQ(inode_of(fd->raw()), inode_of(files[i].raw()));
  }
  after.finish_error = EIO;
  kernel->end_arrival();
  EXPECT_FALSE(kernel->arriving()) << "closed, which finishes it as well";
  EXPECT_TRUE(after.finished.empty());
  std::vector<int> fds;
  kernel->append_fds(fds);
  EXPECT_TRUE(fds.empty());
  for (const Place& place : places) EXPECT_FALSE(kernel->holds(place));
}

TEST_F(KernelArrival, AWorkerThatWasKilledInTheMiddleIsFollowedByAnother) {
  kernel->arrive();
  for (const Place& place : places) ASSERT_TRUE(kernel->bring(place));
  start();  // all was brought and committed, nothing given back
  EXPECT_TRUE(kernel->arriving());
  kernel->end_arrival();
  EXPECT_THAT(after.finished, ::testing::UnorderedElementsAreArray(sessions()));
  start();
  EXPECT_FALSE(kernel->arriving());
}

TEST_F(KernelArrival, TheImageIsInASessionOfItsOwn) {
  auto left = Kernel::find_image(after);
  ASSERT_TRUE(left) << to_string(left.error());
  ASSERT_TRUE(left->session.valid());
  EXPECT_EQ(inode_of(left->image.raw()), inode_of(image.raw()));
  EXPECT_EQ(fcntl(left->session.raw(), F_GETFD), 0) << "it goes over luod's next exec";
  EXPECT_THAT(after.retrieved, UnorderedElementsAre(Kernel::kOwnName));
  EXPECT_TRUE(after.finished.empty());
}

TEST_F(KernelArrival, ThereMayBeNone) {
  before.crossing.clear();
  const auto left = Kernel::find_image(after);
  ASSERT_TRUE(left) << "nothing came";
  EXPECT_FALSE(left->session.valid());
  EXPECT_FALSE(left->image.valid());
}

TEST_F(KernelArrival, AnImageThatIsLostIsAnError) {
  after.errors[1] = EIO;
  const auto left = Kernel::find_image(after);
  ASSERT_FALSE(left);
  EXPECT_EQ(left.error().code, EIO);
  EXPECT_TRUE(after.finished.empty());
}

}  // namespace
}  // namespace luo::medium
