// The handlers on real kernel objects, through the engine where it decides (identity, errno), alone elsewhere.
#include "handlers/handlers.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/kvm.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "luo/engine.h"

namespace luo {
namespace {

using ::testing::HasSubstr;

FileInfo info_of(const Fd& fd) {
  FileInfo info{fd.raw(), {}};
  EXPECT_EQ(fstat(fd.raw(), &info.st), 0);
  return info;
}
Fd duplicate(const Fd& fd) { return Fd::adopt(fcntl(fd.raw(), F_DUPFD_CLOEXEC, 0)); }
Fd memfd(unsigned flags = MFD_CLOEXEC) { return Fd::adopt(memfd_create("test", flags)); }
Fd event() { return Fd::adopt(eventfd(0, EFD_CLOEXEC)); }
Fd sock(int domain, int type, int protocol = 0) { return Fd::adopt(socket(domain, type | SOCK_CLOEXEC, protocol)); }
struct PipeEnds {
  Fd read, write;
};
PipeEnds pipe_ends() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
  return {Fd::adopt(ends[0]), Fd::adopt(ends[1])};
}
/// A folder of the tests' own, on a tmpfs.
struct ShmFolder {
  ShmFolder() { EXPECT_NE(mkdtemp(path), nullptr); }
  ~ShmFolder() {
    unlink((std::string{path} + "/f").c_str());
    rmdir(path);
  }
  char path[32] = "/dev/shm/luo-handlers-XXXXXX";
};

struct Handlers : ::testing::Test {
  Handlers() : set{*make_handlers("all")} {}

