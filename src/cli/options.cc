#include "cli/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string_view>

namespace luo::cli {
namespace {

constexpr double kLongestTimeout = 24 * 60 * 60;

constexpr const char* kFooter =
    "Examples:\n"
    "  luoctl status                                      is luod there, what does it hold?\n"
    "  luoctl list                                        all sessions\n"
    "  luoctl show vm-7                                   one session and its files\n"
    "  luoctl update luod                                 replace luod; services notice nothing\n"
    "  luoctl update service cache -- luo-cache --port 6379\n"
    "                                                     replace the service that owns session 'cache'\n"
    "  luoctl update kernel --kernel /boot/vmlinuz-7.4    start another kernel; sessions cross\n"
    "  luoctl --private=/tmp/d run -- ./test              a program that knows only /dev/liveupdate\n"
    "  luoctl inspect --live                              all that luod remembers, record by record\n"
    "  luoctl --json status | jq .sessions                for programs\n\n"
    "luod is found at --socket, else $LUO_SOCKET, else /run/luo/luod.sock (root) or\n"
    "$XDG_RUNTIME_DIR/luo/luod.sock.\n\n"
    "Exit status: 0 done, 1 refused or failed (what was there before goes on), 2 wrong usage,\n"
    "3 no luod can be reached.";

/// The library does not know of "--" and what follows it.
class UsageOf : public CLI::Formatter {
 public:
  explicit UsageOf(std::string usage) : usage_{std::move(usage)} {}
  std::string make_usage(const CLI::App*, std::string) const override { return "Usage: " + usage_ + "\n"; }

