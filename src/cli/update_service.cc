// luoctl update service: starts the successor, and ends it if the update ends without it.
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <filesystem>

#include "cli/child.h"
#include "cli/commands.h"

namespace luo::cli {
namespace {

using nlohmann::json;
using wire::Command;

constexpr std::chrono::milliseconds kGrace{5000}, kMoment{1000};

/// SIGINT and SIGTERM as a descriptor: Ctrl-C calls the update off instead of leaving it half-way.
class Interrupts {
 public:
  Interrupts() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, &before_);
    fd_ = Fd::adopt(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  ~Interrupts() { release(); }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;
  int raw() const { return fd_.raw(); }
  /// Takes those that came; a later one ends us as usual.
  void release() const {
    signalfd_siginfo info;
    while (read(fd_.raw(), &info, sizeof info) > 0) {}
    sigprocmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t before_{};
  Fd fd_;
};

class ServiceUpdate {
 public:
  ServiceUpdate(const Options& options, Reached reached)
      : options_{options}, socket_{std::move(reached.socket)}, connection_{std::move(reached.connection)} {}

  Outcome run() {
    const Interrupts interrupts;
    if (auto offered = offer(); !offered) return failure(options_, offered.error());
    if (auto started = start(); !started) {
      (void)call_off(to_string(started.error()));
      return failure(options_, kFailed, std::move(started).error().during(goal()));
    }
    Result<client::Answer> ended = wait(interrupts);
    if (ended && ended->header.error == 0) return succeeded(*ended);
    return failed(std::move(ended));
  }

 private:
  std::string goal() const { return fmt::format("update service '{}'", options_.session); }

  Result<> offer() {
    wire::UpdateArg arg{};
    arg.timeout_ms = options_.timeout_ms;
    if (options_.session.size() >= sizeof arg.name)
      return fail(ENOENT, "{}: a session's name has at most {} bytes", goal(), sizeof arg.name - 1);
    wire::put_text(arg.name, options_.session);
    wire::Builder request;
    request.start(Command::UpdateService, 0, 0).arg(arg);
    Progress progress{goal()};
    client::Answer raw = LUO_TRY(ask(connection_, request, progress));
    const client::Answer answer = LUO_TRY(client::verdict(std::move(raw)));
    auto offered = wire::parse_arg<wire::UpdateArg>(answer.payload);
    if (!offered) return fail(EPROTO, "{}: luod's answer: {}", goal(), offered.error().what);
    offered_ = *offered;
    return {};
  }

  Result<> start() {
    log_ = LUO_TRY(open_log(options_.log, static_cast<pid_t>(offered_.owner_pid), socket_, options_.session));
    std::error_code ignored;
    const auto absolute = std::filesystem::absolute(socket_, ignored);
    const Program program{options_.command,
                          {{"LUO_TICKET", fmt::format("{:x}", offered_.ticket)},
                           {"LUO_SOCKET", absolute.empty() ? socket_ : absolute.string()}}};
    child_ = LUO_TRY(start_detached(program, *log_));
    return {};
  }

  /// The answer that says how the update ended. What ends the child or us meanwhile calls it off.
  Result<client::Answer> wait(const Interrupts& interrupts) {
    wire::Builder request;
    wire::UpdateArg arg{};
    arg.id = offered_.id;
    request.start(Command::UpdateWait, 0, 0).arg(arg);
    Progress progress{goal()};
    LUO_TRY(connection_.post(request));
    std::vector<int> others{interrupts.raw(), child_->pidfd.raw()};
    for (;;) {
      Woken woken = LUO_TRY(wait_for(connection_, others, progress));
      if (woken.answer) return *std::move(woken.answer);
      // luod may just have finished the update; then it refuses the cancel, and its answer tells.
      if (woken.other == 0) {
        interrupts.release();
        LUO_TRY(call_off("called off by the operator"));
      } else {
        ended_ = "the new process " + how_it_ended(*child_);
        others.pop_back();
        LUO_TRY(call_off(ended_ + " before it had taken over"));
      }
    }
  }

  /// On a connection of its own: on ours, luod would come to it only after the update has ended.
  Result<> call_off(std::string_view why) {
    client::Connection other = LUO_TRY(client::Connection::open(socket_, {"luoctl", 0}));
    wire::UpdateArg arg{};
    arg.id = offered_.id;
    wire::put_text(arg.text, why);
    wire::Builder request;
    request.start(Command::UpdateCancel, 0, 0).arg(arg);
    client::Answer answer = LUO_TRY(other.call(request));
    if (answer.header.error == ENOENT) return {};  // it has ended meanwhile
    LUO_TRY(client::verdict(std::move(answer)));
    return {};
  }

  Outcome succeeded(const client::Answer& answer) {
    auto report = report_in(answer);
    if (!report) return failure(options_, kFailed, report.error());
    if (options_.json) {
      (*report)["log"] = log_->path;
      (*report)["child_pid"] = child_->pid;
      return {kDone, report->dump(2, ' ', false, json::error_handler_t::replace) + "\n", {}};
    }
    const auto text = render_update(*report);
    if (!text) return failure(options_, kFailed, text.error());
    return {kDone, *text + fmt::format("  its log: {}\n", printable(log_->path)), {}};
  }

  Outcome failed(Result<client::Answer> ended) {
    if (ended_.empty()) {
      // luod learns of the successor's death from its socket, a moment before we do.
      const bool died = ended && ended->header.error == ECONNABORTED && ends_within(*child_, kMoment);
      if (died) ended_ = "the new process " + how_it_ended(*child_);
      else terminate(*child_, kGrace);
    }
    const std::string words = last_words(*log_);
    if (!ended) return failure(options_, std::move(ended).error().during(goal()), words);
    auto report = report_in(*ended);
    if (options_.json && report) {
      (*report)["log"] = log_->path;
      (*report)["last_words"] = words;
      if (!ended_.empty()) (*report)["child"] = ended_;
      return {kFailed, report->dump(2, ' ', false, json::error_handler_t::replace) + "\n", {}};
    }
    Error error = error_in(*ended, report ? &*report : nullptr);
    if (!ended_.empty() && error.what.find(ended_) == std::string::npos) error = std::move(error).during(ended_);
    return failure(options_, kFailed, std::move(error).during(goal()), words);
  }

  const Options& options_;
  const std::string socket_;
  client::Connection connection_;
  wire::UpdateArg offered_{};
  std::optional<Log> log_;
  std::optional<Child> child_;
  std::string ended_;  ///< how, once the child has ended by itself
};

}  // namespace

Outcome update_service(const Options& options) {
  auto reached = reach(options);
  if (!reached) return failure(options, kUnreachable, reached.error());
  return ServiceUpdate{options, *std::move(reached)}.run();
}

}  // namespace luo::cli
