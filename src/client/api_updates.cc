// luo.h: updates. Requests take the connection's mutex; callbacks run with no lock held.
#include <unistd.h>

#include <algorithm>

#include "client/instance.h"

using namespace luo;
using namespace luo::client;

namespace {

int refuse(const luo_connection* c, Operation operation, std::string_view goal) noexcept {
  if (c == nullptr) return report(operation, goal, Error{EINVAL, "no connection (NULL)"});
  if (c->owner != getpid()) return report(operation, goal, Error{EOWNERDEAD, ""});
  if (c->is_kernel()) return report(operation, goal, Error{ENOTSUP, ""});
  return 0;
}

int send_verdict(luo_connection* c, const wire::VerdictArg& verdict) noexcept {
  return api_call(
      c, Operation::Update, [&] { return fmt::format("answer update {}", verdict.update); },
      [&]() -> Result<int> {
        c->request.start(wire::Command::Prepared, 0, 0).arg(verdict);
        LUO_TRY(c->ask(c->request));
        return 0;
      });
}

int answer_update(luo_connection* c, std::uint64_t id, bool refused, const char* reason) noexcept {
  if (const int error = refuse(c, Operation::Update, "answer an update"); error != 0) return error;
  wire::VerdictArg verdict{};
  verdict.refused = refused ? 1 : 0;
  verdict.update = id;
  wire::put_text(verdict.reason, reason == nullptr ? std::string_view{} : reason);
  {
    const std::lock_guard lock{c->update_mutex};
    if (c->preparing == id) c->verdict = verdict;
  }
  return send_verdict(c, verdict);
}

/// What an event asks to be called; empty if nobody wants to know.
struct Calls {
  luo_update_callbacks callbacks;
  void* context;
};

Result<int> on_prepare(luo_connection& c, const wire::PrepareEvent& event) {
  Calls call;
  {
    std::unique_lock lock{c.update_mutex};
    if (c.callbacks.prepare == nullptr) return 0;
    if (c.preparing == event.update) {
      // Sent again by a luod that crashed. What was answered may be lost with it; what was not is coming.
      const auto verdict = c.verdict;
      lock.unlock();
      if (verdict)
        if (const int error = send_verdict(&c, *verdict); error != 0) return fail(-error, "repeat the answer");
      return 0;
    }
    c.preparing = event.update;
    c.verdict.reset();
    call = {c.callbacks, c.context};
  }
  const luo_update update{static_cast<luo_update_kind>(event.kind), event.update,
                          static_cast<int>(std::min<std::uint32_t>(event.deadline_ms, INT32_MAX))};
  call.callbacks.prepare(call.context, &update);
  return 1;
}

int on_end(luo_connection& c, wire::Event kind, const wire::EndEvent& event) {
  Calls call;
  {
    const std::lock_guard lock{c.update_mutex};
    const bool was_told = c.preparing == event.update && event.update != 0;
    if (was_told) {
      c.preparing = 0;
      c.verdict.reset();
    }
    if (kind == wire::Event::Resumed && !was_told) return 0;
    call = {c.callbacks, c.context};
  }
  if (kind == wire::Event::Resumed) {
    if (call.callbacks.resumed == nullptr) return 0;
    const std::string why{wire::text_in(event.text)};
    call.callbacks.resumed(call.context, event.update, why.c_str());
    return 1;
  }
  if (call.callbacks.handed_over == nullptr) return 0;
  call.callbacks.handed_over(call.context, event.update);
  return 1;
}

/// Runs what an event asks for; returns how many callbacks ran. Kinds of a later luod are passed over.
Result<int> handle(luo_connection& c, const EventMessage& message) {
  const auto kind = static_cast<wire::Event>(message.event);
  switch (kind) {
    case wire::Event::Prepare: return on_prepare(c, LUO_TRY(wire::parse_arg<wire::PrepareEvent>(message.payload)));
    case wire::Event::Resumed:
    case wire::Event::HandedOver: return on_end(c, kind, LUO_TRY(wire::parse_arg<wire::EndEvent>(message.payload)));
  }
  return 0;
}

}  // namespace

int luo_on_update(struct luo_connection* c, const struct luo_update_callbacks* callbacks, void* context) {
  if (const int error = refuse(c, Operation::Update, "subscribe to updates"); error != 0) return error;
  {
    const std::lock_guard lock{c->update_mutex};
    c->callbacks = callbacks == nullptr ? luo_update_callbacks{} : *callbacks;
    c->context = context;
  }
  return api_call(
      c, Operation::Update, [] { return std::string{"subscribe to updates"}; },
      [&]() -> Result<int> {
        wire::PlainArg arg{};
        arg.reserved = callbacks == nullptr ? 0 : 1;
        c->request.start(wire::Command::Subscribe, 0, 0).arg(arg);
        LUO_TRY(c->ask(c->request));
        return 0;
      });
}

int luo_fd(struct luo_connection* c) {
  if (const int error = refuse(c, Operation::Update, "luo_fd"); error != 0) return error;
  return c->connection->events().poll_fd();
}

int luo_dispatch(struct luo_connection* c) {
  if (const int error = refuse(c, Operation::Update, "dispatch"); error != 0) return error;
  try {
    // A thread that waits for an answer holds the mutex, and queues what it meets meanwhile.
    Result<> received;
    if (std::unique_lock lock{c->mutex, std::try_to_lock}; lock.owns_lock()) received = c->connection->take_events();
    int ran = 0;
    while (const auto event = c->connection->events().pop()) {
      const auto calls = handle(*c, *event);
      if (!calls) return report(Operation::Update, "event from luod", calls.error());
      ran += *calls;
    }
    if (!received) return report(Operation::Update, "dispatch", received.error());
    return ran;
  } catch (const std::bad_alloc&) {
    return report(Operation::Update, "dispatch", Error{ENOMEM, ""});
  }
}

int luo_update_ready(struct luo_connection* c, uint64_t id) { return answer_update(c, id, false, nullptr); }

int luo_update_refuse(struct luo_connection* c, uint64_t id, const char* reason) {
  return answer_update(c, id, true, reason);
}

int luo_session_take_over(struct luo_connection* c, int session, int timeout_ms) {
  return api_call(
      c, Operation::TakeOver, [&] { return "take over " + c->describe(session); },
      [&]() -> Result<int> {
        if (LUO_TRY(c->look_at(session)).in_kernel) return only_luod();
        wire::WaitArg arg{};
        arg.timeout_ms = timeout_ms < 0 ? UINT32_MAX : static_cast<std::uint32_t>(timeout_ms);
        c->request.start(wire::Command::TakeOver, 0, 0).arg(arg);
        LUO_TRY(c->ask_about(session, c->request));
        return 0;
      });
}
