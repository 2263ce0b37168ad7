#include "client/connection.h"

#include <fcntl.h>
#include <poll.h>

#include "client/fake_luod.h"
#include "sys/memfd.h"

namespace luo::client {
namespace {

using wire::Command;

wire::Builder& finish_request(wire::Builder& builder) {
  return builder.start(Command::Finish, 0, 5).arg(wire::PlainArg{});
}

Result<Answer> finish(Connection& connection) {
  wire::Builder builder;
  return connection.call(finish_request(builder));
}

bool polls_readable(int fd, int timeout_ms = 0) {
  pollfd wait{fd, POLLIN, 0};
  return poll(&wait, 1, timeout_ms) == 1;
}

TEST(Connection, IntroducesItselfAndLearnsWhatBothCan) {
  FakeLuod luod{[](FakeLuod& self) {
                  const auto hello = self.expect(Command::Hello);
                  const auto arg = hello.arg<wire::HelloArg>();
                  EXPECT_EQ(arg.ticket, 0xABCU);
                  EXPECT_EQ(wire::text_in(arg.name), "someone");
                  EXPECT_EQ(hello.header.nonce, 1U);
                  auto reply = arg;
                  reply.capabilities = wire::kCapBatch | (1ULL << 60);
                  reply.instance = 9;
                  self.answer(hello, 0, reply);
                  self.expect_end();
                },
                false};
  {
    const auto connection = Connection::open(luod.path(), {"someone", 0xABC});
    ASSERT_TRUE(connection) << to_string(connection.error());
    EXPECT_EQ(connection->capabilities(), std::uint64_t{wire::kCapBatch});
    EXPECT_EQ(connection->hello().instance, 9U);
  }
}

TEST(Connection, ReportsThatNobodyServes) {
  EXPECT_EQ(Connection::open("/tmp/luo-there-is-nothing", {}).error().code, ENOENT);
}

TEST(Connection, TakesRefusalOfHelloAsItIs) {
  FakeLuod luod{[](FakeLuod& self) { self.answer(self.next(), EACCES, wire::HelloArg{}); }, false};
  EXPECT_EQ(Connection::open(luod.path(), {}).error().code, EACCES);
}

TEST(Connection, IsNoLuodThatAnswersGarbageToHello) {
  FakeLuod luod{[](FakeLuod& self) {
                  (void)self.next();
                  self.raw("HTTP/1.1 400 Bad Request");
                },
                false};
  EXPECT_EQ(Connection::open(luod.path(), {}).error().code, EPROTO);
}

TEST(Connection, NumbersRequestsAndDropsStaleAnswersWithWhatCameWithThem) {
  Pipe pipe = make_pipe().value();
  FakeLuod luod{[&](FakeLuod& self) {
    const auto first = self.expect(Command::Finish);
    self.answer(first);
    const int number = pipe.read.raw();
    self.answer(first, EIO, wire::PlainArg{}, {&number, 1});  // a second answer, after a crash
    pipe.read.close();
    const auto second = self.expect(Command::Finish);
    EXPECT_EQ(second.header.nonce, first.header.nonce + 1);
    self.answer(second, EBUSY);
    self.expect_end();
  }};
  {
    auto connection = Connection::open(luod.path(), {}).value();
    EXPECT_EQ(finish(connection)->header.error, 0);
    EXPECT_EQ(finish(connection)->header.error, EBUSY);
    EXPECT_TRUE(reader_gone(pipe.write.raw()));
  }
}

TEST(Connection, DropsASecondAnswerThatComesWhenNobodyAsks) {
  FakeLuod luod{[](FakeLuod& self) {
    const auto request = self.expect(Command::Finish);
    self.answer(request);
    self.answer(request);
    self.event(wire::Event::Resumed, wire::EndEvent{});
    self.expect_end();
  }};
  {
    auto connection = Connection::open(luod.path(), {}).value();
    ASSERT_TRUE(finish(connection));
    while (!connection.events().pop()) ASSERT_TRUE(connection.take_events());
    EXPECT_TRUE(connection.take_events());
  }
}

TEST(Connection, QueuesEventsThatComeBeforeTheAnswerAndPollsReadableForThem) {
  FakeLuod luod{[](FakeLuod& self) {
    const auto request = self.expect(Command::Finish);
    for (std::uint64_t i = 1; i <= 3; ++i) self.event(wire::Event::Prepare, wire::PrepareEvent{0, 1, i, 100, 0});
    self.answer(request);
    self.expect_end();
  }};
  {
    auto connection = Connection::open(luod.path(), {}).value();
    EXPECT_FALSE(polls_readable(connection.events().poll_fd()));
    ASSERT_TRUE(finish(connection));
    for (std::uint64_t i = 1; i <= 3; ++i) {
      EXPECT_TRUE(polls_readable(connection.events().poll_fd()));
      const auto event = connection.events().pop();
      ASSERT_TRUE(event);
      EXPECT_EQ(wire::parse_arg<wire::PrepareEvent>(event->payload)->update, i);
    }
    EXPECT_FALSE(connection.events().pop());
    EXPECT_FALSE(polls_readable(connection.events().poll_fd()));
  }
}

TEST(Connection, WaitsForAnAnswerBesideOtherThings) {
  FakeLuod luod{[](FakeLuod& self) {
    const auto request = self.expect(Command::Finish);
    self.event(wire::Event::Resumed, wire::EndEvent{});
    self.answer(request, EAGAIN);
    self.expect_end();
  }};
  {
    auto connection = Connection::open(luod.path(), {}).value();
    wire::Builder builder;
    ASSERT_TRUE(connection.post(finish_request(builder)));
    std::optional<Answer> answer;
    while (!answer) {
      ASSERT_TRUE(polls_readable(connection.socket().raw, 20'000));
      auto taken = connection.take_answer();
      ASSERT_TRUE(taken);
      answer = std::move(*taken);
    }
    EXPECT_EQ(answer->header.error, EAGAIN);
    EXPECT_TRUE(connection.events().pop());
  }
}

TEST(Connection, StaysBrokenAfterTheEnd) {
  FakeLuod luod{[](FakeLuod& self) { (void)self.expect(Command::Finish); }};
  auto connection = Connection::open(luod.path(), {}).value();
  EXPECT_EQ(finish(connection).error().code, ECONNRESET);
  luod.join();
  EXPECT_EQ(finish(connection).error().code, ECONNRESET);
  EXPECT_EQ(connection.take_events().error().code, ECONNRESET);
  EXPECT_TRUE(polls_readable(connection.events().poll_fd()));
}

struct Lie {
  const char* name;
  std::function<void(FakeLuod&, const FakeLuod::Request&)> tell;
};

class GarbageTest : public testing::TestWithParam<Lie> {};

TEST_P(GarbageTest, EndsTheConnection) {
  FakeLuod luod{[](FakeLuod& self) {
    const auto request = self.expect(Command::Finish);
    GetParam().tell(self, request);
    self.expect_end();
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  EXPECT_EQ(finish(connection).error().code, EPROTO);
  luod.join();  // it saw the end although the connection object lives
  EXPECT_EQ(finish(connection).error().code, EPROTO);
}

INSTANTIATE_TEST_SUITE_P(
    Connection, GarbageTest,
    testing::Values(Lie{"Text", [](FakeLuod& self, const auto&) { self.raw("garbage"); }},
                    Lie{"LongText", [](FakeLuod& self, const auto&) { self.raw(std::string(40'000, 'x')); }},
                    Lie{"TooLong",
                        [](FakeLuod& self, const auto&) { self.raw(std::string(wire::kMaxMessage + 1, '\0')); }},
                    Lie{"AnswerToTheFuture",
                        [](FakeLuod& self, const auto& request) {
                          self.builder().start(Command::Finish, request.header.nonce + 1, 0).arg(wire::PlainArg{});
                          self.post();
                        }},
                    Lie{"NegativeErrno", [](FakeLuod& self, const auto& request) { self.answer(request, -5); }},
                    Lie{"HugeErrno", [](FakeLuod& self, const auto& request) { self.answer(request, 5000); }},
                    Lie{"MoreDescriptorsThanSaid",
                        [](FakeLuod& self, const auto& request) {
                          self.builder().start(Command::Finish, request.header.nonce, 0);
                          const int number = self.socket().raw;
                          EXPECT_TRUE(send(self.socket(), self.builder().bytes(), {&number, 1}));
                        }},
                    Lie{"FewerDescriptorsThanSaid",
                        [](FakeLuod& self, const auto& request) {
                          self.builder().start(Command::Finish, request.header.nonce, 0).add_fd(0).add_fd(0);
                          const int number = self.socket().raw;
                          EXPECT_TRUE(send(self.socket(), self.builder().bytes(), {&number, 1}));
                        }}),
    [](const auto& lie) { return lie.param.name; });

TEST(Connection, RefusesAFloodOfEventsThatNobodyHandles) {
  FakeLuod luod{[](FakeLuod& self) {
    (void)self.expect(Command::Finish);
    self.builder().start(static_cast<std::uint32_t>(wire::Event::Resumed), 0, 0).arg(wire::EndEvent{});
    std::size_t sent = 0;
    for (;;) {
      const auto done = send(self.socket(), self.builder().bytes(), {});
      if (done) ++sent;
      if (!done && done.error().code != EAGAIN) break;
      pollfd room{self.socket().raw, POLLOUT, 0};
      poll(&room, 1, 20'000);
    }
    EXPECT_GE(sent, EventQueue::kMostWaiting);
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  EXPECT_EQ(finish(connection).error().code, ENOBUFS);
}

TEST(Connection, SaysThatADescriptorCannotBeSentAndGoesOn) {
  FakeLuod luod{[](FakeLuod& self) {
    const auto request = self.expect(Command::Finish);
    EXPECT_EQ(request.header.nonce, 2U);
    self.answer(request);
    self.expect_end();
  }};
  {
    auto connection = Connection::open(luod.path(), {}).value();
    wire::Builder builder;
    EXPECT_EQ(connection.call(finish_request(builder).add_fd(19'999)).error().code, EBADF);
    EXPECT_TRUE(finish(connection));
  }
}

}  // namespace
}  // namespace luo::client
