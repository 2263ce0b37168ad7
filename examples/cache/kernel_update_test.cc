// luo-cache and an update of the kernel, without a kernel: what it says to a luod that announces one, what it makes of
// a session that has come in without its sockets, or with an image instead of the arena. With a kernel: tests/vm.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

#include <ctime>
#include <future>
#include <map>

#include "cache/store.h"
#include "cache/test_client.h"
#include "client/fake_luod.h"
#include "kho/image.h"
#include "support/luod_fixture.h"

namespace luo::cache::test {
namespace {

using client::FakeLuod;
using luo::test::Client;
using luo::test::Luod;
using luo::test::program;
using luo::test::run_program;
using ::testing::HasSubstr;
using wire::Command;

constexpr int kKeys = 1000;

void load(RespClient& client) {
  for (int i = 0; i < kKeys; ++i)
    ASSERT_EQ(client.command({"SET", fmt::format("key:{}", i), fmt::format("value {}", i * 7)}), "+OK\r\n");
}
void expect_loaded(int port) {
  auto client = RespClient::tcp(port);
  for (int i = 0; i < kKeys; ++i) {
    const std::string value = fmt::format("value {}", i * 7);
    ASSERT_EQ(client.command({"GET", fmt::format("key:{}", i)}), fmt::format("${}\r\n{}\r\n", value.size(), value));
  }
}

// --- what it tells luod -----------------------------------------------------------------------------------

/// A luod that keeps what it is given, for one client, and says what was asked.
class Keeper {
 public:
  explicit Keeper(FakeLuod& luod) : luod_{luod} {}

  Command next() {
    FakeLuod::Request request = luod_.next();
    const auto command = static_cast<Command>(request.header.command);
    if (command == Command::PreserveMany) preserve(request);
    else if (command == Command::PreserveFd) {
      keep(request.arg<wire::TokenArg>().token, std::move(request.fds.at(0)));
      luod_.answer(request, 0, wire::TokenArg{});
    } else if (command == Command::UnpreserveFd) {
      EXPECT_EQ(files.erase(request.arg<wire::TokenArg>().token), 1U);
      luod_.answer(request, 0, wire::TokenArg{});
    } else if (command == Command::Prepared) {
      verdict = request.arg<wire::VerdictArg>();
      luod_.answer(request, 0, verdict);
    } else if (command == Command::SetOption) {
      const auto arg = request.arg<wire::OptionArg>();
      options.push_back(fmt::format("{}={}", wire::text_in(arg.key), wire::text_in(arg.value)));
      luod_.answer(request);
    } else if (command == Command::Hold) luod_.answer(request, 0, wire::HoldArg{});
    else if (command == Command::RetrieveSession) luod_.answer(request, ENOENT, wire::NameArg{});
    else if (command == Command::Subscribe) luod_.answer(request);
    else ADD_FAILURE() << wire::name_of(request.header.command);
    return command;
  }
  void announce(std::uint64_t update) {
    luod_.event(wire::Event::Prepare, wire::PrepareEvent{.size = sizeof(wire::PrepareEvent),
                                                         .kind = static_cast<std::uint32_t>(wire::UpdateKind::Kernel),
                                                         .update = update,
                                                         .deadline_ms = 60'000,
                                                         .reserved = 0});
  }
  void call_off(std::uint64_t update) {
    wire::EndEvent end{.size = sizeof end, .error = ECANCELED, .update = update, .text = {}};
    wire::put_text(end.text, "a dry run");
    luod_.event(wire::Event::Resumed, end);
  }

  std::map<std::uint64_t, Fd> files;
  std::vector<std::string> options;
  wire::VerdictArg verdict{};
  std::uint64_t refused_token = 0;  ///< ENOMEM for that one

