// All that may change a session's state. Every change goes through next(): what is not in kEdges does
// not happen.
#pragma once
#include <cstdint>
#include <optional>

#include "luo/engine.h"

namespace luo {

/// The session's record is being taken down; no view shows it.
inline constexpr SessionState kGone{0};

enum class SessionEvent : std::uint32_t {
  Prepare,   ///< its owner is told that an update is coming
  Freeze,    ///< all handlers have frozen their files
  Cancel,    ///< the update is off
  Cross,     ///< the point of no return is behind us
  Retrieve,  ///< somebody gets it
  PutBack,   ///< who got it never had it, or could not finish it
  Finish,    ///< what was kept is given up
  Renew,     ///< the new owner keeps it for the next update
  TakeOver,  ///< the successor is the owner now
  Drop,      ///< the operator gives up what nobody has
  Keep,      ///< all others crossed; it is held, and waits on
  Close,     ///< last close
};

struct SessionEdge {
  SessionState from;
  SessionEvent on;
  SessionState to;
};

inline constexpr SessionEdge kEdges[] = {
    {SessionState::Outgoing, SessionEvent::Prepare, SessionState::Preparing},
    {SessionState::Outgoing, SessionEvent::Freeze, SessionState::Frozen},      // an owner that wants no notice
    {SessionState::Outgoing, SessionEvent::TakeOver, SessionState::Outgoing},  // its owner died first
    {SessionState::Outgoing, SessionEvent::Close, kGone},
    {SessionState::Preparing, SessionEvent::Freeze, SessionState::Frozen},
    {SessionState::Preparing, SessionEvent::Cancel, SessionState::Outgoing},
    {SessionState::Preparing, SessionEvent::TakeOver, SessionState::Outgoing},
    {SessionState::Preparing, SessionEvent::Close, kGone},
    {SessionState::Frozen, SessionEvent::Cancel, SessionState::Outgoing},
    {SessionState::Frozen, SessionEvent::TakeOver, SessionState::Outgoing},
    {SessionState::Frozen, SessionEvent::Cross, SessionState::Incoming},
    {SessionState::Frozen, SessionEvent::Close, kGone},
    {SessionState::Incoming, SessionEvent::Retrieve, SessionState::Retrieved},
    {SessionState::Incoming, SessionEvent::Drop, SessionState::Finished},
    {SessionState::Incoming, SessionEvent::Keep, SessionState::Incoming},
    {SessionState::Retrieved, SessionEvent::Keep, SessionState::Incoming},
    {SessionState::Retrieved, SessionEvent::PutBack, SessionState::Incoming},
    {SessionState::Retrieved, SessionEvent::Finish, SessionState::Finished},
    {SessionState::Retrieved, SessionEvent::Renew, SessionState::Outgoing},
    {SessionState::Finished, SessionEvent::Close, kGone},
};

/// Where `on` leads from `from`; nullopt: nowhere.
constexpr std::optional<SessionState> next(SessionState from, SessionEvent on) noexcept {
  for (const SessionEdge& edge : kEdges)
    if (edge.from == from && edge.on == on) return edge.to;
  return std::nullopt;
}

/// Whether files may come and go.
constexpr bool takes_files(SessionState s) noexcept {
  return s == SessionState::Outgoing || s == SessionState::Preparing;
}
constexpr bool is_outgoing(SessionState s) noexcept { return takes_files(s) || s == SessionState::Frozen; }
constexpr bool is_incoming(SessionState s) noexcept {
  return s == SessionState::Incoming || s == SessionState::Retrieved || s == SessionState::Finished;
}

namespace lifecycle_detail {
constexpr bool no_pair_twice() {
  for (const SessionEdge& a : kEdges)
    for (const SessionEdge& b : kEdges)
      if (&a != &b && a.from == b.from && a.on == b.on) return false;
  return true;
}
constexpr bool nothing_leaves_gone() {
  for (const SessionEdge& e : kEdges)
    if (e.from == kGone) return false;
  return true;
}
/// Only Cross makes an incoming session of an outgoing one, only Renew the reverse.
constexpr bool sides_change_only_at_the_gates() {
  for (const SessionEdge& e : kEdges) {
    if (is_outgoing(e.from) && is_incoming(e.to) && e.on != SessionEvent::Cross) return false;
    if (is_incoming(e.from) && is_outgoing(e.to) && e.on != SessionEvent::Renew) return false;
  }
  return true;
}
}  // namespace lifecycle_detail
static_assert(lifecycle_detail::no_pair_twice());
static_assert(lifecycle_detail::nothing_leaves_gone());
static_assert(lifecycle_detail::sides_change_only_at_the_gates());
static_assert(!next(SessionState::Outgoing, SessionEvent::Cross), "only what is frozen crosses");
static_assert(!next(SessionState::Retrieved, SessionEvent::Close), "a retrieved session ends finished or put back");
static_assert(!next(SessionState::Incoming, SessionEvent::Finish), "nobody finishes what nobody has");

}  // namespace luo
