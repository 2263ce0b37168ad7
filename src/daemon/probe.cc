#include "daemon/probe.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "daemon/control.h"
#include "daemon/keeper.h"
#include "daemon/version.h"
#include "luo/engine.h"
#include "sys/memfd.h"
#include "sys/pipe.h"
#include "sys/process.h"

namespace luo::daemon {
namespace {

constexpr std::uint32_t kLongestMs = 5'000;
constexpr int kExecFailed = 126;  // the errno follows in the words

[[noreturn]] void run_image(FdRef image, int out, int err) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  use_all_descriptors();
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // survives the exec: nobody waits for it when this worker is gone
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  dup2(null, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  // What is preserved goes over an exec of luod, but this program is none of it.
  if (close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) {
    dprintf(STDERR_FILENO, "close_range: %s\n", errno_text(errno).c_str());
    _exit(kExecFailed);
  }
  fcntl(image.raw, F_SETFD, 0);  // a script is opened once more, by its interpreter
  const char* const argv[] = {"luod", "--probe", nullptr};
  const Error error = exec_fd(image, argv, environ);
  dprintf(STDERR_FILENO, "%s\n", to_string(error).c_str());
  _exit(kExecFailed);
}

}  // namespace

std::string tail_of(FdRef file) {
  struct stat st {};
  if (fstat(file.raw, &st) != 0) return {};
  std::string text(1000, '\0');
  const off_t from = st.st_size > static_cast<off_t>(text.size()) ? st.st_size - static_cast<off_t>(text.size()) : 0;
  const ssize_t n = pread(file.raw, text.data(), text.size(), from);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  if (from > 0) text.erase(0, text.find('\n') + 1);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string probe_text() {
  const nlohmann::json json = {{"program", "luod"},
                               {"version", kVersion},
                               {"layouts",
                                {{{"tag", Engine::kLayout.tag},
                                  {"read", {Engine::kVersion - 1, Engine::kVersion}},
                                  {"write", Engine::kVersion}}}}};
  return json.dump();
}

Result<std::unique_ptr<Probe>> Probe::start(FdRef image, std::uint32_t timeout_ms) {
  std::unique_ptr<Probe> probe{new Probe};
  probe->out_ = LUO_TRY(make_memfd("luod-probe-out", 0));
  probe->err_ = LUO_TRY(make_memfd("luod-probe-err", 0));
  Pipe before_exec = LUO_TRY(make_pipe());
  const pid_t child = fork();
  if (child < 0) return sys_fail("fork");
  if (child == 0) run_image(image, probe->out_.raw(), probe->err_.raw());
  probe->pid_ = child;
  probe->before_exec_ = std::move(before_exec.read);
  probe->timeout_ms_ = std::min(timeout_ms, kLongestMs);
  probe->deadline_ns_ = monotonic_ns() + probe->timeout_ms_ * std::uint64_t{1'000'000};
  probe->pidfd_ = LUO_TRY(open_pidfd(child));
  return probe;
}

void Probe::wait_until_it_runs() const noexcept {
  pollfd closed{before_exec_.raw(), POLLIN, 0};  // by the exec, or with the process
  while (poll(&closed, 1, -1) < 0 && errno == EINTR) {}
}

Probe::~Probe() {
  if (pid_ < 0 || ended_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

bool Probe::done() {
  if (ended_) return true;
  if (waitpid(pid_, &status_, WNOHANG) == pid_) return ended_ = true;
  if (monotonic_ns() < deadline_ns_) return false;
  late_ = true;
  kill(pid_, SIGKILL);
  waitpid(pid_, &status_, 0);
  return ended_ = true;
}

std::string Probe::last_words() const { return tail_of(err_); }

Result<ProbeAnswer> Probe::result() const {
  if (late_) return fail(ETIMEDOUT, "the new image did not answer --probe within {} ms", timeout_ms_);
  if (WIFSIGNALED(status_))
    return fail(EIO, "the new image was killed by signal {} ({}) when asked --probe", WTERMSIG(status_),
                sigdescr_np(WTERMSIG(status_)));
  if (WEXITSTATUS(status_) == kExecFailed) return fail(ENOEXEC, "the new image cannot be executed: {}", last_words());
  if (WEXITSTATUS(status_) != 0)
    return fail(EIO, "the new image exited with status {} when asked --probe", WEXITSTATUS(status_));
  const Result<std::string> text = read_all(out_, 64_KiB);
  if (!text) return std::unexpected(text.error());
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object() || json.value("program", nlohmann::json{}) != "luod" || !json.contains("layouts") ||
      !json["layouts"].is_array())
    return fail(EPROTO, "the new image is not a luod: its answer to --probe makes no sense");
  for (const auto& layout : json["layouts"]) {
    if (!layout.is_object() || layout.value("tag", nlohmann::json{}) != Engine::kLayout.tag) continue;
    const auto readable = layout.value("read", nlohmann::json::array());
    const auto reads = [&](std::uint32_t v) {
      return std::ranges::find(readable, nlohmann::json(v)) != readable.end();
    };
    const auto version = json.value("version", nlohmann::json{});
    for (const std::uint32_t v : {Engine::kVersion, Engine::kVersion - 1})
      if (reads(v)) return ProbeAnswer{version.is_string() ? version.get<std::string>() : "?", v};
  }
  return fail(EPROTO, "the new image reads neither version {} of layout '{}', which holds the state now, nor {}",
              Engine::kVersion, Engine::kLayout.tag, Engine::kVersion - 1);
}

}  // namespace luo::daemon
