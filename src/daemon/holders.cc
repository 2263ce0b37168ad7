// Who holds a session: watching the write ends of its pipes, and what follows from the last close of a read end.
#include "base/log.h"
#include "daemon/server.h"
#include "sys/pipe.h"

namespace luo::daemon {

/// Knows them all; watches follow. Returns how many descriptors sessions and files have.
std::uint64_t Server::expect_holders() {
  std::uint64_t descriptors = engine_->file_count();
  engine_->for_each_holder([&](SessionId id, Role role, int write_fd, int read_fd) {
    descriptors += (write_fd >= 0 ? 1U : 0U) + (read_fd >= 0 ? 1U : 0U);
    if (write_fd >= 0) holders_->expect(write_fd, id, role);
  });
  return descriptors;
}

/// After an update of luod the sessions are watched bit by bit, beside serving: whoever is in the way of a request is
/// asked then, watched or not, and one whose descriptor was closed is found by watching it (ADR 0015).
/// A new source each time: one that stays would be the oldest that waits, and go before every request.
void Server::watch_soon() {
  const auto watch = [](sd_event_source*, void* context) {
    static_cast<Server*>(context)->watch_some_holders(64);
    return 0;
  };
  sd_event_source* raw = nullptr;
  if (sd_event_add_defer(loop_.get(), &raw, watch, this) >= 0) watch_source_.reset(raw);
}

bool Server::watch_some_holders(std::size_t count) {
  const Result<bool> more = holders_->watch_some(count, [this](int write_fd, SessionId id, Role role) {
    const auto session = engine_->find(id);
    return session && session->holder[role == Role::Owner ? 0 : 1].write_fd == write_fd;
  });
  watch_source_.reset();
  if (more && *more) watch_soon();
  if (more) return true;
  log(Level::Warning, "{}; trying again", more.error());
  const auto again = [](sd_event_source*, std::uint64_t, void* context) {
    static_cast<Server*>(context)->watch_soon();
    return 0;
  };
  sd_event_source* timer = nullptr;
  if (sd_event_add_time_relative(loop_.get(), &timer, CLOCK_MONOTONIC, 100'000, 0, again, this) >= 0)
    watch_retry_.reset(timer);
  return false;
}

/// What is reported is nobody's any more, but another process, an old luod that is ending, still has a copy, so the
/// kernel goes on reporting it. Others are to be served meanwhile.
void Server::rest_holders() {
  const auto again = [](sd_event_source*, std::uint64_t, void* context) {
    sd_event_source_set_enabled(static_cast<Server*>(context)->holder_source_.get(), SD_EVENT_ON);
    return 0;
  };
  sd_event_source* timer = nullptr;
  if (sd_event_add_time_relative(loop_.get(), &timer, CLOCK_MONOTONIC, 1'000, 0, again, this) < 0) return;
  holder_retry_.reset(timer);
  sd_event_source_set_enabled(holder_source_.get(), SD_EVENT_OFF);
}

bool Server::reap_closed() {
  if (control_.leaving.load() != 0) {
    // A shutdown ends the owners, but what they have preserved crosses. displace_late_files() turns it on again.
    sd_event_source_set_enabled(holder_source_.get(), SD_EVENT_OFF);
    return false;
  }
  bool any = false;
  const std::vector<int> reported = holders_->closed();
  for (const int write_fd : reported) {
    if (!reader_gone(write_fd) || holders_->find(write_fd).session.raw() == 0) continue;
    on_holder_closed(write_fd);
    any = true;
  }
  if (!any && !reported.empty()) rest_holders();
  return any;
}

void Server::on_holder_closed(int write_fd) {
  const HolderWatch::Hit hit = holders_->find(write_fd);
  if (hit.session.raw() == 0 || control_.leaving.load() != 0) return;
  holders_->forget(write_fd);
  const auto before = engine_->find(hit.session);
  if (!before) return;
  Change change{arena_};
  engine_->holder_closed(change, hit.session, hit.role);
  change.commit();
  log(Level::Debug, "session '{}': last descriptor of its {} closed while {}", before->name,
      hit.role == Role::Owner ? "owner" : "successor", to_string(before->state));
  holder_is_gone(hit.session, hit.role);
}

void Server::holder_is_gone(SessionId id, Role role, std::uint64_t has_it_now) {
  // Whoever held it by that descriptor has no right to it any more, whatever becomes of the session.
  const bool gone = !engine_->find(id).has_value();
  for (bool more = true; more;) {
    Change step{arena_};
    more = state_->drop_some_grants_of_session(step, id, [&](const GrantRec& grant) {
      return gone || (grant.role == static_cast<std::uint32_t>(role) && grant.peer != has_it_now);
    });
    step.commit();
  }
  update_lost_holder(id, role);
  settle_medium();
  wake_parked();
}

/// Closes that operations of the engine carried out because they were in the way. If their step was taken
/// back, the holder is still named, and the loop will see its close.
void Server::settle_closed() {
  while (!closed_on_the_way_.empty()) {
    const int write_fd = closed_on_the_way_.back();
    closed_on_the_way_.pop_back();
    const HolderWatch::Hit hit = holders_->find(write_fd);
    if (hit.session.raw() == 0) continue;
    const auto session = engine_->find(hit.session);
    const Holder now = session ? session->holder[hit.role == Role::Owner ? 0 : 1] : Holder{};
    if (now.write_fd == write_fd) continue;
    holders_->forget(write_fd);
    holder_is_gone(hit.session, hit.role, now.write_fd >= 0 ? now.peer.raw() : 0);  // it may have been given out again
  }
}

}  // namespace luo::daemon
