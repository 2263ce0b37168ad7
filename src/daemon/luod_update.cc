// `luoctl update luod`: probe the new image beside the loop, then the trial (trial.h).
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "daemon/server.h"
#include "daemon/trial.h"
#include "daemon/version.h"
#include "sys/memfd.h"
#include "sys/pipe.h"
#include "sys/process.h"

namespace luo::daemon {
namespace {

constexpr std::uint32_t kDefaultTimeoutMs = 10'000;

bool hung_up(FdRef connection) {
  pollfd one{connection.raw, POLLRDHUP, 0};
  return poll(&one, 1, 0) > 0 && (one.revents & (POLLHUP | POLLRDHUP)) != 0;
}

std::string report_text(const Error* error, std::string_view to, double pause_ms, std::string_view words) {
  const nlohmann::json json = {{"ok", error == nullptr},   {"kind", "luod"},
                               {"from_version", kVersion}, {"to_version", to},
                               {"pause_ms", pause_ms},     {"error", error != nullptr ? to_string(*error) : ""},
                               {"last_words", words}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

Result<Next> Server::update_luod(Request& request, Reply& reply, Change& change) {
  const auto arg = LUO_TRY(wire::parse_arg<wire::UpdateArg>(request.payload));
  if (request.fds.size() != 1) return fail(EBADMSG, "UPDATE_LUOD with {} descriptors", request.fds.size());
  LUO_TRY(check_image(request.fds[0], FdRef::borrow(request.peer.fd)));
  const std::uint32_t timeout_ms = arg.timeout_ms != 0 ? arg.timeout_ms : kDefaultTimeoutMs;
  const auto refuse = [&](const Error& error, std::string_view words) -> Result<Next> {
    attach_report(reply, report_text(&error, "?", 0, words));
    reply.error = error;
    return Next::Answer;
  };

  const bool mine = probe_ && probe_peer_ == request.peer.id && probe_nonce_ == request.header.nonce;
  if (probe_ && !mine) {
    const PeerRec* other = state_->find_peer(probe_peer_);
    if (other != nullptr && !hung_up(FdRef::borrow(other->fd)))
      return fail(EBUSY, "another update of luod is under way");
    probe_source_.reset();  // whoever asked for it has gone, seen or not
    probe_.reset();
  }
  if (!mine) {
    if (auto started = start_probe(request, timeout_ms); !started)
      return refuse(std::move(started).error().during("ask the new image"), "");
    request.parked_until_ns = UINT64_MAX;
    arm_deadlines();
    return Next::Park;
  }
  if (!probe_->done()) {
    request.parked_until_ns = UINT64_MAX;
    return Next::Park;
  }
  const Result<ProbeAnswer> answer = probe_->result();
  const std::string words = probe_->last_words();
  probe_source_.reset();
  probe_.reset();
  if (!answer) return refuse(answer.error(), words);

  // All that can fail is done before the step is given up; after that nothing comes back here.
  Fd last_words = LUO_TRY(make_memfd("luod-last-words", 0));
  Pipe report = LUO_TRY(make_pipe());
  Fd keeper = LUO_TRY(open_pidfd(control_.keeper_pid.load()));
  TrialParts parts{.image = std::move(request.fds[0]),
                   .words = std::move(last_words),
                   .report = std::move(report),
                   .keeper = std::move(keeper)};
  if (answer->layout == Engine::kVersion) {
    change.tx.abort();
  } else {
    if (kernel_)
      return refuse(
          fail(ENOTSUP, "an older luod does not know the kernel's LUO, and would give up what is preserved there")
              .error(),
          "");
    // An older luod: it gets what it can read. If the trial fails, the next worker of ours takes it back.
    const Change::Mark before = change.mark();
    if (auto written = engine_->write_version_before(change); !written) {
      change.back_to(before);
      return refuse(std::move(written).error().during("go back to an older luod"), "");
    }
    change.commit();
  }
  begin_trial(std::move(parts), request.peer, request.header.nonce, timeout_ms, answer->version);
}

void Server::begin_trial(TrialParts parts, const PeerRec& requester, std::uint64_t nonce, std::uint32_t timeout_ms,
                         const std::string& to_version) {
  log(Level::Notice, "update from {} to {}: handing over {} sessions, {} files", kVersion, to_version,
      engine_->session_count(), engine_->file_count());
  control_.trial_begin_ns = monotonic_ns();
  control_.trial_guard_pid = getpid();
  control_.trial_image_fd = parts.image.release();
  control_.trial_words_fd = parts.words.release();
  control_.trial_report_fd = parts.report.write.release();
  control_.trial_requester_fd = requester.fd;
  control_.trial_peer = requester.id;
  control_.trial_nonce = nonce;
  control_.trial_errno = 0;
  control_.trial_why[0] = '\0';
  wire::put_text(control_.trial_from, kVersion);
  wire::put_text(control_.trial_to, to_version);

  // Sessions and files were made so that they go over an exec: here a call for each would be a long pause.
#ifndef NDEBUG
  std::vector<int> held;
  engine_->append_fds(held);
  for (const int fd : held) LUO_CHECK(fcntl(fd, F_GETFD) == 0);
#endif
  fcntl(control_.trial_image_fd, F_SETFD, FD_CLOEXEC);
  std::vector<int> kept{control_.trial_words_fd, control_.trial_report_fd};
  append_control_fds(control_, kept);
  state_->append_fds(kept);
  keep_over_exec(kept);
  guard_trial(control_, worker_main_, parts.keeper, parts.report.read, timeout_ms);
}

/// The request that began the trial is answered by whoever serves after it.
void Server::settle_trial() {
  const auto trial = static_cast<Trial>(control_.trial.load());
  if (trial == Trial::None) return;
  const bool ok = trial == Trial::Serving;
  const std::string words = tail_of(FdRef::borrow(control_.trial_words_fd));
  dup3(control_.log_fd, STDERR_FILENO, 0);
  if (ok) {
    // Once more: a worker that was killed as soon as it served may not have told the guard.
    [[maybe_unused]] const ssize_t told = write(control_.trial_report_fd, "s", 1);
    control_.luod_updates.fetch_add(1);
    if (!words.empty()) log(Level::Notice, "the new luod said while it started:\n{}", words);
  }
  const double pause_ms = static_cast<double>(monotonic_ns() - control_.trial_begin_ns) / 1e6;
  const Error error{control_.trial_errno != 0 ? control_.trial_errno : ECANCELED, control_.trial_why};
  log(ok ? Level::Notice : Level::Error, "update of luod from {} to {}: {} after {:.3f} ms", control_.trial_from,
      control_.trial_to, ok ? "serving" : to_string(error), pause_ms);

  PeerRec* peer = state_->find_peer(control_.trial_peer);
  if (peer != nullptr && state_->last_answer(*peer).nonce < control_.trial_nonce) {
    Request request{.peer = *peer, .header = {}, .payload = {}, .fds = received_.fds, .parked_until_ns = 0};
    request.header.command = static_cast<std::uint32_t>(wire::Command::UpdateLuod);
    request.header.nonce = control_.trial_nonce;
    Reply reply;
    attach_report(reply, report_text(ok ? nullptr : &error, control_.trial_to, pause_ms, ok ? "" : words));
    if (ok) reply.put(wire::PlainArg{sizeof(wire::PlainArg), 0});
    Change change{arena_};
    this->answer(peers_.at(peer->id), *peer, request, change, reply, ok ? nullptr : &error);
  }
  // Nothing names them any more from here on; killed before the close, the next worker sweeps them.
  const int left[] = {control_.trial_image_fd, control_.trial_words_fd, control_.trial_report_fd};
  control_.trial.store(static_cast<std::uint32_t>(Trial::None));
  for (const int fd : left)
    if (fd >= 0 && fcntl(fd, F_GETFD) >= 0) close_number(fd);
}

}  // namespace luo::daemon
