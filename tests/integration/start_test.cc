// How luod starts, whom it refuses, whom it tells, and what it does with a damaged arena.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>

#include "scenario.h"
#include "sys/packet_socket.h"
#include "sys/process.h"

namespace luo::test {
namespace {

sockaddr_un address_of(const std::string& path) {
  sockaddr_un at{};
  at.sun_family = AF_UNIX;
  path.copy(at.sun_path, sizeof at.sun_path - 1);
  return at;
}

/// Has no luod of its own yet, but a place for one.
LuodOptions in(const TempDir& dir, std::vector<std::string> more = {}) {
  LuodOptions options{.environment = {{"LUO_SOCKET", dir / "luod.sock"}}, .own_directory = false};
  options.arguments = {"--state-dir", dir.path()};
  options.arguments.insert(options.arguments.end(), more.begin(), more.end());
  return options;
}

TEST(Start, ASecondOneIsRefusedAndToldTheFirstOnesPid) {
  const TempDir dir;
  Luod first{in(dir)};
  ASSERT_TRUE(first.running()) << first.log();
  const Ran second = run_program({program("luod"), "--state-dir", dir.path(), "--socket", dir / "another.sock"});
  EXPECT_EQ(second.status, 1);
  EXPECT_NE(second.err.find(std::to_string(first.keeper())), std::string::npos) << second.err;
  // Also when the keeper is another one by now.
  const pid_t keeper = first.keeper();
  first.kill_keeper();
  while (first.keeper() == keeper) sched_yield();
  const Ran third = run_program({program("luod"), "--state-dir", dir.path()});
  EXPECT_EQ(third.status, 1);
  EXPECT_NE(third.err.find(std::to_string(first.keeper())), std::string::npos) << third.err;
}

TEST(Start, AStaleSocketIsNoObstacle) {
  const TempDir dir;
  {
    Luod first{in(dir)};
    ASSERT_TRUE(first.running()) << first.log();
    kill(first.keeper(), SIGSTOP);  // so that nobody starts another worker
    const pid_t keeper = first.keeper();
    first.kill_worker();
    kill_and_wait(keeper);
    ASSERT_TRUE(std::filesystem::exists(dir / "luod.sock"));
  }
  Luod second{in(dir)};
  EXPECT_TRUE(second.running()) << second.log();
}

TEST(Start, AFileInThePlaceOfTheSocketIsLeftAlone) {
  const TempDir dir;
  std::ofstream{dir / "luod.sock"} << "precious";
  const Ran ran = run_program({program("luod"), "--state-dir", dir.path()});
  EXPECT_EQ(ran.status, 1);
  EXPECT_NE(ran.err.find("luod.sock"), std::string::npos) << ran.err;
  std::string text;
  std::getline(std::ifstream{dir / "luod.sock"} >> std::ws, text);
  EXPECT_EQ(text, "precious");
}

TEST(Start, WrongUsageSaysSo) {
  EXPECT_EQ(run_program({program("luod"), "--nonsense"}).status, 2);
  const TempDir dir;
  const Ran ran = run_program({program("luod"), "--state-dir", dir.path(), "--handlers", "memfd,teapot"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_NE(ran.err.find("teapot"), std::string::npos) << ran.err;
  EXPECT_EQ(run_program({program("luod"), "--help"}).status, 0);
}

TEST(Start, LuoSocketIsHonoured) {
  const TempDir dir, elsewhere;
  LuodOptions options{.environment = {{"LUO_SOCKET", elsewhere / "s"}}, .own_directory = false};
  options.arguments = {"--state-dir", dir.path()};
  Luod luod{options};
  ASSERT_TRUE(luod.running()) << luod.log();
  EXPECT_EQ(luod.status()["socket"], elsewhere / "s");
  const Ran ran = run_program({program("luoctl"), "--json", "status"}, {{"LUO_SOCKET", elsewhere / "s"}});
  EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
}

TEST(Start, AnyUserHasOneInItsRuntimeDirectory) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const TempDir runtime;
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(chown(runtime.path().c_str(), kNobody, kNobody), 0);
  const Fd log = Fd::adopt(open((runtime / "log").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  // The program may lie where nobody else can look.
  const Fd image = Fd::adopt(open(program("luod").c_str(), O_RDONLY | O_CLOEXEC));
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    setenv("XDG_RUNTIME_DIR", runtime.path().c_str(), 1);
    unsetenv("LUO_SOCKET");
    dup2(log.raw(), 2);
    if (setgid(kNobody) != 0 || setuid(kNobody) != 0) _exit(100);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    const char* const argv[] = {"luod", nullptr};
    (void)exec_fd(image, argv, environ);
    _exit(101);
  }
  const std::string socket = runtime / "luo/luod.sock";
  const auto pidfd = open_pidfd(child);
  Result<RawClient> root = RawClient::connect(socket);
  for (int i = 0; i < 30'000 && !root && open_descriptors(child) >= 0; ++i) {
    usleep(1000);  // there is nothing to wait on but the path
    root = RawClient::connect(socket);
  }
  ASSERT_TRUE(root.has_value()) << content_of(log);
  ASSERT_TRUE(root->hello().has_value());
  const Client client{socket};
  const Fd session = client.create("s"), file = memfd_with("x");
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0) << luo_last_error();
  const Ran update =
      run_program({program("luoctl"), "--socket", socket, "--json", "update", "luod", "--image", program("luod")});
  EXPECT_EQ(update.status, 0) << update.out << update.err;
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), -EEXIST) << luo_last_error();
  ASSERT_TRUE(root->post(wire::Command::Stop, 0, plain_arg()).has_value());
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << content_of(log);
}

TEST(Start, TheSoftLimitOfDescriptorsIsRaised) {
  Luod luod{LuodOptions{.nofile = 4096, .soft_nofile = 64}};
  ASSERT_TRUE(luod.running()) << luod.log();
  EXPECT_GT(luod.status()["open_files_limit"].get<int>(), 4000);
  luod.kill_worker();
  EXPECT_GT(luod.status()["open_files_limit"].get<int>(), 4000);
}

TEST(Start, SigtermEndsItAndGivesEverythingUp) {
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  const Client client{luod};
  const Fd session = client.create("s");
  const auto worker = open_pidfd(luod.worker());
  kill(luod.keeper(), SIGTERM);
  EXPECT_EQ(luod.wait_for_exit(), 0) << luod.log();
  EXPECT_TRUE(readable(worker->raw()));
  EXPECT_TRUE(hung_up(session.raw()));
  EXPECT_FALSE(std::filesystem::exists(luod.socket()));
  EXPECT_EQ(luo_session_create(client, "t"), -ECONNRESET);
}

TEST(Start, AListenerFromASocketUnitIsTaken) {
  const TempDir dir;
  const std::string path = dir / "activated.sock";
  const Fd listener = Fd::adopt(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
  const sockaddr_un at = address_of(path);
  ASSERT_EQ(bind(listener.raw(), reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(listen(listener.raw(), 16), 0);
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (listener.raw() != 3) dup2(listener.raw(), 3);
    fcntl(3, F_SETFD, 0);
    setenv("LISTEN_FDS", "1", 1);
    setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
    const std::string luod = program("luod");
    execl(luod.c_str(), "luod", "--state-dir", dir.path().c_str(), "--socket", path.c_str(), nullptr);
    _exit(101);
  }
  auto connected = RawClient::connect(path);  // waits in the backlog until luod is there
  ASSERT_TRUE(connected.has_value());
  RawClient& client = *connected;
  ASSERT_TRUE(client.hello().has_value());
  const Ran update =
      run_program({program("luoctl"), "--socket", path, "--json", "update", "luod", "--image", program("luod")});
  EXPECT_EQ(update.status, 0) << update.out << update.err;
  ASSERT_TRUE(client.post(wire::Command::Stop, 0, plain_arg()).has_value());
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(std::filesystem::exists(path)) << "it is systemd's";
}

TEST(Start, SystemdIsToldWhoTheMainProcessIs) {
  const TempDir dir;
  const std::string path = dir / "notify";
  const Fd notify = Fd::adopt(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const sockaddr_un at = address_of(path);
  ASSERT_EQ(bind(notify.raw(), reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
  Luod luod{LuodOptions{.environment = {{"NOTIFY_SOCKET", path}}}};
  ASSERT_TRUE(luod.running()) << luod.log();
  const auto told = [&] {
    char text[1024] = {};
    return readable(notify.raw()) && recv(notify.raw(), text, sizeof text - 1, 0) > 0 ? std::string{text} : "nothing";
  };
  const std::string first = told();
  EXPECT_NE(first.find("READY=1"), std::string::npos) << first;
  EXPECT_NE(first.find(fmt::format("MAINPID={}\n", luod.keeper())), std::string::npos) << first;
  const pid_t keeper = luod.keeper();
  luod.kill_keeper();
  const std::string second = told();
  EXPECT_NE(luod.keeper(), keeper);
  EXPECT_NE(second.find(fmt::format("MAINPID={}\n", luod.keeper())), std::string::npos) << second;
}

/// What is in a file full of holes: offsets and bytes.
std::vector<std::pair<off_t, std::string>> data_of(FdRef file) {
  std::vector<std::pair<off_t, std::string>> out;
  for (off_t end = 0;;) {
    const off_t begin = lseek(file.raw, end, SEEK_DATA);
    if (begin < 0) return out;
    end = lseek(file.raw, begin, SEEK_HOLE);
    std::string text(static_cast<std::size_t>(end - begin), '\0');
    LUO_CHECK(pread(file.raw, text.data(), text.size(), begin) == end - begin);
    out.emplace_back(begin, std::move(text));
  }
}

TEST(Damage, IsReportedAndNothingIsTouched) {
  Luod luod;
  ASSERT_TRUE(luod.running()) << luod.log();
  const Client client{luod};
  const Fd session = client.create("session-to-be-damaged"), file = memfd_with("x");
  ASSERT_EQ(luo_preserve_fd(client, session.raw(), file.raw(), 1), 0);
  const pid_t keeper = luod.keeper(), worker = luod.worker();
  Fd arena;
  for (int number = 3; number < 64 && !arena.valid(); ++number) {
    std::error_code error;
    const std::string path = fmt::format("/proc/{}/fd/{}", keeper, number);
    if (std::filesystem::read_symlink(path, error).string().find("luod-arena") != std::string::npos)
      arena = Fd::adopt(open(path.c_str(), O_RDWR | O_CLOEXEC));
  }
  ASSERT_TRUE(arena.valid());
  kill(worker, SIGSTOP);
  // Where the session's record is, its name shows.
  off_t at = -1;
  for (const auto& [offset, text] : data_of(arena))
    if (const std::size_t found = text.find("session-to-be-damaged"); found != std::string::npos)
      at = offset + static_cast<off_t>(found & ~std::size_t{7});
  ASSERT_GT(at, 64);
  // Damages the words around it: a reference or a number that cannot be.
  const std::uint64_t nonsense = 0xDEADBEEFDEADBEE8ULL;
  for (off_t word = at - 64; word < at; word += 8) ASSERT_EQ(pwrite(arena.raw(), &nonsense, sizeof nonsense, word), 8);
  kill_and_wait(worker);
  // It says so, and stays: everything that it holds is held.
  std::string log;
  for (int i = 0; i < 30'000 && (log = luod.log()).find("arena is damaged") == std::string::npos; ++i) usleep(1000);
  EXPECT_NE(log.find("arena is damaged"), std::string::npos) << log;
  EXPECT_NE(log.find("EBADMSG"), std::string::npos) << log;
  const auto damaged = data_of(arena);
  EXPECT_GT(open_descriptors(keeper), 5);
  pollfd still{session.raw(), POLLIN, 0};
  EXPECT_EQ(poll(&still, 1, 0), 0) << "the session was given up";
  EXPECT_TRUE(data_of(arena) == damaged);
  kill(keeper, SIGTERM);
  EXPECT_GE(luod.wait_for_exit(), 0) << luod.log();
  EXPECT_TRUE(hung_up(session.raw()));
}

}  // namespace
}  // namespace luo::test
