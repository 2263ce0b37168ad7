#include "cli/update_kernel.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <future>

#include "base/strong.h"
#include "cli/kernel_checks.h"
#include "sys/memfd.h"

namespace luo::cli {
namespace {

using nlohmann::json;
using wire::Command;

/// SIGINT as a descriptor, so that what is loaded can be unloaded. Not SIGTERM: that comes from a shutdown that has
/// begun.
class Interrupt {
 public:
  Interrupt() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, &before_);
    fd_ = Fd::adopt(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  ~Interrupt() {
    signalfd_siginfo info;
    while (read(fd_.raw(), &info, sizeof info) > 0) {}
    sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  int raw() const { return fd_.raw(); }

 private:
  sigset_t before_{};
  Fd fd_;
};

/// Does `work` in another thread, and says so if it takes long.
template <class Work>
auto with_progress(std::string what, Work work) {
  Progress progress{std::move(what)};
  auto done = std::async(std::launch::async, std::move(work));
  if (const int wait = progress.poll_timeout_ms(); wait >= 0)
    while (done.wait_for(std::chrono::milliseconds{progress.poll_timeout_ms()}) != std::future_status::ready)
      progress.tick();
  return done.get();
}

Result<Fd> open_file(const std::string& path, const char* what, const char* option) {
  Fd file = Fd::adopt(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return sys_fail("open the {} '{}' (choose another with {})", what, path, option);
  struct stat about {};
  if (fstat(file.raw(), &about) != 0) return sys_fail("fstat '{}'", path);
  if (!S_ISREG(about.st_mode)) return fail(EINVAL, "the {} '{}' is no regular file", what, path);
  return file;
}

Result<std::string> running_line() {
  constexpr const char* kPath = "/proc/cmdline";
  const Fd file = Fd::adopt(open(kPath, O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return sys_fail("open {} (or give the new kernel's command line with --cmdline)", kPath);
  std::string line = LUO_TRY(read_all(file, 64_KiB));
  while (line.ends_with('\n')) line.pop_back();
  return line;
}

bool systemd_is_running() { return access("/run/systemd/system", F_OK) == 0; }

class KernelUpdate {
 public:
  KernelUpdate(const Options& options, Style style, kexec::Slot& slot)
      : options_{options}, style_{style}, slot_{slot} {}

  Outcome run() {
    if (const auto opened = open_files(); !opened) return stop(kFailed, opened.error());
    auto reached = reach(options_);
    if (!reached) return failure(options_, kUnreachable, reached.error());
    connection_ = std::move(reached->connection);
    if (auto looked = look_at_kernel(); !looked) return stop(kFailed, std::move(looked).error());
    if (auto asked = ask_luod(); !asked) return stop(std::move(asked).error());
    say(heading());
    std::vector<Check> all = checks_;
    all.insert(all.end(), luods_checks_.begin(), luods_checks_.end());
    say(render_checks(all, style_) + render_left_behind(preflight_));
    if (const std::size_t errors = errors_in(all); errors != 0)
      return stop(kFailed, Error{ECANCELED, fmt::format("{} of these checks {}; nothing was loaded or changed", errors,
                                                        errors == 1 ? "says no" : "say no")});
    return load_and_go();
  }

 private:
  Result<> open_files() {
    kernel_ = LUO_TRY(open_file(options_.kernel.kernel, "kernel", "--kernel"));
    if (!options_.kernel.initrd.empty()) {
      initrd_ = LUO_TRY(open_file(options_.kernel.initrd, "initrd", "--initrd"));
      struct stat about {};
      if (fstat(initrd_.raw(), &about) != 0) return sys_fail("fstat the initrd");
      chosen_.initrd_size = static_cast<std::uint64_t>(about.st_size);
      chosen_.has_initrd = true;
    }
    chosen_.kernel = options_.kernel.kernel;
    chosen_.is_running_line = !options_.kernel.command_line;
    chosen_.command_line = chosen_.is_running_line ? LUO_TRY(running_line()) : *options_.kernel.command_line;
    return {};
  }

  Result<> look_at_kernel() {
    auto target = with_progress("read the kernel", [this] { return kexec::examine(kernel_, chosen_.kernel); });
    if (!target)
      return std::unexpected(std::move(target).error().during(fmt::format("the kernel '{}'", chosen_.kernel)));
    target_ = *std::move(target);
    Host host = this_host();
    host.loaded = slot_.loaded().value_or(false);  // a kernel that knows no kexec says so when it is to load one
    checks_ = check_kernel(chosen_, target_, host);
    return {};
  }

  Result<> ask_luod() {
    if ((connection_->capabilities() & wire::kCapKernel) == 0)
      return fail(EOPNOTSUPP, "this luod knows nothing of kernels: replace it first (luoctl update luod)");
    wire::QueryArg arg{};
    arg.kind = static_cast<std::uint32_t>(wire::QueryKind::Preflight);
    wire::Builder request;
    request.start(Command::Query, 0, 0).arg(arg);
    Progress progress{"ask luod"};
    client::Answer raw = LUO_TRY(ask(*connection_, request, progress));
    const client::Answer answer = LUO_TRY(client::verdict(std::move(raw)));
    preflight_ = LUO_TRY(report_in(answer));
    luods_checks_ = LUO_TRY(checks_of(preflight_, options_.kernel.drop_unclaimed));
    return {};
  }

  std::string heading() const {
    return fmt::format("{}: '{}', {} with {}\n", goal(), printable(chosen_.kernel),
                       amount(preflight_, "sessions", "session"), amount(preflight_, "files", "file"));
  }
  static std::string amount(const json& preflight, const char* key, const char* one) {
    const auto found = preflight.find(key);
    if (found == preflight.end() || !found->is_number_unsigned()) return fmt::format("? {}s", one);
    const auto n = found->get<std::uint64_t>();
    return fmt::format("{} {}{}", n, one, n == 1 ? "" : "s");
  }

  Outcome load_and_go() {
    auto done = with_progress("load the kernel", [this] { return slot_.load(kernel_, initrd_, chosen_.command_line); });
    if (!done) {
      const std::string advice = kexec::advice_on_load(done.error().code);
      return stop(kFailed, std::move(done).error().during(fmt::format("load '{}'", chosen_.kernel)), advice);
    }
    kexec::Loaded loaded{slot_};
    say(options_.kernel.dry_run ? "loaded; asking all to get ready (dry run)\n"
                                : "loaded; asking all to get ready, then the machine restarts\n");
    wire::UpdateKernelArg arg{};
    arg.timeout_ms = options_.timeout_ms;
    if (options_.kernel.dry_run) arg.flags |= wire::kUpdateDryRun;
    if (options_.kernel.drop_unclaimed) arg.flags |= wire::kUpdateDropUnclaimed;
    wire::Builder request;
    request.start(Command::UpdateKernel, 0, 0).arg(arg);
    const Interrupt interrupt;
    auto answer = wait_for_answer(request, interrupt);
    if (!answer) return without_an_answer(std::move(answer).error(), loaded);
    const auto report = report_in(*answer);
    if (report) report_ = *report;
    if (answer->header.error != 0) {
      const Error error = error_in(*answer, report ? &*report : nullptr);
      return stop(kFailed, error, kexec::advice_on_unload(loaded.unload()));
    }
    if (!options_.kernel.dry_run) loaded.keep();  // it is on its way
    const std::string unloaded = kexec::advice_on_unload(loaded.unload());
    if (!report) return stop(kFailed, report.error(), unloaded);
    if (options_.json) {
      json all = document(true);
      if (!unloaded.empty()) all["advice"] = unloaded;
      return {kDone, text_of(all), {}};
    }
    const auto text = render_kernel_update(*report, target_.release);
    if (!text) return stop(kFailed, text.error(), unloaded);
    return {kDone, *text, unloaded.empty() ? "" : "luoctl: " + unloaded + "\n"};
  }

  /// EINTR: the operator has had enough.
  Result<client::Answer> wait_for_answer(wire::Builder& request, const Interrupt& interrupt) {
    Progress progress{goal() + ": waiting until all are ready"};
    const int others[] = {interrupt.raw()};
    LUO_TRY(connection_->post(request));
    Woken woken = LUO_TRY(wait_for(*connection_, others, progress));
    if (!woken.answer) return fail(EINTR, "called off by the operator");
    return *std::move(woken.answer);
  }

  /// Nobody knows then how far luod has come. Under systemd a shutdown may have begun, which would become a reboot
  /// through the firmware if the kernel was not there any more. Without it the kernel's reboot fails, and luod takes
  /// all back.
  Outcome without_an_answer(Error error, kexec::Loaded& loaded) {
    const bool ours = options_.kernel.dry_run || (error.code == EINTR && !systemd_is_running());
    if (!ours) loaded.keep();
    const std::string advice = ours ? kexec::advice_on_unload(loaded.unload())
                                    : "the kernel stays loaded; if the machine does not restart, see luoctl status and "
                                      "luod's log, and kexec -u";
    connection_.reset();
    return stop(std::move(error), advice);
  }

  std::string goal() const { return options_.kernel.dry_run ? "update kernel (dry run)" : "update kernel"; }

  /// On stdout at once.
  void say(const std::string& text) const {
    if (options_.json) return;
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }

  json document(bool ok) const {
    json out = {{"ok", ok}, {"dry_run", options_.kernel.dry_run}, {"command_line", printable(chosen_.command_line)}};
    if (!checks_.empty()) out["kernel"] = to_json(target_), out["checks"] = to_json(checks_);
    out["kernel"]["path"] = chosen_.kernel;
    if (!preflight_.is_null()) {
      out["luod"] = preflight_;
      out["luod"]["checks"] = to_json(luods_checks_);
    }
    if (!report_.is_null()) out["report"] = report_;
    return out;
  }
  static std::string text_of(const json& document) {
    return document.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
  }

  Outcome stop(Error error, const std::string& advice = {}) const {
    const ExitStatus status = status_of(error);
    return stop(status, std::move(error), advice);
  }
  Outcome stop(ExitStatus status, Error error, const std::string& advice = {}) const {
    error = std::move(error).during(goal());
    Outcome out = failure(options_, status, error);
    if (options_.json) {
      json all = document(false);
      all.update(json::parse(out.out));
      if (!advice.empty()) all["advice"] = advice;
      out.out = text_of(all);
    } else if (!advice.empty()) {
      out.err += "  " + printable(advice) + "\n";
    }
    return out;
  }

  const Options& options_;
  const Style style_;
  kexec::Slot& slot_;
  Fd kernel_, initrd_;
  Chosen chosen_;
  std::optional<client::Connection> connection_;
  kexec::Target target_;
  std::vector<Check> checks_, luods_checks_;
  json preflight_, report_;
};

}  // namespace

Outcome update_kernel(const Options& options, Style style, kexec::Slot& slot) {
  return KernelUpdate{options, style, slot}.run();
}

Outcome update_kernel(const Options& options, Style style) {
  kexec::KernelSlot slot;
  return update_kernel(options, style, slot);
}

}  // namespace luo::cli