 private:
  void keep(std::uint64_t token, Fd fd) { EXPECT_TRUE(files.emplace(token, std::move(fd)).second) << token; }
  void preserve(FakeLuod::Request& request) {
    const std::size_t count = (request.payload.size() - sizeof(wire::ManyArg)) / sizeof(wire::ManyEntry);
    luod_.builder()
        .start(Command::PreserveMany, request.header.nonce, request.header.session)
        .arg(wire::ManyArg{sizeof(wire::ManyArg), static_cast<std::uint32_t>(count)});
    for (std::size_t i = 0; i < count; ++i) {
      wire::ManyEntry entry{};
      std::memcpy(&entry, request.payload.data() + sizeof(wire::ManyArg) + i * sizeof entry, sizeof entry);
      const bool taken = entry.token != refused_token;
      if (taken) keep(entry.token, std::move(request.fds.at(i)));
      luod_.builder().add(wire::ManyResult{taken ? 0 : ENOMEM});
    }
    luod_.post();
  }
  FakeLuod& luod_;
};

TEST(KernelUpdate, AnImageCrossesAndTheArenaIsServedFromIfItIsCalledOff) {
  std::promise<std::pair<pid_t, int>> cache;
  std::promise<Fd> image;
  FakeLuod luod{[&](FakeLuod& self) {
    Keeper keeper{self};
    EXPECT_EQ(keeper.next(), Command::Subscribe);
    EXPECT_EQ(keeper.next(), Command::RetrieveSession);
    const Fd session = self.hand_out(Command::CreateSession, 41);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(keeper.next(), Command::SetOption);
    EXPECT_THAT(keeper.options, ::testing::ElementsAre("transient=allow", "grow=allow"));
    for (int i = 0; i < 2; ++i) EXPECT_EQ(keeper.next(), Command::PreserveFd) << "after it may";
    EXPECT_EQ(keeper.next(), Command::Hold);

    const auto [pid, port] = cache.get_future().get();
    auto client = RespClient::tcp(port);
    load(client);
    while (!keeper.files.contains(kFirstConnectionToken)) ASSERT_EQ(keeper.next(), Command::PreserveMany);

    keeper.announce(7);
    EXPECT_EQ(keeper.next(), Command::PreserveMany);
    EXPECT_TRUE(keeper.files.contains(kImageToken));
    EXPECT_TRUE(keeper.files.contains(kArenaToken)) << "at no moment neither";
    EXPECT_EQ(keeper.next(), Command::UnpreserveFd);
    EXPECT_FALSE(keeper.files.contains(kArenaToken));
    EXPECT_EQ(keeper.next(), Command::Prepared);
    EXPECT_EQ(keeper.verdict.update, 7U);
    EXPECT_EQ(keeper.verdict.refused, 0U);
    const auto info = kho::inspect_image(keeper.files[kImageToken]);
    ASSERT_TRUE(info.has_value()) << to_string(info.error());
    EXPECT_TRUE(info->sealed);
    EXPECT_LT(info->file_bytes.raw(), 4U << 20) << "what is in use, not what is reserved";
    const auto copy = Store::from_image(keeper.files[kImageToken]);
    ASSERT_TRUE(copy.has_value()) << to_string(copy.error());
    EXPECT_EQ((*copy)->table().size(), static_cast<std::uint64_t>(kKeys));
    EXPECT_TRUE((*copy)->check().has_value());

    // Asked meanwhile: answered when it is over, and room for it is there.
    EXPECT_TRUE(client.send(request({"SET", "large", "not yet"})));
    keeper.call_off(7);
    EXPECT_EQ(client.answer(), "+OK\r\n");
    EXPECT_EQ(client.command({"SET", "large", std::string(8 << 20, 'x')}), "+OK\r\n");
    EXPECT_EQ(keeper.next(), Command::PreserveMany);
    EXPECT_TRUE(keeper.files.contains(kArenaToken));
    EXPECT_EQ(keeper.next(), Command::UnpreserveFd);
    EXPECT_FALSE(keeper.files.contains(kImageToken));

    keeper.refused_token = kImageToken;
    keeper.announce(8);
    Command asked = keeper.next();
    EXPECT_EQ(asked, Command::PreserveMany);
    while (asked == Command::PreserveMany) asked = keeper.next();  // it may try again
    EXPECT_EQ(asked, Command::Prepared);
    EXPECT_EQ(keeper.verdict.update, 8U);
    EXPECT_EQ(keeper.verdict.refused, 1U);
    EXPECT_EQ(wire::text_in(keeper.verdict.reason), "luod could not keep the image of the cache");
    EXPECT_TRUE(keeper.files.contains(kArenaToken));
    keeper.refused_token = 0;
    keeper.call_off(8);
    EXPECT_EQ(client.command({"DEL", "large"}), ":1\r\n");
    EXPECT_EQ(client.command({"SET", "late", "yes"}), "+OK\r\n");

    // No image can be made: refused at once, and served on.
    rlimit limit{};
    ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, nullptr, &limit), 0);
    const rlimit none{1, limit.rlim_max};
    ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &none, nullptr), 0);
    keeper.announce(9);
    EXPECT_EQ(keeper.next(), Command::Prepared);
    EXPECT_EQ(keeper.verdict.update, 9U);
    EXPECT_EQ(keeper.verdict.refused, 1U);
    EXPECT_THAT(std::string{wire::text_in(keeper.verdict.reason)}, HasSubstr("memfd_create"));
    EXPECT_EQ(client.command({"GET", "late"}), "$3\r\nyes\r\n");
    ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &limit, nullptr), 0);
    keeper.call_off(9);

    keeper.announce(10);
    EXPECT_EQ(keeper.next(), Command::PreserveMany);
    EXPECT_EQ(keeper.next(), Command::UnpreserveFd);
    EXPECT_EQ(keeper.next(), Command::Prepared);
    EXPECT_EQ(keeper.verdict.refused, 0U);
    image.set_value(std::move(keeper.files[kImageToken]));
  }};
  auto first = ServerProcess::luo_cache({"--luod", luod.path()});
  ASSERT_NE(first.port(), 0);
  cache.set_value({first.pid(), first.port()});
  luod.join();
  ASSERT_FALSE(HasFailure());
  kill(first.pid(), SIGKILL);
  first.wait();

  // Written under another boot, five seconds ago.
  auto left = Store::from_image(image.get_future().get());
  ASSERT_TRUE(left.has_value()) << to_string(left.error());
  Counters& counters = (*left)->counters();
  EXPECT_NE(counters.quiesced_ns, 0U);
  EXPECT_NE(counters.quiesced_boot, 0U);
  counters.quiesced_boot ^= 1;
  counters.quiesced_ns = ~std::uint64_t{0} / 2;
  counters.quiesced_unix_ns = static_cast<std::uint64_t>(std::time(nullptr) - 5) * 1'000'000'000;
  const Fd crossed = *(*left)->image();

  Luod next_side;
  ASSERT_TRUE(next_side.running()) << next_side.log();
  {
    const Client before{next_side};
    const Fd session = before.create("cache");
    ASSERT_EQ(luo_preserve_fd(before, session.raw(), crossed.raw(), kImageToken), 0) << luo_last_error();
    const auto ran = run_program({program("luoctl"), "--socket", next_side.socket(), "update", "simulated"});
    ASSERT_EQ(ran.status, 0) << ran.err;
  }
  const std::string log = next_side.dir() / "cache.log";
  auto second = ServerProcess::luo_cache({"--luod", next_side.socket()}, log);
  const std::string said = run({"cat", log}).output;
  ASSERT_NE(second.port(), 0) << said;
  EXPECT_THAT(said, HasSubstr(fmt::format("with an image of the memory: {} keys", kKeys + 1)));
  EXPECT_THAT(said, HasSubstr("1 connections did not come across"));
  expect_loaded(second.port());
  EXPECT_EQ(RespClient::tcp(second.port()).command({"GET", "late"}), "$3\r\nyes\r\n");
  EXPECT_EQ(RespClient::tcp(second.port()).command({"GET", "large"}), "$-1\r\n");
  EXPECT_EQ(RespClient::tcp(second.port()).info("generation"), "1");
  const auto pause = std::stoull(RespClient::tcp(second.port()).info("last_pause_us"));
  EXPECT_GE(pause, 4'000'000U);
  EXPECT_LT(pause, 3'600'000'000U);
  const auto tokens = [&] {
    std::vector<std::uint64_t> all;
    const auto shown = next_side.show("cache");
    for (const auto& file : shown["files_list"]) all.push_back(file["token"]);
    return all;
  };
  while (std::ranges::count(tokens(), kImageToken) != 0) ::poll(nullptr, 0, 10);
  EXPECT_THAT(tokens(), ::testing::IsSupersetOf({kArenaToken, kTcpToken}));

  // And from here on it is as ever.
  kill(second.pid(), SIGKILL);
  second.wait();
  auto third = ServerProcess::luo_cache({"--luod", next_side.socket()}, log);
  ASSERT_NE(third.port(), 0) << run({"cat", log}).output;
  expect_loaded(third.port());
  EXPECT_EQ(third.terminate(), 0);
}