 private:
  std::string usage_;
};

void add_timeout(CLI::App& command, double& seconds, const char* what) {
  const auto in_range = [](const std::string& text) {
    const double value = std::strtod(text.c_str(), nullptr);
    return value >= 0.001 && value <= kLongestTimeout ? "" : "it takes 0.001 to 86400 seconds, not " + text;
  };
  command.add_option("--timeout", seconds, what)->check(in_range)->type_name("SECONDS");
}

}  // namespace

Parsed parse_options(int argc, const char* const* argv) {
  // What follows "--" belongs to the command to be started, whatever it looks like.
  const char* const* end = argv + argc;
  const char* const* dashes = std::find_if(argv, end, [](const char* word) { return std::string_view{word} == "--"; });
  Options options;
  if (dashes != end) options.command.assign(dashes + 1, end);

  CLI::App app{"luoctl asks luod, the agent of the Live Update Orchestrator, and orders updates.", "luoctl"};
  app.set_version_flag("--version", LUO_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();
  auto* socket = app.add_option("--socket", options.socket, "luod's socket")->type_name("PATH");
  auto* own = app.add_option("--private", options.private_folder,
                             "use a luod of one's own in this directory; starts it if none runs there")
                  ->type_name("DIR")
                  ->excludes(socket);
  app.add_option("--handlers", options.private_handlers, "with --private: what that luod takes when it is started")
      ->type_name("LIST")
      ->capture_default_str()
      ->needs(own);
  app.add_flag("--json", options.json, "print JSON instead of text; failures too: {\"ok\": false, \"error\": ...}");

  const auto does = [&options](CLI::App* command, Action action) {
    command->callback([&options, action] { options.action = action; });
    return command;
  };

  does(app.add_subcommand("status", "what luod is and how much it holds"), Action::Status)
      ->footer(
          "Examples:\n"
          "  luoctl status\n"
          "  luoctl --socket /tmp/d/luod.sock status            another luod\n"
          "  luoctl --json status | jq .worker_pid");
  does(app.add_subcommand("list", "all sessions"), Action::List)
      ->footer(
          "Examples:\n"
          "  luoctl list\n"
          "  luoctl --json list | jq -r '.sessions[].name'\n\n"
          "HOLDER says whether a process holds the session's descriptor: held, handed out (sent, not\n"
          "yet accepted), or none (kept for whoever retrieves it).");
  auto* show = does(app.add_subcommand("show", "one session and its files"), Action::Show);
  show->add_option("session", options.session, "its name, as luoctl list prints it")->required();
  show->footer(
      "Examples:\n"
      "  luoctl show vm-7\n"
      "  luoctl --json show vm-7 | jq '.files_list[].token'");

  auto* files = does(app.add_subcommand("files", "all preserved files, of one handler or of all"), Action::Files);
  files->add_option("--handler", options.handler, "only what this handler keeps, as luoctl status names it")
      ->type_name("NAME");
  files->footer(
      "Examples:\n"
      "  luoctl files\n"
      "  luoctl files --handler memfd-v1\n"
      "  luoctl --json files --handler memfd-v1 | jq '.files[] | {session, token, data}'\n\n"
      "Also what came in and nobody has retrieved yet.");
  auto* drop = does(app.add_subcommand("drop", "give up a session that nobody holds"), Action::Drop);
  drop->add_option("session", options.session, "its name")->required();
  drop->footer(
      "Examples:\n"
      "  luoctl drop vm-7\n\n"
      "For sessions that are held for an owner who does not come back, and for those that came over an\n"
      "update and that nobody claims. What they keep is lost. Refused while a process holds the session.");

  auto* update = app.add_subcommand("update", "replace luod, a service, the kernel, or everything");
  update->require_subcommand(1);
  update->fallthrough();
  update->footer(
      "Examples:\n"
      "  luoctl update luod --image /usr/local/bin/luod\n"
      "  luoctl update service cache -- /opt/new/luo-cache --port 6379\n"
      "  luoctl update kernel --kernel /boot/vmlinuz-7.4 --initrd /boot/initrd.img-7.4 --dry-run\n"
      "  luoctl update simulated                            what a kexec would do, without one\n\n"
      "Help for each: luoctl update luod --help, and so on.");

  double timeout = 0;
  auto* luod = does(update->add_subcommand("luod", "replace the running luod by another image"), Action::UpdateLuod);
  luod->add_option("--image", options.image, "the new luod (default: the luod beside luoctl)")->type_name("PATH");
  add_timeout(*luod, timeout, "for the new luod to serve, else the old one goes on (default: 10)");
  luod->footer(
      "Examples:\n"
      "  luoctl update luod\n"
      "  luoctl update luod --image /opt/luo-0.2/bin/luod --timeout 5\n\n"
      "Sessions, files and connections stay. If the new image cannot be run, reads no state of this\n"
      "luod, or does not serve in time, the old luod goes on and the new one's last words are printed.");

  auto* service =
      does(update->add_subcommand("service", "replace the process that owns a session"), Action::UpdateService);
  service->formatter(std::make_shared<UsageOf>("luoctl update service [OPTIONS] SESSION -- COMMAND [ARGUMENTS...]"));
  service->add_option("session", options.session, "the session that the service owns")->required();
  add_timeout(*service, timeout, "for the whole update (default: 120)");
  service
      ->add_option("--log", options.log,
                   "where the new process's output is appended (default: the file that the old one's\n"
                   "stderr is, else SESSION.log beside luod's socket)")
      ->type_name("FILE");
  service->footer(
      "Examples:\n"
      "  luoctl update service cache -- luo-cache --port 6379\n"
      "  luoctl update service cache --timeout 20 --log /var/log/cache.log -- /opt/new/luo-cache\n\n"
      "COMMAND is started in the background with LUO_TICKET in its environment, gets warm beside the\n"
      "old process, and takes the session over. If it exits, hangs, or the old process refuses, the\n"
      "old one goes on, COMMAND is ended, and its last words are printed. Ctrl-C calls it off.");

  auto* simulated =
      does(update->add_subcommand("simulated", "take everything across as a kexec would"), Action::UpdateSimulated);
  add_timeout(*simulated, timeout, "for all services to get ready (default: 60)");
  simulated->footer(
      "Examples:\n"
      "  luoctl update simulated\n"
      "  luoctl update simulated --timeout 5\n\n"
      "For development: every session becomes incoming and has to be retrieved by name, as after a\n"
      "reboot into a new kernel. Services that refuse call it off.");

  auto* kernel = does(update->add_subcommand("kernel", "start another kernel by kexec; sessions cross into it"),
                      Action::UpdateKernel);
  kernel->add_option("--kernel", options.kernel.kernel, "its image: a bzImage (x86) or an Image (arm64)")
      ->type_name("FILE")
      ->required();
  kernel->add_option("--initrd", options.kernel.initrd, "its initrd (default: none)")->type_name("FILE");
  auto* line = kernel
                   ->add_option_function<std::string>(
                       "--cmdline", [&options](const std::string& text) { options.kernel.command_line = text; },
                       "its command line; it has to turn KHO and LUO on (kho=on liveupdate=on)")
                   ->type_name("TEXT");
  bool reuse = false;  // it is what is done in any case; to be said in scripts
  kernel->add_flag("--reuse-cmdline", reuse, "the command line of the running kernel (this is the default)")
      ->excludes(line);
  kernel->add_flag("--dry-run", options.kernel.dry_run,
                   "all but the reboot: load, prepare, freeze, and everything back");
  kernel->add_flag("--drop-unclaimed", options.kernel.drop_unclaimed,
                   "go on although sessions that came over an earlier update have not been claimed: they are lost");
  add_timeout(*kernel, timeout, "for all services to get ready (default: 60)");
  kernel->footer(
      "Examples:\n"
      "  luoctl update kernel --kernel /boot/vmlinuz-7.4 --initrd /boot/initrd.img-7.4 --dry-run\n"
      "  luoctl update kernel --kernel /boot/vmlinuz-7.4 --initrd /boot/initrd.img-7.4\n"
      "  luoctl update kernel --kernel bzImage --cmdline 'console=ttyS0 kho=on liveupdate=on'\n"
      "  luoctl --json update kernel --kernel bzImage --dry-run | jq '.checks, .luod.checks'\n\n"
      "First everything is checked that can be known before: the image, its configuration (in it, or in\n"
      "config-VERSION or KERNEL.config beside it), whether it reads the state that this kernel writes, the\n"
      "command line, and what luod says of its sessions.\n"
      "One error stops it there, before anything is loaded or anybody disturbed. Then the kernel is\n"
      "loaded, services get ready, and luod reboots into it; on any failure before that all go on as\n"
      "they were and the kernel is unloaded. Programs end with the old kernel, this one too; started\n"
      "again, they retrieve their sessions by name. It takes root, a luod with the kernel medium\n"
      "(luod --medium kernel), and a running kernel with LUO.");

  auto* run = does(app.add_subcommand("run", "run a program that knows only /dev/liveupdate"), Action::Run);
  run->formatter(std::make_shared<UsageOf>("luoctl [--private DIR] run -- COMMAND [ARGUMENTS...]"));
  run->footer(
      "Examples:\n"
      "  luoctl --private=/tmp/d run -- ./test -s 1         stage 1 leaves a daemon that holds sessions\n"
      "  luoctl --private=/tmp/d update simulated           \"kexec\": its holders are gone, state is incoming\n"
      "  luoctl --private=/tmp/d run -- ./test -s 2\n"
      "  luoctl --private=/tmp/d stop\n\n"
      "COMMAND, and all that it starts, finds luod behind open(\"/dev/liveupdate\") and its ioctls, and gets\n"
      "what Linux 7.3 would answer. Dynamic, static, any language: nothing is preloaded.\n"
      "The exit status is COMMAND's; 128 + N if signal N ended it; 127 not found, 126 not executable;\n"
      "125 if it was not run because of luoctl. Limits: luoctl(1).");

  auto* inspect = does(
      app.add_subcommand("inspect", "what is in an arena's file, an image, the running luod, or the kernel's handover"),
      Action::Inspect);
  inspect->formatter(std::make_shared<UsageOf>("luoctl inspect [OPTIONS] {FILE | --live | --kho[=DIR]}"));
  inspect->add_option("file", options.file, "an arena (the memfd, or a copy of it) or an image of one");
  bool live = false;
  inspect->add_flag("--live", live, "what the running luod remembers, as of one moment");
  auto* kho = inspect
                  ->add_option("--kho", options.kho_folder,
                               "what the kernel handed over a kexec, and what it would now: of /sys/kernel/debug/kho,\n"
                               "or of a copy of it in DIR")
                  ->expected(0, 1)
                  ->type_name("[=DIR]");
  inspect->add_flag("--all", options.all, "also each chunk and segment, and all ranges of pages");
  inspect->add_flag("--dts", options.dts, "as device-tree source (see dtc(1))");
  inspect->footer(
      "Examples:\n"
      "  luoctl inspect --live\n"
      "  luoctl inspect --all /proc/$(pgrep -o kho-kv)/fd/3   another program's arena: its memory\n"
      "  luoctl --json inspect luod.image | jq '.engine.outgoing[].name'\n"
      "  luoctl inspect --kho                                 memory that the kernel hands over\n"
      "  luoctl inspect --dts --live | dtc -O dtb -o luod.dtb\n\n"
      "Changes nothing. What is damaged is named, with its place (exit status 1), and what is sound is\n"
      "shown all the same. The file of a program that runs may be in the middle of a change: stop it\n"
      "first, or look again.");

  does(app.add_subcommand("stop", "end luod; everything that it holds is given up"), Action::Stop)
      ->footer(
          "Examples:\n"
          "  luoctl stop\n\n"
          "To replace luod without losing anything: luoctl update luod.");

  const auto usage = [](std::string text) { return Parsed{std::nullopt, kUsage, std::move(text)}; };
  try {
    app.parse(static_cast<int>(dashes - argv), argv);
  } catch (const CLI::ParseError& e) {
    // For an unknown command the library's text would be that one is required.
    if (e.get_name() == "RequiredError")
      for (const CLI::App* in : {const_cast<const CLI::App*>(&app), const_cast<const CLI::App*>(update)})
        if (const auto left = in->remaining(); !left.empty())
          return usage(fmt::format("luoctl: '{}' is unknown here (see luoctl{} --help)\n", left.front(),
                                   in == update ? " update" : ""));
    std::ostringstream out, err;
    const bool asked = app.exit(e, out, err) == 0;
    return {std::nullopt, asked ? kDone : kUsage, asked ? out.str() : "luoctl: " + err.str()};
  }
  if (options.action == Action::UpdateService && options.command.empty())
    return usage("luoctl: what to start is missing: luoctl update service " + options.session + " -- COMMAND...\n");
  if (options.action == Action::Run && options.command.empty())
    return usage("luoctl: what to run is missing: luoctl run -- COMMAND...\n");
  if (options.action != Action::UpdateService && options.action != Action::Run && dashes != end)
    return usage("luoctl: only run and update service take a command after \"--\"\n");
  if (options.session.empty() &&
      (options.action == Action::UpdateService || options.action == Action::Show || options.action == Action::Drop))
    return usage("luoctl: a session's name has 1 to 63 bytes (see luoctl list)\n");
  if (options.action == Action::UpdateKernel && options.kernel.kernel.empty())
    return usage("luoctl: which kernel? luoctl update kernel --kernel FILE\n");
  options.kho = kho->count() != 0;
  if (options.action == Action::Inspect && live + !options.file.empty() + options.kho != 1)
    return usage("luoctl: inspect takes either the name of a file, or --live, or --kho\n");
  if (options.kho && (options.dts || options.all))
    return usage("luoctl: inspect --kho takes neither --dts nor --all\n");
  if (options.dts && options.json) return usage("luoctl: --dts and --json are two formats; choose one\n");
  options.timeout_ms = static_cast<std::uint32_t>(timeout * 1000 + 0.5);
  return {std::move(options), kDone, {}};
}

}  // namespace luo::cli