  std::string_view taker(const Fd& fd) const {
    EXPECT_TRUE(fd.valid());
    const Handler* handler = set->registry().for_file(info_of(fd));
    return handler == nullptr ? "none" : handler->name();
  }
  Handler& handler(std::string_view name) const { return *set->registry().find(name); }
  /// Preserves `one`, then asks for it back with the file that `two` is.
  Result<> comes_back_as(std::string_view name, const Fd& one, const Fd& two) const {
    const auto data = handler(name).preserve(info_of(one), SessionId{1}, Token{1});
    EXPECT_TRUE(data.has_value()) << to_string(data.error());
    return handler(name).retrieve({two.raw(), Token{1}, *data});
  }
  std::unique_ptr<HandlerSet> set;
};

// --- the choice ---------------------------------------------------------------------------------------

TEST(MakeHandlers, TakesAllOrAList) {
  EXPECT_EQ((*make_handlers("all"))->registry().all().size(), 11U);
  const auto two = *make_handlers("pipe,memfd");
  ASSERT_EQ(two->registry().all().size(), 2U);
  EXPECT_EQ(two->registry().all()[0]->name(), "pipe-v1");
  EXPECT_EQ(two->registry().all()[1]->name(), "memfd-v1");
}

TEST(MakeHandlers, RefusesWhatItDoesNotKnow) {
  for (const char* list : {"", "memfd,", ",memfd", "memfd,memfd", "disk", "memfd, socket", "all,memfd"}) {
    const auto made = make_handlers(list);
    ASSERT_FALSE(made.has_value()) << list;
    EXPECT_EQ(made.error().code, EINVAL);
  }
  EXPECT_THAT(make_handlers("disk").error().what, HasSubstr("'disk'; known are: all, memfd,socket,eventfd,pipe"));
}

// --- which files --------------------------------------------------------------------------------------

TEST_F(Handlers, TakeSharedMemoryWithoutAName) {
  EXPECT_EQ(taker(memfd()), "memfd-v1");
  EXPECT_EQ(taker(memfd(MFD_CLOEXEC | MFD_ALLOW_SEALING)), "memfd-v1");
  ShmFolder folder;
  const Fd tmpfile = Fd::adopt(open(folder.path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_EQ(taker(tmpfile), "memfd-v1");
  const std::string path = std::string{folder.path} + "/f";
  const Fd linked = Fd::adopt(open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_EQ(taker(linked), "file-v1");
  unlink(path.c_str());
  EXPECT_EQ(taker(linked), "memfd-v1");
  const Fd directory = Fd::adopt(open(folder.path, O_DIRECTORY | O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(taker(directory), "none");
}

TEST_F(Handlers, HugePagesAreFilesLikeOthers) {
  const Fd huge = memfd(MFD_CLOEXEC | MFD_HUGETLB);
  if (!huge.valid()) GTEST_SKIP() << "this kernel has no hugetlb memfds";
  EXPECT_EQ(taker(huge), "file-v1");
  EXPECT_TRUE(comes_back_as("file-v1", huge, duplicate(huge)).has_value());
  EXPECT_EQ(comes_back_as("file-v1", huge, memfd(MFD_CLOEXEC | MFD_HUGETLB)).error().code, ESTALE) << "another one";
  EXPECT_EQ(comes_back_as("file-v1", huge, memfd()).error().code, ESTALE) << "no huge pages";
}

TEST_F(Handlers, TakeUnlinkedFilesOfOtherFileSystemsAsFiles) {
  char path[] = "/var/tmp/luo-handlers-XXXXXX";
  const Fd file = Fd::adopt(mkostemp(path, O_CLOEXEC));
  ASSERT_TRUE(file.valid());
  unlink(path);
  struct statfs fs {};
  ASSERT_EQ(fstatfs(file.raw(), &fs), 0);
  if (fs.f_type == TMPFS_MAGIC) GTEST_SKIP() << "/var/tmp is a tmpfs here";
  EXPECT_EQ(taker(file), "file-v1");
}

TEST_F(Handlers, TakeUnixTcpAndUdpSockets) {
  for (const int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) EXPECT_EQ(taker(sock(AF_UNIX, type)), "socket-v1");
  for (const int domain : {AF_INET, AF_INET6}) {
    EXPECT_EQ(taker(sock(domain, SOCK_STREAM)), "socket-v1");
    EXPECT_EQ(taker(sock(domain, SOCK_DGRAM)), "socket-v1");
  }
  EXPECT_EQ(taker(sock(AF_NETLINK, SOCK_RAW)), "none");
}

TEST_F(Handlers, RefuseRawSockets) {
  const Fd raw = sock(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  const Fd packet = sock(AF_PACKET, SOCK_RAW);
  if (!raw.valid() || !packet.valid()) GTEST_SKIP() << "needs CAP_NET_RAW";
  EXPECT_EQ(taker(raw), "none");
  EXPECT_EQ(taker(packet), "none");
}

Fd timer(int clock = CLOCK_MONOTONIC) { return Fd::adopt(timerfd_create(clock, TFD_CLOEXEC)); }
Fd signals() {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  return Fd::adopt(signalfd(-1, &mask, SFD_CLOEXEC));
}
Fd watches() { return Fd::adopt(inotify_init1(IN_CLOEXEC)); }
Fd pidfd_of(pid_t pid) { return Fd::adopt(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

TEST_F(Handlers, TakeTheAnonymousFilesThatTheyKnow) {
  EXPECT_EQ(taker(event()), "eventfd-v1");
  EXPECT_EQ(taker(timer()), "timerfd-v1");
  EXPECT_EQ(taker(signals()), "signalfd-v1");
  EXPECT_EQ(taker(watches()), "inotify-v1");
  EXPECT_EQ(taker(pidfd_of(getpid())), "pidfd-v1");
  EXPECT_EQ(taker(Fd::adopt(epoll_create1(EPOLL_CLOEXEC))), "none");
}

TEST_F(Handlers, AnonymousFilesAreRecognised) {
  EXPECT_TRUE(comes_back_as("timerfd-v1", timer(), timer()).has_value())
      << "two of a kind are told apart by kcmp alone";
  EXPECT_EQ(comes_back_as("timerfd-v1", timer(), timer(CLOCK_REALTIME)).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("timerfd-v1", timer(), watches()).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("signalfd-v1", signals(), timer()).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("inotify-v1", watches(), memfd()).error().code, ESTALE);
}

TEST_F(Handlers, PidfdsAreRecognisedByTheProcess) {
  const Fd mine = pidfd_of(getpid()), parent = pidfd_of(getppid());
  EXPECT_TRUE(comes_back_as("pidfd-v1", mine, pidfd_of(getpid())).has_value());
  EXPECT_EQ(comes_back_as("pidfd-v1", mine, parent).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("pidfd-v1", mine, memfd()).error().code, ESTALE);
  const pid_t child = fork();
  if (child == 0) _exit(0);
  const Fd ended = pidfd_of(child);
  const auto data = handler("pidfd-v1").preserve(info_of(ended), SessionId{1}, Token{1});
  ASSERT_TRUE(data.has_value());
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(handler("pidfd-v1").retrieve({ended.raw(), Token{1}, *data}).has_value()) << "it has ended since";
}

TEST_F(Handlers, FilesAreRecognisedByInodeAndMode) {
  ShmFolder folder;
  const std::string path = std::string{folder.path} + "/f";
  const Fd file = Fd::adopt(open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_TRUE(comes_back_as("file-v1", file, file).has_value());
  EXPECT_EQ(comes_back_as("file-v1", file, Fd::adopt(open(path.c_str(), O_RDONLY | O_CLOEXEC))).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("file-v1", file, memfd()).error().code, ESTALE);
}

TEST_F(Handlers, RefusedOnesAreToldWhy) {
  const Fd terminal = Fd::adopt(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!terminal.valid()) GTEST_SKIP() << "no terminals here";
  EXPECT_EQ(taker(terminal), "refused-v1");
  const auto refused = handler("refused-v1").preserve(info_of(terminal), SessionId{1}, Token{1});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, EOPNOTSUPP);
  EXPECT_THAT(refused.error().what, HasSubstr("a terminal belongs to its login session"));
}

TEST_F(Handlers, VirtualMachinesAreRefused) {
  const Fd kvm = Fd::adopt(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm.valid()) GTEST_SKIP() << "no KVM here";
  const Fd machine = Fd::adopt(ioctl(kvm.raw(), KVM_CREATE_VM, 0));
  if (!machine.valid()) GTEST_SKIP() << "no KVM here";
  EXPECT_EQ(taker(machine), "refused-v1");
}

TEST_F(Handlers, TunIsKnownByItsName) {
  const Fd tun = Fd::adopt(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (!tun.valid()) GTEST_SKIP() << "no /dev/net/tun here";
  EXPECT_EQ(taker(tun), "device-v1");
  EXPECT_TRUE(comes_back_as("device-v1", tun, tun).has_value());
  EXPECT_EQ(comes_back_as("device-v1", tun, Fd::adopt(open("/dev/null", O_RDWR | O_CLOEXEC))).error().code, ESTALE);
}

TEST_F(Handlers, TakePipesButNoFifoWithAName) {
  const PipeEnds ends = pipe_ends();
  EXPECT_EQ(taker(ends.read), "pipe-v1");
  EXPECT_EQ(taker(ends.write), "pipe-v1");
  ShmFolder folder;
  const std::string path = std::string{folder.path} + "/f";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(taker(Fd::adopt(open(path.c_str(), O_RDWR | O_CLOEXEC))), "none");
}

TEST_F(Handlers, RefuseDevices) { EXPECT_EQ(taker(Fd::adopt(open("/dev/null", O_RDWR | O_CLOEXEC))), "none"); }

// --- memfd --------------------------------------------------------------------------------------------

TEST_F(Handlers, MemfdHasALimitOf32BitsOfPages) {
  const auto page = static_cast<off_t>(sysconf(_SC_PAGESIZE));
  const Fd fd = memfd();
  const off_t limit = page * 0xffffffff;
  ASSERT_EQ(ftruncate(fd.raw(), limit), 0);
  EXPECT_TRUE(handler("memfd-v1").preserve(info_of(fd), SessionId{1}, Token{1}).has_value());
  ASSERT_EQ(ftruncate(fd.raw(), limit + 1), 0);
  const auto refused = handler("memfd-v1").preserve(info_of(fd), SessionId{1}, Token{1});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, EFBIG);
}

TEST_F(Handlers, MemfdIsRecognisedByInodeAndKeepsItsSeals) {
  const Fd fd = memfd(MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_GROW), 0);
  EXPECT_TRUE(comes_back_as("memfd-v1", fd, fd).has_value());
  const auto other = comes_back_as("memfd-v1", fd, memfd());
  ASSERT_FALSE(other.has_value());
  EXPECT_EQ(other.error().code, ESTALE);
  // A seal that comes later is no damage.
  const auto data = handler("memfd-v1").preserve(info_of(fd), SessionId{1}, Token{1});
  ASSERT_EQ(fcntl(fd.raw(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_TRUE(handler("memfd-v1").retrieve({fd.raw(), Token{1}, *data}).has_value());
  EXPECT_EQ(fcntl(fd.raw(), F_GET_SEALS), F_SEAL_GROW | F_SEAL_SHRINK);
}

// --- the others ---------------------------------------------------------------------------------------

TEST_F(Handlers, SocketIsRecognisedByItsCookie) {
  const Fd listener = sock(AF_INET, SOCK_STREAM);
  EXPECT_TRUE(comes_back_as("socket-v1", listener, listener).has_value());
  EXPECT_EQ(comes_back_as("socket-v1", listener, sock(AF_INET, SOCK_STREAM)).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("socket-v1", listener, memfd()).error().code, ENOTSOCK);
  const auto data = handler("socket-v1").preserve(info_of(listener), SessionId{1}, Token{1});
  ASSERT_EQ((*data)[3], 0U);
  ASSERT_EQ(listen(listener.raw(), 1), 0);
  EXPECT_TRUE(handler("socket-v1").retrieve({listener.raw(), Token{1}, *data}).has_value());
  const auto frozen = handler("socket-v1").freeze({listener.raw(), Token{1}, *data});
  ASSERT_TRUE(frozen.has_value());
  EXPECT_EQ((*frozen)[3], 1U);
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const Fd a = Fd::adopt(pair[0]);
  const Fd b = Fd::adopt(pair[1]);
  EXPECT_TRUE(comes_back_as("socket-v1", a, duplicate(a)).has_value());
  EXPECT_EQ(comes_back_as("socket-v1", a, b).error().code, ESTALE);
}

TEST_F(Handlers, EventfdIsRecognisedByItsId) {
  const Fd a = event();
  const Fd b = event();
  EXPECT_TRUE(comes_back_as("eventfd-v1", a, duplicate(a)).has_value());
  EXPECT_EQ(comes_back_as("eventfd-v1", a, b).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("eventfd-v1", a, memfd()).error().code, ESTALE);
}

TEST_F(Handlers, PipeIsRecognisedByInodeAndEnd) {
  const PipeEnds p = pipe_ends();
  const PipeEnds q = pipe_ends();
  EXPECT_TRUE(comes_back_as("pipe-v1", p.read, duplicate(p.read)).has_value());
  EXPECT_EQ(comes_back_as("pipe-v1", p.read, p.write).error().code, ESTALE);
  EXPECT_EQ(comes_back_as("pipe-v1", p.read, q.read).error().code, ESTALE);
}

// --- through the engine -------------------------------------------------------------------------------

struct WithEngine : Handlers {
  WithEngine()
      : arena{*kho::Arena::create({.name = "handlers-test", .layout = Engine::kLayout, .max_size = 64_MiB})},
        engine{*Engine::open(arena, set->registry(), nullptr)} {
    PipeEnds ends = pipe_ends();
    client = std::move(ends.read);
    struct stat st {};
    fstat(client.raw(), &st);
    Change change{arena};
    char name[64] = "s";
    id = *engine.create_session(change, std::span<const char, 64>{name},
                                {ends.write.release(), -1, st.st_ino, true, PeerId{1}}, {}, 0);
    change.commit();
  }
  ~WithEngine() {
    Change change{arena};
    engine.holder_closed(change, id, Role::Owner);
    change.commit();
  }
  int preserve(std::uint64_t token, Fd fd) {
    Change change{arena};
    const auto done = engine.preserve(change, id, {Token{token}, fd.raw(), 0});
    change.commit();
    if (!done) return done.error().code;
    (void)fd.release();
    return 0;
  }
  kho::Arena arena;
  Engine engine;
  Fd client;
  SessionId id;
};

TEST_F(WithEngine, EachObjectIsTakenOnceAndTheirLikesBeside) {
  const Fd m = memfd();
  const Fd e1 = event();
  const Fd e2 = event();
  const Fd s = sock(AF_UNIX, SOCK_STREAM);
  const PipeEnds p = pipe_ends();
  std::uint64_t token = 0;
  for (const Fd* fd : {&m, &e1, &e2, &s, &p.read, &p.write}) EXPECT_EQ(preserve(token++, duplicate(*fd)), 0);
  for (const Fd* fd : {&m, &e1, &e2, &s, &p.read, &p.write}) EXPECT_EQ(preserve(token++, duplicate(*fd)), EBUSY);
  EXPECT_EQ(preserve(token++, Fd::adopt(open("/dev/null", O_RDWR | O_CLOEXEC))), ENOENT);
  EXPECT_EQ(preserve(token++, Fd::adopt(open("/proc/self/exe", O_PATH | O_CLOEXEC))), EBADF);
  EXPECT_TRUE(engine.check().has_value());
  EXPECT_EQ(engine.file_count(), 6U);
}

TEST(Plugins, WhatCannotBeLoadedIsRefusedWithTheReason) {
  const auto refused = [](const std::string& list) {
    const auto made = make_handlers(list);
    return made ? std::string{"accepted"} : to_string(made.error());
  };
  EXPECT_THAT(refused("memfd,/nowhere/mine.so"), ::testing::HasSubstr("/nowhere/mine.so"));
  EXPECT_THAT(refused("/proc/self/exe"), ::testing::HasSubstr("/proc/self/exe"));
  EXPECT_THAT(refused("libm.so.6"), ::testing::HasSubstr("whole path"));
  void* math = dlopen("libm.so.6", RTLD_NOW);
  ASSERT_NE(math, nullptr);
  Dl_info where{};
  ASSERT_NE(dladdr(dlsym(math, "cos"), &where), 0);
  EXPECT_THAT(refused(where.dli_fname), ::testing::HasSubstr("luo_plugin"));
  EXPECT_EQ(refused("all"), "accepted");
  EXPECT_EQ((*make_handlers("all"))->registry().all().size(), 11U);
}

}  // namespace
}  // namespace luo
