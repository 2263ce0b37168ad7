// luo-conformance: is this LUO the one that Linux 7.3 has? Prints TAP; exit status 0 if all agree.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>

#include "conformance/cases.h"

namespace conformance {

void Checker::expect(std::string_view what, int got, int wanted) {
  if (wanted == 0 ? got >= 0 : got == -wanted) return;
  const auto text = [](int code) {
    const char* name = code < 0 ? ::strerrorname_np(-code) : nullptr;
    return std::string{name != nullptr ? name : "success"};
  };
  wrong_.push_back(std::string{what} + ": " + text(got) + ", not " + text(-wanted));
  if (wanted != 0 && got > 2) kept_.push_back(got);
}

void Checker::check(std::string_view what, bool right) {
  if (!right) wrong_.push_back("not so: " + std::string{what});
}

int Checker::keep(int result) {
  if (result >= 0) kept_.push_back(result);
  return result;
}

void Checker::close(int fd) {
  if (fd < 0) return;
  std::erase(kept_, fd);
  ::close(fd);
}

int Checker::session(std::string_view name) {
  const int fd = keep(side.create(name));
  expect("create session " + std::string{name}, fd, 0);
  return fd;
}

int Checker::memfd(std::string_view content) {
  const int fd = keep(::memfd_create("conformance", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  check("memfd_create", fd >= 0 && ::write(fd, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  return fd;
}

Checker::~Checker() {
  for (const int fd : kept_) ::close(fd);
}

namespace {

int run_all(Side& side, Where where, const std::vector<std::vector<Case>>& tables) {
  int number = 0, failed = 0;
  for (const auto& table : tables)
    for (const Case& one : table) {
      ++number;
      if (one.needs == Needs::BareIoctls && side.device() < 0) {
        std::printf("ok %d - %s # SKIP about ioctls\n", number, one.name);
        continue;
      }
      Checker checker{side, where};
      one.run(checker);
      const bool right = checker.wrong().empty();
      std::printf("%sok %d - %s (reference %s)\n", right ? "" : "not ", number, one.name, one.section);
      for (const std::string& what : checker.wrong()) std::printf("#   %s\n", what.c_str());
      failed += right ? 0 : 1;
    }
  std::printf("1..%d\n# %d cases, %d failed\n", number, number, failed);
  return failed == 0 ? 0 : 1;
}

/// What a stage leaves is held by a process that the update kills.
int leave_and_wait(Side& side, Where where, const std::function<void(Checker&)>& what) {
  Checker checker{side, where};
  what(checker);
  for (const std::string& wrong : checker.wrong()) std::printf("# %s\n", wrong.c_str());
  if (!checker.wrong().empty()) return 1;
  std::fflush(stdout);
  if (::fork() != 0) _exit(0);
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  for (const int stream : {0, 1, 2}) ::dup2(null, stream);
  for (;;) ::pause();
}

}  // namespace
}  // namespace conformance

int main(int argc, char** argv) {
  using namespace conformance;
  CLI::App app{"Compares a LUO with what Linux 7.3's does, case by case.", "luo-conformance"};
  app.footer(
      "Examples:\n"
      "  luoctl --private=/tmp/d run -- luo-conformance           ioctls on /dev/liveupdate\n"
      "  luo-conformance --kernel                                 on a kernel that has LUO, as root\n"
      "  luo-conformance --luod --socket /tmp/d/luod.sock         the same cases through libluo\n\n"
      "Over an update: --stage 1, update (simulated, or kexec), --stage 2, update, --stage 3.");
  bool luod = false, kernel = false;
  std::string socket;
  int stage = 0;
  auto* through_luod = app.add_flag("--luod", luod, "through libluo instead of ioctls");
  app.add_flag("--kernel", kernel, "expect the kernel's answer where docs/differences.md says that ours is another")
      ->excludes(through_luod);
  app.add_option("--socket", socket, "luod's socket, with --luod")->needs(through_luod);
  app.add_option("--stage", stage, "0: without an update; 1 leaves something behind, 2 and 3 look at it")
      ->check(CLI::Range(0, 3));
  CLI11_PARSE(app, argc, argv);
  const Where where = luod ? Where::Luod : kernel ? Where::Kernel : Where::Device;
  const auto side = luod ? open_luod(socket.empty() ? nullptr : socket.c_str()) : open_device();
  if (!side) return 2;
  switch (stage) {
    case 0: return run_all(*side, where, {generic_cases(), session_cases(), file_cases()});
    case 1: return leave_and_wait(*side, where, leave);
    case 2: {
      const int status = run_all(*side, where, {arrival_cases()});
      if (status != 0) return status;
      return leave_and_wait(*side, where, [](Checker& c) {
        c.expect("preserve for the second hop", c.side.preserve(c.session("second"), c.memfd(), 1), 0);
      });
    }
    default: return run_all(*side, where, {second_arrival_cases()});
  }
}
