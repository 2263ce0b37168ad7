// The parts of an update of a service, played by a test: the owner, luoctl, and the successor.
#pragma once
#include <poll.h>

#include <optional>

#include "scenario.h"

namespace luo::test {

inline wire::WaitArg wait_arg(std::uint32_t timeout_ms) {
  wire::WaitArg arg{};
  arg.size = sizeof arg;
  arg.timeout_ms = timeout_ms;
  return arg;
}

/// Plays all three: the owner, luoctl, and the successor.
struct Play {
  explicit Play(Luod& l, bool subscribes = true, std::string called = "s")
      : luod{l}, name{std::move(called)}, owner{raw_client(l, "owner")}, admin{raw_client(l, "admin")} {
    session = raw_session(owner, wire::Command::CreateSession, name);
    const Fd file = memfd_with("content");
    const int fd = file.raw();
    LUO_CHECK(owner.call(wire::Command::PreserveFd, session.handle, token_arg(1), {&fd, 1})->error() == 0);
    if (subscribes) LUO_CHECK(owner.call(wire::Command::Subscribe, 0, plain_arg(1))->error() == 0);
  }
  int offer(std::uint32_t timeout_ms = 20'000) {
    const auto answer = admin.call(wire::Command::UpdateService, 0, update_arg(name, timeout_ms));
    LUO_CHECK(answer.has_value());
    update = answer->as<wire::UpdateArg>();
    if (answer->error() == 0) LUO_CHECK(admin.post(wire::Command::UpdateWait, 0, wait_for()).has_value());
    return answer->error();
  }
  wire::UpdateArg wait_for() const {
    wire::UpdateArg arg = update_arg();
    arg.id = update.id;
    return arg;
  }
  void start_successor() { successor.emplace(raw_client(luod, "successor", update.ticket)); }
  void warm() {
    taken = raw_session(*successor, wire::Command::RetrieveSession, name);
    LUO_CHECK(taken.fd.valid());
    const auto file = successor->call(wire::Command::RetrieveFd, taken.handle, token_arg(1));
    LUO_CHECK(file.has_value() && file->error() == 0 && content_of(file->fds.at(0)) == "content");
  }
  void ask_to_take_over() {
    LUO_CHECK(successor->post(wire::Command::TakeOver, taken.handle, wait_arg(20'000)).has_value());
  }
  bool owner_is_asked() {
    const auto event = owner.event();
    return event && event->header.command == static_cast<std::uint32_t>(wire::Event::Prepare) &&
           event->as<wire::PrepareEvent>().update == update.id;
  }
  int verdict(const std::string& refusal = "") {
    wire::VerdictArg arg{};
    arg.size = sizeof arg;
    arg.update = update.id;
    arg.refused = refusal.empty() ? 0 : 1;
    wire::put_text(arg.reason, refusal);
    return owner.call(wire::Command::Prepared, 0, arg)->error();
  }
  std::string end_of_owner() {
    for (;;) {
      const auto event = owner.event();
      if (!event) return event.error().what;
      const auto kind = static_cast<wire::Event>(event->header.command);
      if (kind == wire::Event::HandedOver) return "handed over";
      if (kind == wire::Event::Resumed) {
        const auto end = event->as<wire::EndEvent>();
        return "resumed: " + std::string{wire::text_in(end.text)};
      }
    }
  }
  void die(std::optional<RawClient>& who, RawSession& with) {
    with.fd.close();
    who.reset();
  }
  /// How it ended, as luoctl learns it.
  std::string outcome() {
    const auto answer = admin.answer();
    if (!answer) return answer.error().what;
    const std::string report = answer->fds.empty() ? "" : content_of(answer->fds[0]);
    return answer->error() == 0 ? "done" : fmt::format("{}: {}", strerrorname_np(answer->error()), report);
  }
  /// The owner has it, with what was in it, and may go on.
  void expect_owner_serves() {
    EXPECT_EQ(luod.show(name).value("state", ""), "outgoing") << luod.log();
    EXPECT_EQ(luod.show(name).value("successor", true), false);
    const Fd more = memfd_with("more");
    const int fd = more.raw();
    EXPECT_EQ(owner.call(wire::Command::PreserveFd, session.handle, token_arg(2), {&fd, 1})->error(), 0);
    EXPECT_EQ(owner.call(wire::Command::UnpreserveFd, session.handle, token_arg(2))->error(), 0);
    EXPECT_EQ(luod.status()["files"], 1);
    pollfd hang{session.fd.raw(), 0, 0};
    EXPECT_EQ(poll(&hang, 1, 0), 0) << "its session was given up";
  }
  void expect_successor_owns() {
    EXPECT_EQ(luod.show(name).value("state", ""), "outgoing") << luod.log();
    EXPECT_EQ(luod.show(name).value("successor", true), false);
    EXPECT_TRUE(hung_up(session.fd.raw()));
    const Fd more = memfd_with("more");
    const int fd = more.raw();
    EXPECT_EQ(successor->call(wire::Command::PreserveFd, taken.handle, token_arg(2), {&fd, 1})->error(), 0);
    EXPECT_EQ(successor->call(wire::Command::UnpreserveFd, taken.handle, token_arg(2))->error(), 0);
    EXPECT_EQ(luod.status()["files"], 1);
    EXPECT_EQ(owner.call(wire::Command::UnpreserveFd, session.handle, token_arg(1))->error(), EBADF)
        << "the old one's handle";
  }
  int complete() { return successor->call(wire::Command::Renew, taken.handle, plain_arg())->error(); }

  Luod& luod;
  const std::string name;
  RawClient owner, admin;
  std::optional<RawClient> successor;
  RawSession session, taken;
  wire::UpdateArg update{};
};

}  // namespace luo::test
