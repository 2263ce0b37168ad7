// What runs under `luoctl run` in tests: a program that knows only /dev/liveupdate.
//   hold NAME [MEMFD [CONTENT]]
//                   a session with a file; says "ready", then answers each line of stdin with the session's name
//   churn COUNT     creates and closes that many sessions, preserving a file in each
//   threads COUNT   as many threads, each with a session of its own
//   lie COUNT       changes arguments, closes descriptors and calls exec while a request is looked at
//   open COUNT      opens other files, which must work
//   succeed NAME    not under it: a successor of session NAME, through libluo; says why it cannot
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "conformance/side.h"
#include "luo/luo.h"

using namespace conformance;

namespace {

[[noreturn]] void die(const char* what) {
  std::printf("%s: %s\n", what, strerrorname_np(errno));
  std::exit(1);
}

int open_device_fd() {
  const int fd = ::open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
  if (fd < 0) die("open");
  return fd;
}

int create(int device, const std::string& name) {
  SessionArg arg;
  name.copy(arg.name, sizeof arg.name - 1);
  errno = -raw_ioctl(device, kCreateSession, &arg);
  return errno != 0 ? -errno : arg.fd;
}

int file_with(const std::string& text, const char* name = "target") {
  const int fd = ::memfd_create(name, MFD_CLOEXEC);
  if (fd < 0 || ::write(fd, text.data(), text.size()) < 0) die("memfd");
  return fd;
}

int hold(const std::string& name, const char* file_name, const char* content) {
  const int device = open_device_fd();
  const int session = create(device, name);
  if (session < 0) die("create");
  FileArg file{.fd = file_with(content, file_name), .token = 1};
  if (raw_ioctl(session, kPreserveFd, &file) != 0) die("preserve");
  ::close(device);
  std::printf("ready\n");
  std::fflush(stdout);
  for (char line[64]; std::fgets(line, sizeof line, stdin) != nullptr;) {
    NameArg arg;
    const int result = raw_ioctl(session, kGetName, &arg);
    std::printf("%s\n", result < 0 ? strerrorname_np(-result) : arg.name);
    std::fflush(stdout);
  }
  return 0;
}

int churn(int device, const std::string& prefix, int count) {
  for (int i = 0; i < count; ++i) {
    const int session = create(device, prefix + std::to_string(i % 7));
    if (session < 0) return session;
    FileArg file{.fd = file_with("x"), .token = 1};
    const int result = raw_ioctl(session, kPreserveFd, &file);
    ::close(file.fd);
    ::close(session);
    if (result != 0) return result;
  }
  return 0;
}

int threads(int count) {
  const int device = open_device_fd();
  std::vector<std::thread> all;
  std::atomic<int> wrong = 0;
  for (int i = 0; i < count; ++i)
    all.emplace_back([&, i] {
      if (const int result = churn(device, "t" + std::to_string(i) + "-", 20); result != 0) wrong = result;
    });
  for (std::thread& one : all) one.join();
  if (wrong != 0) std::printf("wrong: %s\n", strerrorname_np(-wrong));
  return wrong == 0 ? 0 : 1;
}

/// Every answer is allowed but none at all; afterwards everything must work as ever.
int lie(int count) {
  const int device = open_device_fd();
  std::atomic<bool> stop = false;
  auto* arg =
      static_cast<SessionArg*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const int victim = ::memfd_create("victim", 0);
  std::thread changer{[&] {
    for (unsigned i = 0; !stop; ++i) {
      arg->size = i % 3 == 0 ? 72 : i % 3 == 1 ? 8192 : i;
      arg->name[i % 64] = static_cast<char>(i);
    }
  }};
  std::thread closer{[&] {
    while (!stop) {
      ::dup2(victim, 100);
      ::close(100);
    }
  }};
  std::thread mapper{[&] {
    auto* page = reinterpret_cast<char*>(arg) + 4096;
    while (!stop) {
      ::mprotect(page, 4096, PROT_NONE);
      ::mprotect(page, 4096, PROT_READ | PROT_WRITE);
    }
  }};
  const int session = create(device, "honest");
  if (session < 0) die("create");
  for (int i = 0; i < count; ++i) {
    SessionArg* torn = i % 2 == 0 ? arg : reinterpret_cast<SessionArg*>(reinterpret_cast<char*>(arg) + 4096 - 36);
    if (i % 2 != 0) torn->size = 72;
    if (raw_ioctl(device, kCreateSession, torn) == 0) {
      // Which number it got, somebody may have written over: all that is open and not ours is closed below.
    }
    FileArg file{.fd = 100, .token = static_cast<std::uint64_t>(i)};
    raw_ioctl(session, kPreserveFd, &file);
    NameArg name;
    raw_ioctl(100, kGetName, &name);
    if (i % 50 == 0) {
      for (int fd = 3; fd < 4096; ++fd)
        if (fd != device && fd != session && fd != victim && fd != 100) ::close(fd);
      // exec in the middle of another thread's request
      const pid_t child = ::fork();
      if (child == 0) {
        std::thread asker{[&] {
          for (;;) raw_ioctl(session, kGetName, &name);
        }};
        ::execl("/bin/true", "true", nullptr);
        ::_exit(1);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      if (status != 0) {
        std::printf("exec: %d\n", status);
        return 1;
      }
    }
  }
  stop = true;
  changer.join();
  closer.join();
  mapper.join();
  NameArg name;
  if (raw_ioctl(session, kGetName, &name) != 0 || std::strcmp(name.name, "honest") != 0) die("after all");
  ::close(session);
  return churn(device, "after-", 5) == 0 ? 0 : 1;
}

int open_others(int count) {
  for (int i = 0; i < count; ++i) {
    const int fd = ::open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    if (fd < 0) die("open /etc/passwd");
    ::close(fd);
    if (::open("/dev/no-such-device", O_RDONLY) >= 0 || errno != ENOENT) die("open of nothing");
    if (::open("/etc", O_WRONLY) >= 0 || errno != EISDIR) die("open of a directory");
  }
  return 0;
}

int succeed(const std::string& name) {
  luo_connection* luod = nullptr;
  const int session = luo_open(nullptr, &luod) == 0 ? luo_session_retrieve(luod, name.c_str()) : -1;
  if (session >= 0 && luo_session_take_over(luod, session, 20'000) == 0) return 0;
  std::fprintf(stderr, "%s\n", luo_last_error());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "", with = argc > 2 ? argv[2] : "";
  if (what == "hold") return hold(with, argc > 3 ? argv[3] : "target", argc > 4 ? argv[4] : "kept");
  if (what == "succeed") return succeed(with);
  const int count = std::atoi(with.c_str());
  if (what == "churn") {
    const int result = churn(open_device_fd(), "churn-", count);
    if (result != 0) std::printf("%s\n", strerrorname_np(-result));
    return result == 0 ? 0 : 1;
  }
  if (what == "threads") return threads(count);
  if (what == "lie") return lie(count);
  if (what == "open") return open_others(count);
  return 2;
}
