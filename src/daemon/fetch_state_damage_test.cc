// The state that came in is damaged, or of another luod, or there is no room to save it: it is taken as it was, or
// saved as it came, or stays where it is.
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <functional>

#include "daemon/fetch_state_testing.h"
#include "medium/kernel.h"
#include "sys/pipe.h"

namespace luo::daemon {
namespace {

using Content = std::vector<std::byte>;

Content content_of(int fd) {
  Content bytes(static_cast<std::size_t>(lseek(fd, 0, SEEK_END)));
  EXPECT_EQ(pread(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

/// A kernel that has an image for luod, as often as it is asked.
class OneImage final : public medium::Device {
 public:
  explicit OneImage(const Content& content) : image{Fd::adopt(memfd_create("came", MFD_CLOEXEC | MFD_ALLOW_SEALING))} {
    EXPECT_EQ(pwrite(image.raw(), content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
  }
  Result<Fd> create_session(const std::string&) override { return fail(EIO, "not here"); }
  Result<Fd> retrieve_session(const std::string& name) override {
    ++asked;
    if (name != medium::Kernel::kOwnName) return fail(ENOENT, "session {}", name);
    Pipe pipe = LUO_TRY(make_pipe());
    return std::move(pipe.read);
  }
  Result<> preserve(FdRef, int, std::uint64_t) override { return fail(EIO, "not here"); }
  Result<Fd> retrieve(FdRef, std::uint64_t) override { return Fd::adopt(fcntl(image.raw(), F_DUPFD_CLOEXEC, 0)); }
  Result<> finish(FdRef) override { return fail(EIO, "not here"); }
  bool is_session(FdRef, const std::string&) override { return true; }

  Fd image;
  int asked = 0;
};

constexpr Bytes kSmall = 1_MiB;

class ArrivedState : public FetchState {
 protected:
  explicit ArrivedState(Bytes size = 64_MiB) : FetchState{size} {}
  ~ArrivedState() override { close_own(); }
  void close_own() {
    if (control->own_fd >= 0) close_number(std::exchange(control->own_fd, -1));
  }
  static Content image_of(const Arena& arena) { return content_of(kho::seal(arena, "image").value().raw()); }
  /// As luod makes it: with room, and its length at the end.
  static Content with_room(Content image, std::uint64_t length) {
    image.resize(image.size() + 300'000 - sizeof length, std::byte{0xa5});
    const auto bytes = std::as_bytes(std::span{&length, 1});
    image.insert(image.end(), bytes.begin(), bytes.end());
    return image;
  }
  Result<> fetch(medium::Device& device) {
    close_own();
    return fetch_state(*control, device);
  }
  /// A luod on the same directory whose arena has another size.
  void start_another(Bytes size) {
    close_own();
    Arena arena = make_arena(size, "another luod's", 2);
    std::ranges::fill(arena.control(), std::byte{0x5a});
    file = arena.release();
    control->arena_fd = file.raw();
    control->arrival.store(static_cast<std::uint32_t>(Arrival::ToLook));
  }
  Content saved_content() const {
    const Fd fd = Fd::adopt(open(saved().c_str(), O_RDONLY | O_CLOEXEC));
    return fd.valid() ? content_of(fd.raw()) : Content{};
  }
  std::size_t files_in_directory() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator{dir}, {}));
  }
};

TEST_F(ArrivedState, ItsRoomIsCutOffWhateverStandsAtItsEnd) {
  const Content image = image_of(make_arena(64_MiB, "what came", 7));
  for (const std::uint64_t length : {image.size(), std::size_t{0}, std::size_t{1}, image.size() - 1, image.size() + 1,
                                     image.size() + 299'992, SIZE_MAX, std::size_t{1} << 63}) {
    SCOPED_TRACE(length);
    start_another(64_MiB);
    OneImage device{with_room(image, length)};
    for (int again = 0; again < 2; ++again) {
      const auto fetched = fetch(device);
      ASSERT_TRUE(fetched) << to_string(fetched.error());
      EXPECT_EQ(arrival(), Arrival::Populated);
      EXPECT_GE(control->own_fd, 0) << "until it has arrived";
    }
    expect_arena("what came", 7, 64_MiB);
  }
  EXPECT_EQ(files_in_directory(), 0U) << "nothing had to be saved";
}

TEST_F(ArrivedState, OneThatCameBackSealedIsTakenAllTheSame) {
  const Content image = image_of(make_arena(64_MiB, "what came", 7));
  OneImage device{with_room(image, image.size())};
  // As Linux 7.3 brings it back that was made where vm.memfd_noexec is set.
  ASSERT_EQ(fcntl(device.image.raw(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE),
            0);
  for (int again = 0; again < 2; ++again) {
    const auto fetched = fetch(device);
    ASSERT_TRUE(fetched) << to_string(fetched.error());
    EXPECT_EQ(arrival(), Arrival::Populated);
  }
  expect_arena("what came", 7, 64_MiB);
}

TEST_F(ArrivedState, OfAnotherLuodIsSavedAsItCameAndTakenByThatOne) {
  const Content image = image_of(make_arena(8_MiB, "for another", 3));
  for (const Content& came : {image, with_room(image, image.size())}) {
    start_another(64_MiB);
    OneImage device{came};
    for (int again = 0; again < 2; ++again) {
      const auto refused = fetch(device);
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().code, EPROTO);
      EXPECT_NE(to_string(refused.error()).find(saved()), std::string::npos) << to_string(refused.error());
      EXPECT_EQ(arrival(), Arrival::ToLook);
    }
    EXPECT_EQ(device.asked, 1) << "then it is saved";
    EXPECT_EQ(files_in_directory(), 1U);
    expect_arena("another luod's", 2, 64_MiB);
    start_another(8_MiB);
    const auto taken = fetch(device);
    ASSERT_TRUE(taken) << to_string(taken.error());
    EXPECT_EQ(device.asked, 1);
    expect_arena("for another", 3, 8_MiB);
    forget_saved_state(*control);
    EXPECT_EQ(files_in_directory(), 0U);
  }
}

TEST_F(ArrivedState, DamagedItIsSavedAsItCame) {
  const Content good = image_of(make_arena(64_MiB, "what came", 2));
  for (const std::size_t at : {std::size_t{0}, std::size_t{100}, good.size() - 1}) {
    for (Content came : {good, with_room(good, good.size()), with_room(good, 0)}) {
      came[at] ^= std::byte{1};
      OneImage device{came};
      const auto refused = fetch(device);
      ASSERT_FALSE(refused) << at;
      EXPECT_EQ(refused.error().code, EBADMSG);
      // What is damaged in what it says of itself is not cut to what it says.
      const Content kept = saved_content();
      ASSERT_GE(kept.size(), good.size());
      EXPECT_TRUE(std::equal(kept.begin(), kept.end(), came.begin())) << at << ": all of it";
      if (at < 664) {
        EXPECT_EQ(kept.size(), came.size());
      }
      forget_saved_state(*control);
    }
  }
  for (const std::size_t size : {good.size() - 1, good.size() / 2, std::size_t{663}, std::size_t{1}, std::size_t{0}}) {
    OneImage device{Content{good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)}};
    EXPECT_EQ(fetch(device).error().code, EBADMSG) << size;
    EXPECT_EQ(saved_content().size(), size);
    forget_saved_state(*control);
  }
  expect_arena("the old one", 40, 64_MiB);
}

/// Runs `work` where /tmp/fetch-state-* of this test can be another file system. False: that is not allowed here.
bool in_own_mounts(const std::function<void()>& work) {
  const pid_t pid = fork();
  if (pid == 0) {
    if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) _exit(77);
    work();
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_TRUE(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77) << "see above";
  return WEXITSTATUS(status) != 77;
}

class NoRoom : public ArrivedState {
 protected:
  void expect_not_saved(int code) {
    for (int again = 0; again < 2; ++again) {
      const auto refused = fetch(device);
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().code, EPROTO);
      const std::string text = to_string(refused.error());
      EXPECT_NE(text.find("could not be saved"), std::string::npos) << text;
      EXPECT_NE(text.find(errno_text(code)), std::string::npos) << text;
      EXPECT_NE(text.find("SIGHUP"), std::string::npos) << text;
      EXPECT_EQ(files_in_directory(), 0U) << "nothing in part";
      EXPECT_EQ(arrival(), Arrival::ToLook);
      EXPECT_GE(control->own_fd, 0) << "the kernel has it still";
    }
    expect_arena("the old one", 40, 64_MiB);
  }
  void expect_saved() {
    EXPECT_EQ(fetch(device).error().code, EPROTO);
    EXPECT_EQ(saved_content(), came);
    EXPECT_EQ(files_in_directory(), 1U);
  }
  const Content came = image_of(make_arena(8_MiB, "for another", 3));
  OneImage device{came};
};

TEST_F(NoRoom, AFullFileSystem) {
  const bool allowed = in_own_mounts([&] {
    ASSERT_EQ(mount("tmpfs", dir.c_str(), "tmpfs", 0, "size=64k"), 0);
    ASSERT_GT(came.size(), 65536U);
    expect_not_saved(ENOSPC);
    ASSERT_EQ(mount("tmpfs", dir.c_str(), "tmpfs", MS_REMOUNT, "size=8m"), 0);
    expect_saved();
  });
  if (!allowed) GTEST_SKIP() << "no mounts of its own for this process";
}

TEST_F(NoRoom, AReadOnlyFileSystem) {
  const bool allowed = in_own_mounts([&] {
    ASSERT_EQ(mount("tmpfs", dir.c_str(), "tmpfs", MS_RDONLY, "size=8m"), 0);
    expect_not_saved(EROFS);
    ASSERT_EQ(mount("tmpfs", dir.c_str(), "tmpfs", MS_REMOUNT, "size=8m"), 0);
    expect_saved();
    // Saved, and read-only again: it is taken all the same.
    ASSERT_EQ(mount("tmpfs", dir.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, "size=8m"), 0);
    start_another(8_MiB);
    EXPECT_TRUE(fetch(device));
    expect_arena("for another", 3, 8_MiB);
  });
  if (!allowed) GTEST_SKIP() << "no mounts of its own for this process";
}

TEST_F(NoRoom, ALimitOfFileSizes) {
  signal(SIGXFSZ, SIG_IGN);  // as luod does
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  for (const rlim_t limit : {rlim_t{1}, came.size() - 1}) {
    const rlimit low{limit, before.rlim_max};
    // Its own memfd is a file as well, but for one that was made before.
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
    const auto refused = fetch(device);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    ASSERT_FALSE(refused);
    EXPECT_EQ(files_in_directory(), 0U) << to_string(refused.error());
    EXPECT_EQ(arrival(), Arrival::ToLook);
    expect_arena("the old one", 40, 64_MiB);
  }
  expect_saved();
}

TEST_F(NoRoom, NoDirectory) {
  std::filesystem::remove_all(dir);
  const auto refused = fetch(device);
  ASSERT_FALSE(refused);
  EXPECT_NE(to_string(refused.error()).find(errno_text(ENOENT)), std::string::npos) << to_string(refused.error());
  std::filesystem::create_directory(dir);
  expect_saved();
}

/// Whether it ended before stop n; else it was killed there.
bool killed_at_stop(int n, const std::function<bool()>& work) {
  const pid_t pid = fork();
  if (pid == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    _exit(work() ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  for (int stop = 0; WIFSTOPPED(status); ++stop) {
    if (stop == n) {
      kill(pid, SIGKILL);
      EXPECT_EQ(waitpid(pid, &status, 0), pid);
      return true;
    }
    ptrace(PTRACE_SYSCALL, pid, nullptr, nullptr);
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
  }
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "what it was to do failed";
  return false;
}

TEST_F(NoRoom, KilledAtAnySystemCallItIsSavedWholeOrNotAtAll) {
  int kills = 0, whole = 0;
  for (; killed_at_stop(kills, [&] { return !fetch(device); }); ++kills) {
    if (const Content there = saved_content(); std::filesystem::exists(saved())) {
      EXPECT_EQ(there, came) << kills;
      ++whole;
    }
    EXPECT_EQ(content_of(device.image.raw()), came) << kills;
    EXPECT_EQ(arrival(), Arrival::ToLook);
    expect_saved();
    if (HasFailure()) return;
    forget_saved_state(*control);
  }
  EXPECT_GT(kills, 20);
  EXPECT_GT(whole, 0);
  EXPECT_LT(whole, kills);
}

/// Small, so that each bit can be tried.
class SmallState : public ArrivedState {
 protected:
  SmallState() : ArrivedState{kSmall} {}
};

TEST_F(SmallState, EachWrongBitOfASavedOneIsNoticed) {
  Arena arena = make_arena(kSmall, "small", 0);
  const Content good = save(arena);
  ASSERT_LT(good.size(), 20'000U);
  start_another(kSmall);
  const Fd fd = Fd::adopt(open(saved().c_str(), O_RDWR | O_CLOEXEC));
  OneImage device{good};
  for (std::size_t at = 0; at < good.size(); ++at) {
    if (at >= 664 && good[at] == std::byte{0} && at % 8 != 0) continue;
    const bool each = at < 664 || good[at] != std::byte{0};  // of zeros between and in the data, some
    for (unsigned bit = 0; bit < (each ? 8 : 1); ++bit) {
      const auto wrong = good[at] ^ std::byte{1} << (each ? bit : at % 8);
      ASSERT_EQ(pwrite(fd.raw(), &wrong, 1, static_cast<off_t>(at)), 1);
      const auto refused = fetch(device);
      ASSERT_FALSE(refused) << at << ", bit " << bit;
      ASSERT_TRUE(refused.error().code == EBADMSG || refused.error().code == EPROTO) << to_string(refused.error());
    }
    ASSERT_EQ(pwrite(fd.raw(), &good[at], 1, static_cast<off_t>(at)), 1);
  }
  EXPECT_EQ(device.asked, 0) << "the one in the kernel is what was saved";
  EXPECT_EQ(saved_content(), good) << "left as it is";
  expect_arena("another luod's", 2, kSmall);
  EXPECT_TRUE(fetch(device));
  expect_arena("small", 0, kSmall);
}

TEST_F(SmallState, EachTruncationOfASavedOneIsNoticed) {
  Arena arena = make_arena(kSmall, "small", 0);
  const Content good = save(arena);
  start_another(kSmall);
  const Fd fd = Fd::adopt(open(saved().c_str(), O_RDWR | O_CLOEXEC));
  OneImage device{good};
  for (std::size_t size = good.size(); size-- > 0;) {
    ASSERT_EQ(ftruncate(fd.raw(), static_cast<off_t>(size)), 0);
    const auto refused = fetch(device);
    ASSERT_FALSE(refused) << size;
    ASSERT_EQ(refused.error().code, EBADMSG) << to_string(refused.error());
  }
  expect_arena("another luod's", 2, kSmall);
}

}  // namespace
}  // namespace luo::daemon