// --- what it makes of what is left ------------------------------------------------------------------------

class LeftBehind : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  ServerProcess start() { return ServerProcess::luo_cache({"--luod", luod_.socket()}, log_path()); }
  std::string log_path() const { return luod_.dir() / "cache.log"; }
  std::string log() const { return run({"cat", log_path()}).output; }

  struct Left {
    std::uint64_t connections = 0, others = 0;  ///< records, and blocks that are not connections'
  };
  /// What a killed luo-cache has left in its session; takes everything but the arena away, as a kexec does.
  Left without_sockets() {
    const Client client{luod_};
    const Fd session = client.retrieve("cache");
    EXPECT_TRUE(session.valid()) << luo_last_error();
    std::uint64_t tokens[256];
    const int count = luo_session_tokens(client, session.raw(), tokens, std::size(tokens));
    for (int i = 0; i < count; ++i) {
      if (tokens[i] == kArenaToken) continue;
      EXPECT_EQ(luo_unpreserve_fd(client, session.raw(), tokens[i]), 0) << luo_last_error();
    }
    auto store = Store::open(Fd::adopt(luo_retrieve_fd(client, session.raw(), kArenaToken)));
    EXPECT_TRUE(store.has_value()) << luo_last_error();
    if (!store) return {};
    EXPECT_TRUE((*store)->check().has_value());
    Left left{.connections = 0, .others = (*store)->arena().stats().blocks};
    for (auto* c = (*store)->first_connection(); c != nullptr; c = (*store)->next_connection(*c)) {
      ++left.connections;
      left.others -= 1 + (c->input.block != 0 ? 1U : 0U) + (c->output.block != 0 ? 1U : 0U);
    }
    return left;
  }
  Luod luod_;
};

