// luod: keeps the files of services alive while they, or luod itself, are replaced.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/log.h"
#include "daemon/probe.h"
#include "daemon/start.h"
#include "daemon/version.h"

int main(int argc, char** argv) {
  luo::log_as("luod");
  CLI::App app{
      "luod, the agent of the Live Update Orchestrator: keeps the open files and the memory of services\n"
      "alive while what is underneath them is replaced: the service's binary, luod itself, or (memory, where\n"
      "the kernel has a Live Update Orchestrator) the kernel."};
  app.set_version_flag("--version", luo::daemon::kVersion);
  app.footer(
      "Examples:\n"
      "  luod                                      as root: /run/luo/luod.sock; else in $XDG_RUNTIME_DIR/luo\n"
      "  luod --state-dir /tmp/d                   a private one: clients use LUO_SOCKET=/tmp/d/luod.sock\n"
      "  luod --handlers memfd                     only what the kernel's own LUO preserves\n"
      "  luod --medium kernel                      what is preserved also crosses a kexec (luoctl update kernel)\n"
      "  luod --handlers /usr/lib/luo/mine.so,all  with handlers of one's own, see luo/plugin.h\n"
      "  luoctl status                             is it there?\n"
      "  luoctl update luod --image /usr/bin/luod  replace it, under load\n\n"
      "luod stays in the foreground; systemd units are in dist/. SIGTERM gives up everything that is\n"
      "preserved. A killed worker or keeper is replaced at once and nothing is lost.\n\n"
      "Exit status: 0 stopped, 1 could not start (says why), 2 wrong usage.");
  luo::daemon::Options options;
  app.add_option("--socket", options.socket,
                 "where clients connect (default: $LUO_SOCKET, else luod.sock in the state directory)");
  app.add_option("--state-dir", options.state_dir, "lock and socket (default: /run/luo, or $XDG_RUNTIME_DIR/luo)");
  app.add_option("--handlers", options.handlers, "kinds of files to take, comma-separated, or \"all\"")
      ->capture_default_str();
  app.add_option(
         "--medium", options.medium,
         "exec: over updates of services and of luod; kernel: over a kexec, too, by the kernel's own LUO (Linux\n"
         "6.19, kho=on liveupdate=on); auto: kernel if there is a /dev/liveupdate that luod may open")
      ->check(CLI::IsMember({"auto", "exec", "kernel"}))
      ->envname("LUO_MEDIUM")
      ->capture_default_str();
  bool probe = false;
  app.add_flag("--probe", probe, "print as JSON which state layouts this luod reads, and exit");
  int arena_fd = -1;
  app.add_option("--resume", arena_fd)->group("");  // by the luod that this one replaces
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (probe) {
    std::printf("%s\n", luo::daemon::probe_text().c_str());
    return 0;
  }
  // What a shutdown of systemd's spares at its end: luod holds what is preserved until the kexec itself.
  if (luo::daemon::outlives_shutdown(options)) argv[0][0] = '@';
  const luo::Result<int> status = arena_fd >= 0 ? luo::daemon::resume(arena_fd) : luo::daemon::start_fresh(options);
  if (status) return *status;
  luo::log(luo::Level::Error, "{}", status.error());
  return 1;
}
