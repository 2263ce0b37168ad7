#include "daemon/systemd.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <systemd/sd-login.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "base/log.h"
#include "sys/memfd.h"

namespace luo::daemon {
namespace {

struct Said {
  int status = 0;  ///< of waitpid
  std::string words;
};

/// Its words on standard error go where luod's go.
Result<Said> systemctl(std::vector<std::string> words) {
  words.insert(words.begin(), "systemctl");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const Fd out = LUO_TRY(make_memfd("systemctl", 0));

  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&files);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&files, out.raw(), STDOUT_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&files, 3);  // what is preserved goes over every exec
  sigset_t none, ignored;                               // what luod blocks and ignores is its own affair
  sigemptyset(&none);
  sigemptyset(&ignored);
  sigaddset(&ignored, SIGPIPE);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &ignored);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t child = -1;
  const int code = posix_spawnp(&child, argv[0], &files, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  if (code != 0) return fail(code, "start `systemctl {}`", words[1]);

  Said said;
  while (waitpid(child, &said.status, 0) < 0)
    if (errno != EINTR) return sys_fail("wait for `systemctl {}`", words[1]);
  char buffer[4096];
  const ssize_t n = pread(out.raw(), buffer, sizeof buffer, 0);
  if (n > 0) said.words.assign(buffer, static_cast<std::size_t>(n));
  return said;
}

}  // namespace

Result<> begin_kexec() {
  const Said said = LUO_TRY(systemctl({"kexec"}));
  if (WIFEXITED(said.status) && WEXITSTATUS(said.status) == 0) return {};
  return fail(EIO, "`systemctl kexec` ended with status {:#x}; see its words in the journal", said.status);
}

bool shutdown_goes_on() {
  std::string first;
  std::ifstream{"/proc/1/comm"} >> first;
  if (first.starts_with("systemd-shut")) return true;  // takes no questions any more
  const Result<Said> said = systemctl({"is-system-running"});
  constexpr std::array<std::string_view, 5> kGoesOnAsEver = {"initializing", "starting", "running", "degraded",
                                                             "maintenance"};
  if (said && std::ranges::any_of(kGoesOnAsEver, [&](std::string_view word) { return said->words.starts_with(word); }))
    return false;
  if (!said || !said->words.starts_with("stopping"))
    log(Level::Warning, "whether systemd is ending everything cannot be learned ({}); taking it that it is",
        said ? fmt::format("`systemctl is-system-running` says '{}'", said->words.substr(0, said->words.find('\n')))
             : to_string(said.error()));
  return true;
}

std::string unit_that_shutdown_stops() {
  char* name = nullptr;
  if (sd_pid_get_unit(0, &name) < 0 || name == nullptr) return {};
  const std::string unit = name;
  std::free(name);
  const Result<Said> said = systemctl({"show", "--property=Conflicts", "--value", "--", unit});
  return said && said->words.find("shutdown.target") != std::string::npos ? unit : std::string{};
}

}  // namespace luo::daemon
