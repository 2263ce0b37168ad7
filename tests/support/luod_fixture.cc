#include "support/luod_fixture.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "support/luod_raw_client.h"
#include "sys/memfd.h"
#include "sys/packet_socket.h"
#include "sys/process.h"

namespace luo::test {
namespace {

constexpr int kPatienceMs = 30'000;

bool wait_for(int fd, short events) {
  pollfd p{fd, events, 0};
  int n = 0;
  do n = poll(&p, 1, kPatienceMs);
  while (n < 0 && errno == EINTR);
  return n == 1;
}

std::string text_of_file(const std::string& path) {
  std::ifstream in{path};
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

/// In the child: what the test wants, then the program.
[[noreturn]] void become(const std::vector<std::string>& argv,
                         const std::vector<std::pair<std::string, std::string>>& environment) {
  for (const auto& [name, value] : environment) {
    if (value.empty()) unsetenv(name.c_str());
    else setenv(name.c_str(), value.c_str(), 1);
  }
  std::vector<char*> raw;
  for (const auto& argument : argv) raw.push_back(const_cast<char*>(argument.c_str()));
  raw.push_back(nullptr);
  execv(raw[0], raw.data());
  dprintf(2, "execv(%s): %s\n", raw[0], strerror(errno));
  _exit(127);
}

int exit_status(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

}  // namespace

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "luo-test-XXXXXX").string();
  LUO_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

bool wait_for_death(pid_t pid) {
  const auto pidfd = open_pidfd(pid);
  if (!pidfd) return true;
  const bool dead = wait_for(pidfd->raw(), POLLIN);
  if (dead) waitpid(pid, nullptr, WNOHANG);  // if it is ours
  return dead;
}

void kill_and_wait(pid_t pid) {
  LUO_CHECK(pid > 1);
  kill(pid, SIGKILL);
  LUO_CHECK(wait_for_death(pid));
}

bool died_rather_than_idled(pid_t pid) {
  for (;;) {
    std::string state, call;
    std::ifstream stat{fmt::format("/proc/{}/stat", pid)}, syscall_file{fmt::format("/proc/{}/syscall", pid)};
    std::getline(stat, state);
    std::getline(syscall_file, call);
    const std::size_t end = state.rfind(')');
    if (end == std::string::npos || end + 2 >= state.size() || state[end + 2] == 'Z' || state[end + 2] == 'X')
      return true;
    const long number = call.empty() || call[0] == 'r' ? -1 : std::atol(call.c_str());
    if (state[end + 2] == 'S' && (number == SYS_epoll_wait || number == SYS_epoll_pwait)) return false;
    sched_yield();
  }
}

int open_descriptors(pid_t pid) {
  std::error_code error;
  int n = 0;
  for (const auto& entry : std::filesystem::directory_iterator{fmt::format("/proc/{}/fd", pid), error}) {
    std::error_code gone;
    // An event loop makes its timer when it first needs one, and a new worker may never.
    n += std::filesystem::read_symlink(entry.path(), gone) == "anon_inode:[timerfd]" ? 0 : 1;
  }
  return error ? -1 : n;
}

bool readable(int fd) { return wait_for(fd, POLLIN); }
bool hung_up(int fd) { return wait_for(fd, 0); }

std::string program(const std::string& name) { return std::string{LUO_TEST_BIN_DIR} + "/" + name; }

Ran run_program(const std::vector<std::string>& argv,
                const std::vector<std::pair<std::string, std::string>>& environment) {
  Fd out = *make_memfd("out", 0), err = *make_memfd("err", 0);
  const pid_t child = fork();
  LUO_CHECK(child >= 0);
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    dup2(null, 0);
    dup2(out.raw(), 1);
    dup2(err.raw(), 2);
    become(argv, environment);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  return {exit_status(status), content_of(out), content_of(err)};
}

Luod::Luod(LuodOptions options) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);  // processes whose keeper is killed become ours
  socket_ = dir_ / "luod.sock";
  log_path_ = dir_ / "log";
  std::vector<std::string> argv{options.program.empty() ? program("luod") : options.program};
  // A machine has one device, and tests run many a luod at once: LUO_MEDIUM=kernel for those of a virtual machine.
  if (std::getenv("LUO_MEDIUM") == nullptr) argv.insert(argv.end(), {"--medium", "exec"});
  if (options.own_directory) argv.insert(argv.end(), {"--state-dir", dir_.path(), "--socket", socket_});
  argv.insert(argv.end(), options.arguments.begin(), options.arguments.end());
  for (const auto& [name, value] : options.environment)
    if (name == "LUO_SOCKET" && !options.own_directory) socket_ = value;

