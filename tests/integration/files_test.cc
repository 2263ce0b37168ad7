// Files through libluo and a real luod: errno in the order of Linux 7.3, batches, all kinds of files.
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <numeric>

#include <fstream>

#include "kho/hugetlb_testing.h"
#include "scenario.h"
#include "sys/process.h"

namespace luo::test {
namespace {

class Files : public testing::Test {
 protected:
  explicit Files(LuodOptions options = {}) : luod_{std::move(options)} {}
  void SetUp() override {
    ASSERT_TRUE(luod_.running()) << luod_.log();
    session_ = client_.create("s");
    ASSERT_TRUE(session_.valid()) << luo_last_error();
  }
  int preserve(FdRef file, std::uint64_t token) { return luo_preserve_fd(client_, session_.raw(), file.raw, token); }
  std::vector<std::uint64_t> tokens() {
    std::vector<std::uint64_t> out(2000);
    const int n = luo_session_tokens(client_, session_.raw(), out.data(), out.size());
    out.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
    return out;
  }
  Luod luod_;
  Client client_{luod_};
  Fd session_;
};

TEST_F(Files, TheTokenIsLookedAtBeforeTheDescriptor) {
  const Fd file = memfd_with("x");
  ASSERT_EQ(preserve(file, 1), 0);
  EXPECT_EQ(luo_preserve_fd(client_, session_.raw(), -1, 1), -EEXIST);
  EXPECT_EQ(luo_preserve_fd(client_, session_.raw(), -1, 2), -EBADF);
  EXPECT_EQ(luo_preserve_fd(client_, session_.raw(), 9999, 2), -EBADF);
  const Fd path_only = Fd::adopt(open("/proc/self/exe", O_PATH | O_CLOEXEC));
  EXPECT_EQ(preserve(path_only, 2), -EBADF);
  EXPECT_EQ(tokens(), std::vector<std::uint64_t>{1});
}

TEST_F(Files, OfABatchOnlyWhatIsOpenIsTaken) {
  const Fd good = memfd_with("x"), other = memfd_with("y");
  const auto path_of = [](const Fd& fd) {
    return Fd::adopt(open(fmt::format("/proc/self/fd/{}", fd.raw()).c_str(), O_PATH | O_CLOEXEC));
  };
  const Fd path_only = path_of(other), program = Fd::adopt(open("/proc/self/exe", O_PATH | O_CLOEXEC));
  const std::vector<int> fds{path_only.raw(), good.raw(), program.raw(), path_of(good).raw(), other.raw()};
  const std::vector<std::uint64_t> numbers{1, 2, 3, 4, 5};
  std::vector<int> errors(fds.size(), -1);
  EXPECT_EQ(luo_preserve_many(client_, session_.raw(), fds.data(), numbers.data(), errors.data(), fds.size()), 2);
  EXPECT_EQ(errors, (std::vector<int>{EBADF, 0, EBADF, EBADF, 0}));
  EXPECT_EQ(tokens(), (std::vector<std::uint64_t>{2, 5}));
}

TEST_F(Files, KindsThatNobodyTakesAreUnknown) {
  const Fd null = Fd::adopt(open("/dev/null", O_RDWR | O_CLOEXEC));
  const Fd epoll = Fd::adopt(epoll_create1(EPOLL_CLOEXEC));
  const Fd directory = Fd::adopt(open("/", O_RDONLY | O_CLOEXEC));
  for (const Fd* fd : {&null, &epoll, &directory}) EXPECT_EQ(preserve(*fd, 1), -ENOENT);
}

TEST_F(Files, TheSameFileTwiceIsBusy) {
  const Fd file = memfd_with("x"), other_session = client_.create("t");
  ASSERT_EQ(preserve(file, 1), 0);
  EXPECT_EQ(preserve(file, 2), -EBUSY);
  EXPECT_EQ(luo_preserve_fd(client_, other_session.raw(), file.raw(), 1), -EBUSY);
  const Fd again = Fd::adopt(open(fmt::format("/proc/self/fd/{}", file.raw()).c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_EQ(preserve(again, 2), -EBUSY) << "another open of the same inode";
  const Fd other = memfd_with("y");
  EXPECT_EQ(luo_preserve_fd(client_, other_session.raw(), other.raw(), 1), 0) << "a token is its session's own";
}

TEST_F(Files, ARetrievedButUnfinishedFileIsBusy) {
  const Fd file = memfd_with("x");
  ASSERT_EQ(preserve(file, 1), 0);
  cross(luod_);
  const Client after{luod_};
  const Fd outgoing = after.create("new"), incoming = after.retrieve("s");
  EXPECT_EQ(luo_preserve_fd(after, outgoing.raw(), file.raw(), 1), -EBUSY);
  ASSERT_EQ(luo_session_finish(after, incoming.raw()), 0);
  EXPECT_EQ(luo_preserve_fd(after, outgoing.raw(), file.raw(), 1), 0);
}

TEST_F(Files, AHolderThatDiedKeepsNothingBusy) {
  const Fd file = memfd_with("x");
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(in_fork([&] {
                const Client own{luod_};
                const Fd session = own.create("died");
                return luo_preserve_fd(own, session.raw(), file.raw(), 5) == 0 ? 0 : 1;
              }),
              0);
    ASSERT_EQ(preserve(file, 1), 0) << i << ": " << luo_last_error();
    ASSERT_EQ(luo_unpreserve_fd(client_, session_.raw(), 1), 0);
  }
}

TEST_F(Files, EveryTokenIsAllowed) {
  const Fd zero = memfd_with("zero"), most = memfd_with("most");
  ASSERT_EQ(preserve(zero, 0), 0);
  ASSERT_EQ(preserve(most, UINT64_MAX), 0);
  EXPECT_EQ(tokens(), (std::vector<std::uint64_t>{0, UINT64_MAX}));
  cross(luod_);
  const Client after{luod_};
  const Fd incoming = after.retrieve("s");
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(after, incoming.raw(), UINT64_MAX))), "most");
  EXPECT_EQ(content_of(Fd::adopt(luo_retrieve_fd(after, incoming.raw(), 0))), "zero");
  EXPECT_EQ(luo_retrieve_fd(after, incoming.raw(), 1), -ENOENT);
}

