#include "cli/child.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "sys/memfd.h"
#include "sys/process.h"

namespace luo::cli {
namespace {

Result<Log> as_log(std::string path, Fd file) {
  struct stat info;
  if (fstat(file.raw(), &info) != 0) return sys_fail("fstat('{}')", path);
  Log log{std::move(path), std::move(file), {}, 0};
  if (!S_ISREG(info.st_mode)) return log;  // a terminal, a pipe: nothing to read back
  log.reader = Fd::adopt(open(fmt::format("/proc/self/fd/{}", log.file.raw()).c_str(), O_RDONLY | O_CLOEXEC));
  log.begin = static_cast<std::uint64_t>(info.st_size);
  return log;
}

Result<Log> open_to_append(const std::string& path, int flags) {
  Fd file = Fd::adopt(open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY | flags, 0644));
  if (!file.valid()) return sys_fail("open('{}')", path);
  return as_log(path, std::move(file));
}

/// The regular file that stderr of `owner` is. Its very description if we may have that: both processes
/// then write behind each other, also if it was opened without O_APPEND ("2> log").
Result<Log> log_of(pid_t owner) {
  const std::string link = fmt::format("/proc/{}/fd/2", owner);
  struct stat info;
  if (stat(link.c_str(), &info) != 0) return sys_fail("stat('{}')", link);
  if (!S_ISREG(info.st_mode)) return fail(EINVAL, "stderr of pid {} is no regular file", owner);
  const Fd pidfd = LUO_TRY(open_pidfd(owner));
  Fd same = Fd::adopt(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.raw(), STDERR_FILENO, 0U)));
  const int flags = same.valid() ? fcntl(same.raw(), F_GETFL) : -1;
  const bool writable = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && (flags & O_PATH) == 0;
  Log log = writable && fstat(same.raw(), &info) == 0 && S_ISREG(info.st_mode) ? LUO_TRY(as_log(link, std::move(same)))
                                                                               : LUO_TRY(open_to_append(link, 0));
  if (auto path = read_link(log.file)) log.path = *std::move(path);
  return log;
}

/// A session's name as a file's name: any byte but NUL may be in the former.
std::string as_file_name(std::string name) {
  std::ranges::replace_if(
      name, [](char c) { return static_cast<unsigned char>(c) <= 0x20 || c == '/' || c == 0x7f; }, '_');
  return name + ".log";
}

}  // namespace

Result<Log> open_log(const std::string& chosen, pid_t owner, const std::string& socket, const std::string& session) {
  if (!chosen.empty()) return LUO_TRY_DURING("--log", open_to_append(chosen, O_CREAT));
  if (owner > 0)
    if (auto log = log_of(owner)) return log;
  const auto path = std::filesystem::path{socket}.replace_filename(as_file_name(session));
  return LUO_TRY_DURING("make a log for the new process (choose another with --log)",
                        open_to_append(path.string(), O_CREAT | O_NOFOLLOW));
}

std::string last_words(const Log& log) {
  constexpr std::uint64_t kMost = 4096;
  struct stat info;
  if (!log.reader.valid() || fstat(log.reader.raw(), &info) != 0) return {};
  const auto size = static_cast<std::uint64_t>(info.st_size);
  const std::uint64_t from = std::max(log.begin, size > kMost ? size - kMost : 0);
  if (from >= size) return {};
  std::string text(size - from, '\0');
  const ssize_t n = pread(log.reader.raw(), text.data(), text.size(), static_cast<off_t>(from));
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  if (from > log.begin)
    if (const auto line = text.find('\n'); line != std::string::npos) text.erase(0, line + 1);
  return text;
}

namespace {

/// In the child: becomes the program, or says through `report` why not.
[[noreturn]] void become(const Program& program, std::vector<char*>& argv, int null, int log, int report) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  setsid();
  if (dup2(null, STDIN_FILENO) >= 0 && dup2(log, STDOUT_FILENO) >= 0 && dup2(log, STDERR_FILENO) >= 0 &&
      syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) == 0) {
    for (const auto& [name, value] : program.environment) setenv(name.c_str(), value.c_str(), 1);
    // With a path given, not execvp: it hands what the kernel cannot execute to a shell, which would run a program of
    // another architecture as a script.
    if (strchr(argv[0], '/') != nullptr) execv(argv[0], argv.data());
    else execvp(argv[0], argv.data());
  }
  const int error = errno;
  (void)!write(report, &error, sizeof error);
  _exit(127);
}

}  // namespace

Result<Child> start_detached(const Program& program, const Log& log) {
  LUO_CHECK(!program.argv.empty());
  std::vector<char*> argv;
  for (const std::string& word : program.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const Fd null = Fd::adopt(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null.valid()) return sys_fail("open('/dev/null')");
  // Above 2, so that the child's dup2 calls cannot run over them.
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return sys_fail("pipe2(O_CLOEXEC)");
  const Fd read_end = Fd::adopt(ends[0]);
  Fd write_end = Fd::adopt(ends[1]);
  Fd report = Fd::adopt(fcntl(write_end.raw(), F_DUPFD_CLOEXEC, 3));
  const Fd high_null = Fd::adopt(fcntl(null.raw(), F_DUPFD_CLOEXEC, 3));
  const Fd high_log = Fd::adopt(fcntl(log.file.raw(), F_DUPFD_CLOEXEC, 3));
  if (!report.valid() || !high_null.valid() || !high_log.valid()) return sys_fail("fcntl(F_DUPFD_CLOEXEC)");
  write_end.close();

  const pid_t pid = fork();
  if (pid < 0) return sys_fail("fork");
  if (pid == 0) become(program, argv, high_null.raw(), high_log.raw(), report.raw());
  report.close();
  int error = 0;
  ssize_t n;
  do n = read(read_end.raw(), &error, sizeof error);  // its end: exec has closed the other side
  while (n < 0 && errno == EINTR);
  if (n == sizeof error) {
    waitpid(pid, nullptr, 0);
    errno = error;
    return sys_fail("start '{}'", program.argv[0]);
  }
  return Child{pid, LUO_TRY(open_pidfd(pid))};
}

std::string how_it_ended(const Child& child) {
  int status = 0;
  if (waitpid(child.pid, &status, 0) != child.pid) return "ended";
  if (WIFEXITED(status)) return fmt::format("exited with status {}", WEXITSTATUS(status));
  return fmt::format("was killed by signal {} ({})", WTERMSIG(status), sigdescr_np(WTERMSIG(status)));
}

bool ends_within(const Child& child, std::chrono::milliseconds time) {
  pollfd ended{child.pidfd.raw(), POLLIN, 0};
  int n;
  do n = poll(&ended, 1, static_cast<int>(time.count()));
  while (n < 0 && errno == EINTR);
  return n == 1;
}

void terminate(const Child& child, std::chrono::milliseconds grace) {
  kill(child.pid, SIGTERM);  // not reaped yet, so the number is still its own
  if (!ends_within(child, grace)) kill(child.pid, SIGKILL);
  waitpid(child.pid, nullptr, 0);
}

}  // namespace luo::cli