  const Fd log_file = Fd::adopt(open(log_path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  child_ = fork();
  LUO_CHECK(child_ >= 0);
  if (child_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // a test that crashes leaves nothing behind
    const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    dup2(null, 0);
    dup2(log_file.raw(), 1);
    dup2(log_file.raw(), 2);
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    if (options.nofile != 0) limit.rlim_cur = limit.rlim_max = options.nofile;
    if (options.soft_nofile != 0) limit.rlim_cur = options.soft_nofile;
    setrlimit(RLIMIT_NOFILE, &limit);
    unsetenv("LUO_SOCKET");
    unsetenv("NOTIFY_SOCKET");
    setenv("LUO_DEBUG", "1", 1);
    become(argv, options.environment);
  }
  // It serves when it can be connected to and answers; it does not when it has exited.
  const auto pidfd = open_pidfd(child_);
  for (int i = 0; i < 30'000 && !running_; ++i) {
    if (!status().empty()) {
      running_ = true;
      break;
    }
    pollfd exited{pidfd->raw(), POLLIN, 0};
    if (poll(&exited, 1, 1) == 1) break;
  }
}

Luod::~Luod() {
  if (running_) stop();
  if (child_ > 0) {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
}

std::string Luod::log() const { return text_of_file(log_path_); }

Result<std::string> Luod::ask(wire::QueryKind kind, const std::string& name) {
  if (!control_) {
    RawClient made = LUO_TRY(RawClient::connect(socket_));
    LUO_TRY(made.hello("luod-test"));
    control_ = std::make_unique<RawClient>(std::move(made));
  }
  wire::QueryArg arg{};
  arg.size = sizeof arg;
  arg.kind = static_cast<std::uint32_t>(kind);
  wire::put_text(arg.name, name);
  const RawAnswer answer = LUO_TRY(control_->call(wire::Command::Query, 0, arg));
  if (answer.error() != 0) return fail(answer.error(), "query");
  if (answer.fds.size() != 1) return fail(EPROTO, "no report");
  return read_all(answer.fds[0], 64_MiB);
}

nlohmann::json Luod::status() {
  const auto text = ask(wire::QueryKind::Status, "");
  return text ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json::object();
}
nlohmann::json Luod::list() {
  const auto text = ask(wire::QueryKind::List, "");
  return text ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json::object();
}
nlohmann::json Luod::show(const std::string& name) {
  const auto text = ask(wire::QueryKind::Show, name);
  return text ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json::object();
}
pid_t Luod::keeper() { return status().value("keeper_pid", -1); }
pid_t Luod::worker() { return status().value("worker_pid", -1); }

std::string Luod::state() {
  // What others did before we asked was noticed before the first answer, or at latest right after it.
  status();
  const nlohmann::json now = status();
  if (now.empty()) return "does not answer";
  std::string out;
  const nlohmann::json all = list();
  for (const auto& session : all["sessions"]) {
    const std::string name = session["name"];
    out += fmt::format("{} {} {}{}:", name, session["state"].get<std::string>(), session["holder"].get<std::string>(),
                       session["successor"].get<bool>() ? " with successor" : "");
    if (session["on_close"] == "hold") out += " hold";
    const nlohmann::json shown = show(name);
    for (const auto& file : shown["files_list"])
      out += fmt::format(" {}={}({})", file["token"].get<std::uint64_t>(), file["handler"].get<std::string>(),
                         file["status"].get<std::string>());
    out += '\n';
  }
  // In the kernel medium: what the kernel has of it.
  const auto preflight =
      nlohmann::json::parse(ask(wire::QueryKind::Preflight, "").value_or("{}"), nullptr, false, true);
  for (const auto& check : preflight.value("checks", nlohmann::json::array()))
    if (check["level"] == "ok" ? check["name"] == "medium" : check["name"] == "incomplete")
      out += check["text"].get<std::string>() + '\n';
  return out + fmt::format("{} files, {} connections, {} descriptors", now["files"].get<std::uint64_t>(),
                           now["connections"].get<std::uint64_t>() - 1, descriptors());
}

int Luod::descriptors() {
  const pid_t pid = worker();
  died_rather_than_idled(pid);  // it still holds what it sent us
  return open_descriptors(pid);
}

int Luod::stop() {
  if (!running_) return -1;
  const nlohmann::json now = status();
  if (now.empty()) return -1;
  running_ = false;
  const pid_t keeper_pid = now["keeper_pid"], worker_pid = now["worker_pid"];
  const auto keeper_fd = open_pidfd(keeper_pid), worker_fd = open_pidfd(worker_pid);
  // Not by a signal: a keeper that a test has just killed may still be the one that luod names.
  wire::PlainArg arg{sizeof arg, 0};
  if (!control_->post(wire::Command::Stop, 0, arg)) return -1;
  bool ended = true;
  for (const auto* pidfd : {&worker_fd, &keeper_fd}) ended = ended && (!*pidfd || wait_for((*pidfd)->raw(), POLLIN));
  if (!ended) {
    kill(keeper_pid, SIGKILL);
    kill(worker_pid, SIGKILL);
  }
  int status = 0;
  const bool was_child = keeper_pid == child_ && waitpid(child_, &status, 0) == child_;
  for (const pid_t pid : {keeper_pid, worker_pid}) waitpid(pid, nullptr, WNOHANG);
  waitpid(child_, nullptr, WNOHANG);
  child_ = -1;
  control_.reset();
  if (!ended) return -1;
  return was_child ? exit_status(status) : 0;
}

int Luod::wait_for_exit() {
  if (child_ < 0) return -1;
  int status = 0;
  while (waitpid(child_, &status, 0) < 0 && errno == EINTR) {}
  child_ = -1;
  running_ = false;
  return exit_status(status);
}

Fd memfd_with(const std::string& content) {
  Fd file = *make_memfd("test", 0);
  LUO_CHECK(write_all(file, content).has_value());
  return file;
}

std::string content_of(FdRef file) {
  std::string text;
  char chunk[4096];
  ssize_t n = 0;
  while ((n = pread(file.raw, chunk, sizeof chunk, static_cast<off_t>(text.size()))) > 0)
    text.append(chunk, static_cast<std::size_t>(n));
  return n < 0 ? fmt::format("<{}>", errno_text(errno)) : text;
}

bool same_open_file(int a, int b) {
  constexpr int kKcmpFile = 0;
  return syscall(SYS_kcmp, getpid(), getpid(), kKcmpFile, a, b) == 0;
}

}  // namespace luo::test