TEST_F(Files, UnpreserveAndRetrieveLookAtTheDirectionFirst) {
  const Fd file = memfd_with("x");
  ASSERT_EQ(preserve(file, 1), 0);
  EXPECT_EQ(luo_retrieve_fd(client_, session_.raw(), 1), -EINVAL);
  EXPECT_EQ(luo_retrieve_fd(client_, session_.raw(), 2), -EINVAL);
  EXPECT_EQ(luo_unpreserve_fd(client_, session_.raw(), 2), -ENOENT);
  cross(luod_);
  const Client after{luod_};
  const Fd incoming = after.retrieve("s");
  EXPECT_EQ(luo_unpreserve_fd(after, incoming.raw(), 1), -EINVAL);
  EXPECT_EQ(luo_preserve_fd(after, incoming.raw(), -1, 1), -EINVAL) << "before token and descriptor";
}

TEST_F(Files, RetrievingTwiceGivesTheSameOpenFile) {
  const Fd file = memfd_with("0123456789");
  lseek(file.raw(), 3, SEEK_SET);
  ASSERT_EQ(preserve(file, 1), 0);
  cross(luod_);
  const Client after{luod_};
  const Fd incoming = after.retrieve("s");
  const Fd first = Fd::adopt(luo_retrieve_fd(after, incoming.raw(), 1));
  const Fd second = Fd::adopt(luo_retrieve_fd(after, incoming.raw(), 1));
  ASSERT_TRUE(first.valid() && second.valid()) << luo_last_error();
  EXPECT_NE(first.raw(), second.raw());
  EXPECT_TRUE(same_open_file(first.raw(), second.raw()));
  EXPECT_EQ(lseek(first.raw(), 0, SEEK_CUR), 3);
  EXPECT_NE(fcntl(first.raw(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(Files, AfterFinishNothingIsThere) {
  const Fd file = memfd_with("x");
  ASSERT_EQ(preserve(file, 1), 0);
  cross(luod_);
  const Client after{luod_};
  const Fd incoming = after.retrieve("s");
  EXPECT_EQ(luo_session_finish(after, incoming.raw()), 0);
  EXPECT_EQ(luo_retrieve_fd(after, incoming.raw(), 1), -ENOENT);
  EXPECT_EQ(luo_session_finish(after, incoming.raw()), 0);
  EXPECT_EQ(luod_.status()["files"], 0);
}

TEST_F(Files, RenewKeepsFilesAndTokens) {
  const Fd file = memfd_with("x");
  ASSERT_EQ(preserve(file, 1), 0);
  EXPECT_EQ(luo_session_renew(client_, session_.raw()), -EINVAL);
  for (int round = 0; round < 3; ++round) {
    cross(luod_);
    const Client after{luod_};
    Fd incoming = after.retrieve("s");
    ASSERT_EQ(luo_session_renew(after, incoming.raw()), 0) << luo_last_error();
    EXPECT_EQ(luod_.show("s")["state"], "outgoing");
    EXPECT_EQ(luo_retrieve_fd(after, incoming.raw(), 1), -EINVAL);
    EXPECT_EQ(luo_preserve_fd(after, incoming.raw(), file.raw(), 2), -EBUSY);
    session_ = std::move(incoming);
  }
  EXPECT_EQ(luod_.status()["files"], 1);
}

class Batches : public Files, public testing::WithParamInterface<std::size_t> {};

TEST_P(Batches, PreserveAndRetrieveWithErrorsInTheMiddle) {
  const std::size_t n = GetParam();
  std::vector<Fd> files;
  std::vector<int> fds, errors(n, -1);
  std::vector<std::uint64_t> wanted(n);
  std::iota(wanted.begin(), wanted.end(), std::uint64_t{1000});
  for (std::size_t i = 0; i < n; ++i) {
    files.push_back(memfd_with(std::to_string(i)));
    fds.push_back(files.back().raw());
  }
  const Fd null = Fd::adopt(open("/dev/null", O_RDWR | O_CLOEXEC));
  fds[n / 2] = -1;
  fds[n / 3] = null.raw();
  fds[n / 4] = fds[0];
  wanted[n / 5] = wanted[0];
  ASSERT_EQ(luo_preserve_many(client_, session_.raw(), fds.data(), wanted.data(), errors.data(), n),
            static_cast<int>(n) - 4)
      << luo_last_error();
  for (std::size_t i = 0; i < n; ++i)
    EXPECT_EQ(errors[i], i == n / 2 ? EBADF : i == n / 3 ? ENOENT : i == n / 4 ? EBUSY : i == n / 5 ? EEXIST : 0) << i;
  EXPECT_EQ(tokens().size(), n - 4);
  cross(luod_);
  const int descriptors = open_descriptors(getpid());
  {
    const Client after{luod_};
    const Fd incoming = after.retrieve("s");
    std::vector<int> back(n, 0);
    ASSERT_EQ(luo_retrieve_many(after, incoming.raw(), wanted.data(), back.data(), n), static_cast<int>(n) - 3)
        << luo_last_error();
    for (std::size_t i = 0; i < n; ++i) {
      if (i == n / 2 || i == n / 3 || i == n / 4) {
        EXPECT_EQ(back[i], -ENOENT) << i;
        continue;
      }
      ASSERT_GE(back[i], 0) << i;
      const Fd file = Fd::adopt(back[i]);
      EXPECT_EQ(content_of(file), std::to_string(i == n / 5 ? 0 : i));
    }
  }
  EXPECT_EQ(open_descriptors(getpid()), descriptors);
}
INSTANTIATE_TEST_SUITE_P(Sizes, Batches, testing::Values(20, 253, 254, 1000));

TEST_F(Files, ObjectsOfTheKernelGoOnWhereTheyWere) {
  const Fd timer = Fd::adopt(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  itimerspec soon{};
  soon.it_value.tv_nsec = 50'000'000;
  ASSERT_EQ(timerfd_settime(timer.raw(), 0, &soon, nullptr), 0);
  const Fd watch = Fd::adopt(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  ASSERT_GE(inotify_add_watch(watch.raw(), luod_.dir().path().c_str(), IN_CREATE), 0);
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  const Fd process = Fd::adopt(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
  const std::string path = luod_.dir() / "file";
  const Fd file = Fd::adopt(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)),
           same = Fd::adopt(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::write(file.raw(), "0123456789", 10), 10);
  ASSERT_EQ(lseek(file.raw(), 4, SEEK_SET), 4);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  const Fd signals = Fd::adopt(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  const Fd* all[] = {&timer, &watch, &process, &file, &same, &signals};
  for (std::uint64_t i = 0; i < std::size(all); ++i) {
    ASSERT_EQ(preserve(*all[i], i), 0) << i << ": " << luo_last_error();
    EXPECT_EQ(preserve(*all[i], 100 + i), -EBUSY) << i;
  }
  const Fd terminal = Fd::adopt(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (terminal.valid()) {
    EXPECT_EQ(preserve(terminal, 50), -EOPNOTSUPP);
    EXPECT_NE(std::string{luo_last_error()}.find("login session"), std::string::npos) << luo_last_error();
  }
  const Ran updated = luoctl(luod_, {"update", "luod"});
  ASSERT_EQ(updated.status, 0) << updated.err;
  cross(luod_);
  std::ofstream{luod_.dir() / "created while nobody had the watch"};
  kill(child, SIGKILL);

  const Client after{luod_};
  const Fd incoming = after.retrieve("s");
  std::vector<Fd> back;
  for (std::uint64_t i = 0; i < std::size(all); ++i) {
    back.push_back(Fd::adopt(luo_retrieve_fd(after, incoming.raw(), i)));
    ASSERT_TRUE(back.back().valid()) << i << ": " << luo_last_error();
    EXPECT_TRUE(same_open_file(back.back().raw(), all[i]->raw())) << i;
  }
  EXPECT_TRUE(readable(back[0].raw())) << "the timer went off";
  EXPECT_TRUE(readable(back[1].raw())) << "the file was seen";
  EXPECT_TRUE(readable(back[2].raw())) << "the process has ended";
  waitpid(child, nullptr, 0);
  char rest[16] = {};
  EXPECT_EQ(::read(back[3].raw(), rest, sizeof rest), 6);
  EXPECT_STREQ(rest, "456789");
  EXPECT_EQ(::read(back[4].raw(), rest, 10), 10) << "an offset of its own";
}

TEST_F(Files, EveryKindCrosses) {
  const auto socket_of = [](int domain, int type) { return Fd::adopt(::socket(domain, type | SOCK_CLOEXEC, 0)); };
  // TCP: a listener with a connection in its backlog, and both ends of another.
  const Fd listener = socket_of(AF_INET, SOCK_STREAM);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(listener.raw(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(listen(listener.raw(), 8), 0);
  socklen_t length = sizeof at;
  getsockname(listener.raw(), reinterpret_cast<sockaddr*>(&at), &length);
  Fd far = socket_of(AF_INET, SOCK_STREAM), waiting = socket_of(AF_INET, SOCK_STREAM);
  ASSERT_EQ(connect(far.raw(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  Fd near = Fd::adopt(accept4(listener.raw(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_EQ(connect(waiting.raw(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(::write(far.raw(), "in flight", 9), 9);
  // UDP, Unix of three types, a Unix listener.
  Fd udp = socket_of(AF_INET, SOCK_DGRAM);
  sockaddr_in udp_at = at;
  udp_at.sin_port = 0;
  ASSERT_EQ(bind(udp.raw(), reinterpret_cast<sockaddr*>(&udp_at), sizeof udp_at), 0);
  std::vector<Fd> pairs;
  for (const int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
    pairs.push_back(Fd::adopt(ends[0]));
    pairs.push_back(Fd::adopt(ends[1]));
    ASSERT_EQ(::write(ends[0], "hello", 5), 5);
  }
  Fd unix_listener = socket_of(AF_UNIX, SOCK_STREAM);
  sockaddr_un path{};
  path.sun_family = AF_UNIX;
  (luod_.dir() / "u").copy(path.sun_path, sizeof path.sun_path - 1);
  ASSERT_EQ(bind(unix_listener.raw(), reinterpret_cast<sockaddr*>(&path), sizeof path), 0);
  ASSERT_EQ(listen(unix_listener.raw(), 8), 0);
  const Fd event = Fd::adopt(eventfd(5, EFD_CLOEXEC)), other_event = Fd::adopt(eventfd(7, EFD_CLOEXEC));
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const Fd pipe_read = Fd::adopt(ends[0]), pipe_write = Fd::adopt(ends[1]);
  const Fd memory = memfd_with("memory");

  std::vector<const Fd*> all{&listener,      &near,  &udp,         &pairs[1],  &pairs[3],   &pairs[5],
                             &unix_listener, &event, &other_event, &pipe_read, &pipe_write, &memory};
  for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(preserve(*all[i], i), 0) << i << ": " << luo_last_error();
  near.close();
  for (const std::size_t i : {1U, 3U, 5U}) pairs[i].close();
  udp.close();
  unix_listener.close();
  cross(luod_);
  luod_.kill_worker();

  const Client after{luod_};
  const Fd incoming = after.retrieve("s");
  ASSERT_TRUE(incoming.valid()) << luo_last_error();
  std::vector<Fd> back;
  for (std::size_t i = 0; i < all.size(); ++i) {
    back.push_back(Fd::adopt(luo_retrieve_fd(after, incoming.raw(), i)));
    ASSERT_TRUE(back.back().valid()) << i << ": " << luo_last_error();
  }
  char buffer[64] = {};
  EXPECT_EQ(::read(back[1].raw(), buffer, sizeof buffer), 9);
  EXPECT_EQ(std::string(buffer), "in flight");
  const Fd accepted = Fd::adopt(accept4(back[0].raw(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(accepted.valid());
  for (const std::size_t i : {3U, 4U, 5U}) {
    char text[8] = {};
    EXPECT_EQ(::read(back[i].raw(), text, sizeof text), 5) << i;
    EXPECT_STREQ(text, "hello") << i;
  }
  Fd to_listener = socket_of(AF_UNIX, SOCK_STREAM);
  EXPECT_EQ(connect(to_listener.raw(), reinterpret_cast<sockaddr*>(&path), sizeof path), 0);
  eventfd_t value = 0;
  EXPECT_EQ(eventfd_read(back[7].raw(), &value), 0);
  EXPECT_EQ(value, 5U);
  EXPECT_EQ(eventfd_read(back[8].raw(), &value), 0);
  EXPECT_EQ(value, 7U);
  EXPECT_EQ(::write(back[10].raw(), "p", 1), 1);
  EXPECT_EQ(::read(back[9].raw(), buffer, 1), 1);
  EXPECT_EQ(content_of(back[11]), "memory");
  EXPECT_EQ(luo_session_finish(after, incoming.raw()), 0);
}

TEST_F(Files, HugetlbMemoryCrosses) {
  const kho::HugetlbPool pool{1};
  if (!pool.why().empty()) GTEST_SKIP() << pool.why();
  const auto map = [](const Fd& fd) {
    return static_cast<char*>(mmap(nullptr, kho::kHugeBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.raw(), 0));
  };
  Fd memory = Fd::adopt(memfd_create("huge", MFD_CLOEXEC | kho::HugetlbPool::kMemfdFlags));
  ASSERT_EQ(ftruncate(memory.raw(), kho::kHugeBytes), 0);
  char* content = map(memory);
  ASSERT_NE(content, MAP_FAILED);
  std::strcpy(content + 1'000'000, "in the huge page");
  munmap(content, kho::kHugeBytes);
  struct stat before {};
  struct stat after_it {};
  ASSERT_EQ(fstat(memory.raw(), &before), 0);
  ASSERT_EQ(preserve(memory, 1), 0) << luo_last_error();
  memory.close();
  cross(luod_);
  luod_.kill_worker();

  const Client after{luod_};
  const Fd incoming = after.retrieve("s");
  ASSERT_TRUE(incoming.valid()) << luo_last_error();
  memory = Fd::adopt(luo_retrieve_fd(after, incoming.raw(), 1));
  ASSERT_TRUE(memory.valid()) << luo_last_error();
  ASSERT_EQ(fstat(memory.raw(), &after_it), 0);
  EXPECT_EQ(after_it.st_ino, before.st_ino);
  EXPECT_EQ(after_it.st_blksize, static_cast<blksize_t>(kho::kHugeBytes));
  content = map(memory);
  ASSERT_NE(content, MAP_FAILED);
  EXPECT_STREQ(content + 1'000'000, "in the huge page");
  munmap(content, kho::kHugeBytes);
  EXPECT_EQ(luo_session_finish(after, incoming.raw()), 0);
}

TEST_F(Files, TwoEventfdsAreTwoFilesAndOneTwiceIsBusy) {
  const Fd one = Fd::adopt(eventfd(0, EFD_CLOEXEC)), two = Fd::adopt(eventfd(0, EFD_CLOEXEC));
  const Fd copy = Fd::adopt(dup(one.raw()));
  EXPECT_EQ(preserve(one, 1), 0);
  EXPECT_EQ(preserve(two, 2), 0);
  EXPECT_EQ(preserve(copy, 3), -EBUSY);
}

TEST_F(Files, LuodsOwnObjectsAreRefused) {
  const Fd other = client_.create("other");
  EXPECT_EQ(preserve(other, 1), -ENOENT) << "a session";
  EXPECT_EQ(preserve(session_, 1), -ENOENT) << "the session in itself";
  const RawClient connection = raw_client(luod_);
  EXPECT_EQ(preserve(connection.socket(), 1), -ENOENT) << "a connection";
  // The arena and the listener, as root can get at them.
  const pid_t keeper = luod_.keeper();
  const Fd pidfd = *open_pidfd(keeper);
  int arena = -1, listener = -1;
  for (int number = 3; number < 64; ++number) {
    char target[128] = {};
    if (readlink(fmt::format("/proc/{}/fd/{}", keeper, number).c_str(), target, sizeof target - 1) < 0) continue;
    Fd got = Fd::adopt(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.raw(), number, 0)));
    if (!got.valid()) continue;
    int listening = 0;
    socklen_t size = sizeof listening;
    if (std::string_view{target}.find("luod-arena") != std::string_view::npos) {
      arena = preserve(got, 1);
      const Fd again = Fd::adopt(open(fmt::format("/proc/{}/fd/{}", keeper, number).c_str(), O_RDWR | O_CLOEXEC));
      EXPECT_EQ(preserve(again, 1), -ENOENT) << "the arena, opened once more";
    } else if (getsockopt(got.raw(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening != 0) {
      listener = preserve(got, 1);
    }
  }
  EXPECT_EQ(arena, -ENOENT);
  EXPECT_EQ(listener, -ENOENT);
  EXPECT_TRUE(tokens().empty());
}

class KernelKinds : public Files {
 protected:
  KernelKinds() : Files{LuodOptions{.arguments = {"--handlers", "memfd"}}} {}
};

TEST_F(KernelKinds, OnlyMemfds) {
  const Fd event = Fd::adopt(eventfd(0, EFD_CLOEXEC)), memory = memfd_with("x");
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const Fd left = Fd::adopt(ends[0]), right = Fd::adopt(ends[1]);
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const Fd r = Fd::adopt(ends[0]), w = Fd::adopt(ends[1]);
  for (const Fd* fd : {&event, &left, &r, &w}) EXPECT_EQ(preserve(*fd, 1), -ENOENT);
  EXPECT_EQ(preserve(memory, 1), 0);
}

TEST_F(Files, SealsCross) {
  const Fd file = Fd::adopt(memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::write(file.raw(), "s", 1), 1);
  ASSERT_EQ(fcntl(file.raw(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
  ASSERT_EQ(preserve(file, 1), 0);
  ASSERT_EQ(fcntl(file.raw(), F_ADD_SEALS, F_SEAL_WRITE), 0);  // after preserve, before freeze
  cross(luod_);
  const Client after{luod_};
  const Fd incoming = after.retrieve("s"), back = Fd::adopt(luo_retrieve_fd(after, incoming.raw(), 1));
  EXPECT_EQ(fcntl(back.raw(), F_GET_SEALS), F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE);
}

TEST_F(Files, NothingLeaksInLuod) {
  const std::string before = luod_.state();
  for (int i = 0; i < 100; ++i) {
    const Fd file = memfd_with("x");
    ASSERT_EQ(preserve(file, 1), 0);
    EXPECT_EQ(preserve(file, 2), -EBUSY);
    EXPECT_EQ(preserve(file, 1), -EEXIST);
    ASSERT_EQ(luo_unpreserve_fd(client_, session_.raw(), 1), 0);
  }
  EXPECT_EQ(luod_.state(), before);
}

}  // namespace
}  // namespace luo::test