TEST_F(LeftBehind, WithoutItsSocketsItServesAllKeysAndForgetsItsConnections) {
  auto first = start();
  ASSERT_NE(first.port(), 0) << log();
  Left left;
  {
    std::vector<RespClient> clients;
    for (int i = 0; i < 50; ++i) {
      clients.push_back(RespClient::tcp(first.port()));
      ASSERT_EQ(clients.back().command({"PING"}), "+PONG\r\n");
      // Half of a request, which is in a buffer of the arena.
      ASSERT_TRUE(clients.back().send("*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$20000\r\n" + std::string(10000, 'x')));
    }
    load(clients.emplace_back(RespClient::tcp(first.port())));
    kill(first.pid(), SIGKILL);
    first.wait();
    left = without_sockets();
  }
  EXPECT_EQ(left.connections, 51U);

  auto second = start();
  ASSERT_NE(second.port(), 0) << log();
  EXPECT_THAT(log(), HasSubstr("51 connections did not come across, 51 of them for want of their sockets"));
  expect_loaded(second.port());
  kill(second.pid(), SIGKILL);
  second.wait();
  const Left afterwards = without_sockets();
  EXPECT_LE(afterwards.connections, 1U) << "the one that looked at the keys";
  EXPECT_EQ(afterwards.others, left.others) << "their buffers are free, and nothing else is";

  // The same after an update that everything crosses, twice: what came in has neither owner nor sockets.
  for (int i = 0; i < 2; ++i) {
    const auto ran = run_program({program("luoctl"), "--socket", luod_.socket(), "update", "simulated"});
    ASSERT_EQ(ran.status, 0) << ran.err;
  }
  auto third = start();
  ASSERT_NE(third.port(), 0) << log();
  expect_loaded(third.port());
  EXPECT_EQ(third.terminate(), 0);
}

TEST_F(LeftBehind, AnImageBesideTheSocketsIsWhatItWasWhenItStopped) {
  // luo-cache was ready for an update of the kernel and killed, and the update was called off.
  auto first = start();
  ASSERT_NE(first.port(), 0) << log();
  auto client = RespClient::tcp(first.port());
  load(client);
  while (luod_.show("cache")["files"] != 3) ::poll(nullptr, 0, 10);  // the connection is preserved
  kill(first.pid(), SIGKILL);
  first.wait();
  {
    const Client next{luod_};
    const Fd session = next.retrieve("cache");
    auto store = Store::open(Fd::adopt(luo_retrieve_fd(next, session.raw(), kArenaToken)));
    ASSERT_TRUE(store.has_value()) << to_string(store.error());
    (*store)->counters().quiesced_ns = 1;
    const Fd image = *(*store)->image();
    ASSERT_EQ(luo_preserve_fd(next, session.raw(), image.raw(), kImageToken), 0) << luo_last_error();
    ASSERT_EQ(luo_unpreserve_fd(next, session.raw(), kArenaToken), 0) << luo_last_error();
  }
  auto second = start();
  ASSERT_EQ(second.port(), first.port()) << log();
  EXPECT_THAT(log(), HasSubstr("with an image of the memory"));
  EXPECT_EQ(client.command({"GET", "key:1"}), "$7\r\nvalue 7\r\n") << "on the connection from before";
  expect_loaded(second.port());
  EXPECT_EQ(second.terminate(), 0);
}

TEST_F(LeftBehind, OptionsOfItsSessionAreThoseOfASessionThatMayLoseItsSockets) {
  auto cache = start();
  ASSERT_NE(cache.port(), 0) << log();
  EXPECT_EQ(luod_.show("cache")["transient"], "allow");
  EXPECT_EQ(luod_.show("cache")["grow"], "allow");
}

TEST_F(LeftBehind, NeitherArenaNorImageIsNoCache) {
  {
    const Client client{luod_};
    Fd session = client.create("cache");
    ASSERT_EQ(luo_session_hold(client, session.raw(), LUO_HOLD_USER), 0);
  }
  EXPECT_EQ(start().port(), 0);
  EXPECT_THAT(log(), HasSubstr("no arena of a luo-cache (token 1), nor an image of one (token 4)"));
}

}  // namespace
}  // namespace luo::cache::test
