// What several of these tests need: a connection that said hello, a session with files in it, crossings.
#pragma once
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "support/luod_fixture.h"
#include "support/luod_raw_client.h"

namespace luo::test {

/// Runs `body` in a child that leaves without destructors; its exit status, or minus the signal.
inline int in_fork(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

inline RawClient raw_client(const Luod& luod, const std::string& name = "raw", std::uint64_t ticket = 0) {
  auto client = RawClient::connect(luod.socket());
  LUO_CHECK(client.has_value());
  const auto greeted = client->hello(name, ticket);
  if (!greeted) ADD_FAILURE() << greeted.error().what;
  LUO_CHECK(greeted.has_value());
  return std::move(*client);
}

inline wire::NameArg name_arg(const std::string& name) {
  wire::NameArg arg{};
  arg.size = sizeof arg;
  wire::put_text(arg.name, name);
  return arg;
}

inline wire::PlainArg plain_arg(std::uint32_t reserved = 0) { return {sizeof(wire::PlainArg), reserved}; }
inline wire::TokenArg token_arg(std::uint64_t token) { return {sizeof(wire::TokenArg), -1, token}; }
inline wire::UpdateArg update_arg(const std::string& name = "", std::uint32_t timeout_ms = 0) {
  wire::UpdateArg arg{};
  arg.size = sizeof arg;
  arg.timeout_ms = timeout_ms;
  wire::put_text(arg.name, name);
  return arg;
}

inline Ran luoctl(const Luod& luod, std::vector<std::string> arguments) {
  std::vector<std::string> argv{program("luoctl"), "--socket", luod.socket()};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return run_program(argv);
}

inline void cross(const Luod& luod) {
  const Ran ran = luoctl(luod, {"update", "simulated", "--json"});
  ASSERT_EQ(ran.status, 0) << ran.out << ran.err;
}

/// A session over the raw protocol, accepted.
struct RawSession {
  std::uint64_t handle = 0;
  Fd fd;
};
inline RawSession raw_session(RawClient& client, wire::Command how, const std::string& name) {
  auto answer = client.call(how, 0, name_arg(name));
  LUO_CHECK(answer.has_value());
  if (answer->error() != 0 || answer->fds.size() != 1) return {};
  RawSession session{answer->header.session, std::move(answer->fds[0])};
  const auto accepted = client.call(wire::Command::Accept, session.handle, plain_arg());
  LUO_CHECK(accepted.has_value() && accepted->error() == 0);
  return session;
}

}  // namespace luo::test
