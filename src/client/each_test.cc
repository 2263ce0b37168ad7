// Requests that are sent without waiting for each other's answers: the connection's part, and the C API's.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <map>

#include "client/connection.h"
#include "client/fake_luod.h"
#include "luo/luo.h"
#include "sys/memfd.h"

namespace luo::client {
namespace {

using testing::ElementsAre;
using wire::Command;

// --- Connection::call_each() -----------------------------------------------------------------------------------------

struct Taken {
  std::size_t index;
  int error;  ///< of the sending
  std::uint64_t session;
  bool operator==(const Taken&) const = default;
};

/// Request i is about session 100 + i; `fd_of(i)` travels with it if it is not 0.
struct Each {
  Connection& connection;
  std::size_t padding = 0;
  std::function<int(std::size_t)> fd_of = [](std::size_t) { return 0; };
  std::vector<Taken> taken{};

  Result<> run(std::size_t count) {
    wire::Builder builder;
    return connection.call_each(
        count,
        [&](std::size_t i) -> wire::Builder& {
          builder.start(Command::Finish, 0, 100 + i).arg(wire::PlainArg{});
          const std::vector<std::byte> more(padding);
          builder.add_bytes(more);
          if (const int fd = fd_of(i); fd != 0) builder.add_fd(fd);
          return builder;
        },
        [&](std::size_t i, Result<Answer> sent) {
          taken.push_back(sent ? Taken{i, 0, sent->header.session} : Taken{i, sent.error().code, 0});
        });
  }
};

TEST(CallEach, AnswersComeInOrderAndNobodyWaitsInBetween) {
  constexpr std::size_t kCount = 100;
  std::size_t most_waiting = 0;
  FakeLuod luod{[&](FakeLuod& self) {
    std::vector<FakeLuod::Request> waiting;
    for (std::size_t got = 0; got < kCount; ++got) {
      waiting.push_back(self.expect(Command::Finish));
      pollfd more{self.socket().raw, POLLIN, 0};
      if (got + 1 < kCount && poll(&more, 1, 200) == 1) continue;  // it sends on without an answer
      most_waiting = std::max(most_waiting, waiting.size());
      for (const auto& request : waiting) {
        self.event(wire::Event::Resumed, wire::EndEvent{});
        self.answer(request);
      }
      waiting.clear();
    }
    self.expect_end();
  }};
  {
    auto connection = Connection::open(luod.path(), {}).value();
    Each each{connection};
    ASSERT_TRUE(each.run(kCount));
    ASSERT_EQ(each.taken.size(), kCount);
    for (std::size_t i = 0; i < kCount; ++i) EXPECT_EQ(each.taken[i], (Taken{i, 0, 100 + i}));
    EXPECT_TRUE(each.run(0));
  }
  luod.join();
  EXPECT_GT(most_waiting, 1U);
}

TEST(CallEach, SecondAnswersAfterACrashAreDropped) {
  FakeLuod luod{[&](FakeLuod& self) {
    FakeLuod::Request last;
    for (int i = 0; i < 5; ++i) {
      auto request = self.expect(Command::Finish);
      if (i != 0) self.answer(last);
      self.answer(request, i == 2 ? EBUSY : 0);
      if (i == 2) self.answer(request, EBUSY);
      last = std::move(request);
    }
    self.answer(last);
    self.answer(self.expect(Command::Finish), ENOENT);
    self.expect_end();
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  Each each{connection};
  ASSERT_TRUE(each.run(5));
  ASSERT_EQ(each.taken.size(), 5U);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(each.taken[i], (Taken{i, 0, 100 + i}));
  wire::Builder builder;
  EXPECT_EQ(connection.call(builder.start(Command::Finish, 0, 1).arg(wire::PlainArg{}))->header.error, ENOENT);
}

TEST(CallEach, ASkippedAnswerEndsTheConnection) {
  FakeLuod luod{[&](FakeLuod& self) {
    self.answer(self.expect(Command::Finish));
    (void)self.expect(Command::Finish);
    self.answer(self.expect(Command::Finish));
    while (self.next().header.command != 0) {}
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  Each each{connection};
  EXPECT_EQ(each.run(5).error().code, EPROTO);
  EXPECT_EQ(each.taken.size(), 1U);
  EXPECT_EQ(each.run(1).error().code, EPROTO);
  EXPECT_EQ(each.taken.size(), 1U);
}

TEST(CallEach, WhatWasAnsweredCountsWhenLuodIsGone) {
  FakeLuod luod{[&](FakeLuod& self) {
    std::vector<FakeLuod::Request> requests;
    for (int i = 0; i < 20; ++i) requests.push_back(self.expect(Command::Finish));
    for (int i = 0; i < 3; ++i) self.answer(requests[static_cast<std::size_t>(i)]);
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  Each each{connection};
  EXPECT_EQ(each.run(20).error().code, ECONNRESET);
  EXPECT_EQ(each.taken.size(), 3U);
}

TEST(CallEach, ADescriptorThatCannotBeSentIsToldInItsTurn) {
  FakeLuod luod{[&](FakeLuod& self) {
    for (const std::uint64_t session : {100U, 101U, 103U, 104U}) {
      const auto request = self.expect(Command::Finish);
      EXPECT_EQ(request.header.session, session);
      self.answer(request);
    }
    self.expect_end();
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  Each each{connection, 0, [](std::size_t i) { return i == 2 ? 19'999 : 0; }};
  ASSERT_TRUE(each.run(5));
  EXPECT_THAT(each.taken,
              ElementsAre(Taken{0, 0, 100}, Taken{1, 0, 101}, Taken{2, EBADF, 0}, Taken{3, 0, 103}, Taken{4, 0, 104}));
}

TEST(CallEach, NoMoreDescriptorsAreOnTheWayThanOneMessageMayHave) {
  const Fd file = make_memfd("test", 0).value();
  FakeLuod luod{[&](FakeLuod& self) {
    std::vector<FakeLuod::Request> waiting;
    for (std::size_t got = 0; got < 12; ++got) {
      waiting.push_back(self.expect(Command::Finish));
      pollfd more{self.socket().raw, POLLIN, 0};
      if (got + 1 < 12 && poll(&more, 1, 200) == 1) continue;
      EXPECT_LE(waiting.size(), 2U);  // of 100 descriptors each
      for (const auto& request : waiting) self.answer(request);
      waiting.clear();
    }
    self.expect_end();
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  wire::Builder builder;
  std::size_t answers = 0;
  ASSERT_TRUE(connection.call_each(
      12,
      [&](std::size_t) -> wire::Builder& {
        builder.start(Command::Finish, 0, 1).arg(wire::PlainArg{});
        for (int i = 0; i < 100; ++i) builder.add_fd(file.raw());
        return builder;
      },
      [&](std::size_t, const Result<Answer>& answer) { answers += answer ? 1 : 0; }));
  EXPECT_EQ(answers, 12U);
}

TEST(CallEach, WhatWasOnTheWayWhenItWasBrokenOffIsNobodysAnswer) {
  FakeLuod luod{[&](FakeLuod& self) {
    for (int i = 0; i < 5; ++i) self.answer(self.expect(Command::Finish), EBUSY);
    self.answer(self.expect(Command::Finish), ENOENT);
    self.expect_end();
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  wire::Builder builder;
  const auto finish_one = [&](std::size_t) -> wire::Builder& {
    return builder.start(Command::Finish, 0, 1).arg(wire::PlainArg{});
  };
  EXPECT_THROW(
      (void)connection.call_each(5, finish_one, [](std::size_t, const Result<Answer>&) { throw std::bad_alloc{}; }),
      std::bad_alloc);
  EXPECT_TRUE(connection.take_events());
  EXPECT_EQ(connection.call(finish_one(0))->header.error, ENOENT);
}

TEST(CallEach, FullQueuesOnBothSidesAreNoDeadlock) {
  FakeLuod luod{[&](FakeLuod& self) {
    for (int i = 0; i < 64; ++i) {
      const auto request = self.expect(Command::Finish);
      self.builder().start(Command::Finish, request.header.nonce, request.header.session);
      const std::vector<std::byte> long_answer(60'000);
      self.builder().add_bytes(long_answer);
      while (!send(self.socket(), self.builder().bytes(), {})) {  // the client does not read at the moment
        pollfd room{self.socket().raw, POLLOUT, 0};
        ASSERT_EQ(poll(&room, 1, 20'000), 1);
      }
    }
    self.expect_end();
  }};
  auto connection = Connection::open(luod.path(), {}).value();
  Each each{connection, 60'000};
  ASSERT_TRUE(each.run(64));
  EXPECT_EQ(each.taken.size(), 64U);
}

// --- the C API -------------------------------------------------------------------------------------------------------

struct Closer {
  void operator()(luo_connection* c) const { luo_close(c); }
};
using Luo = std::unique_ptr<luo_connection, Closer>;

Luo connect(const FakeLuod& luod) {
  luo_connection* c = nullptr;
  EXPECT_EQ(luo_open(luod.path().c_str(), &c), 0) << luo_last_error();
  return Luo{c};
}

ino_t inode_of(int fd) {
  struct stat info {};
  EXPECT_EQ(fstat(fd, &info), 0);
  return info.st_ino;
}

/// A luod of a few rules: sessions are handed out under 1, 2, ... unless the name says what to answer instead ("=17"),
/// presented ones are 50, 51, ..., tokens are what becomes of a file: 0, or an errno. `forget` a handle: EBADF.
struct Rules {
  std::vector<Fd> writes;  ///< luod's ends of what was handed out
  std::vector<std::string> seen;
  std::uint64_t next = 1, presented = 50, forget = 0;
  int accept_error = 0;
  std::uint64_t close_at = UINT64_MAX;  ///< the request of this number is not answered any more

  void serve(FakeLuod& self) {
    for (std::uint64_t n = 0;; ++n) {
      const auto request = self.next();
      if (request.header.command == 0 || n == close_at) return;
      one(self, request);
    }
  }
  void one(FakeLuod& self, const FakeLuod::Request& request) {
    const auto command = static_cast<Command>(request.header.command);
    seen.push_back(std::string{wire::name_of(request.header.command)});
    if (command == Command::CreateSession || command == Command::RetrieveSession) {
      const auto arg = request.arg<wire::NameArg>();
      const std::string name{wire::text_in(arg.name)};
      if (name.starts_with("=")) return self.refuse(request, std::stoi(name.substr(1)), "no");
      Pipe pipe = make_pipe().value();
      const int number = pipe.read.raw();
      self.answer(request, 0, arg, {&number, 1}, next++);
      writes.push_back(std::move(pipe.write));
    } else if (command == Command::Present) {
      self.answer(request, 0, wire::PlainArg{}, {}, presented++);
    } else if (command == Command::PreserveMany || command == Command::RetrieveMany) {
      if (request.header.session == forget) return self.refuse(request, EBADF, "no session was presented");
      const auto batch = wire::parse_array<wire::ManyEntry>(request.payload).value();
      seen.back() += fmt::format(" {}: {} files", request.header.session, batch.elements.size());
      self.builder()
          .start(command, request.header.nonce, request.header.session)
          .arg(wire::ManyArg{0, static_cast<std::uint32_t>(batch.elements.size())});
      for (const auto& entry : batch.elements) {
        const int error = entry.error != 0 ? entry.error : static_cast<int>(entry.token);
        self.builder().add(wire::ManyResult{error});
        if (command == Command::RetrieveMany && error == 0) self.builder().add_fd(0);
      }
      self.post();
    } else {
      EXPECT_EQ(command, Command::Accept);
      if (accept_error != 0) self.refuse(request, accept_error, "no");
      else self.answer(request);
    }
  }
};

class EachTest : public testing::Test {
 protected:
  void start() {
    luod_ = std::make_unique<FakeLuod>([this](FakeLuod& self) { rules_.serve(self); });
    luo_ = connect(*luod_);
  }
  void TearDown() override {
    luo_.reset();
    luod_.reset();
  }
  void end() {
    luo_.reset();
    luod_->join();
  }
  Rules rules_;
  std::unique_ptr<FakeLuod> luod_;
  Luo luo_;
};

TEST_F(EachTest, SessionsStandEachByThemselves) {
  start();
  const std::string long_name(64, 'x');
  std::vector<std::string> texts{"a", "=17", "b"};
  for (int i = 0; i < 70; ++i) texts.push_back(std::to_string(i));
  std::vector<const char*> names;
  for (const auto& text : texts) names.push_back(text.c_str());
  std::vector<int> sessions(names.size(), -1);
  EXPECT_EQ(luo_session_retrieve_each(luo_.get(), names.data(), sessions.data(), names.size()), 72);
  EXPECT_EQ(sessions[1], -17);
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    if (i == 1) continue;
    ASSERT_GE(sessions[i], 0) << i;
    // In order: the k-th that was handed out.
    EXPECT_EQ(inode_of(sessions[i]), inode_of(rules_.writes[i == 0 ? 0 : i - 1].raw())) << i;
    EXPECT_EQ(fcntl(sessions[i], F_GETFD), FD_CLOEXEC);
  }
  // Their handles are known: nothing is presented.
  const int one[] = {sessions[2]};
  const std::uint64_t token = 0;
  int fd = -1;
  EXPECT_EQ(luo_retrieve_each(luo_.get(), one, &token, &fd, 1), 1);
  close(fd);
  for (const int session : sessions) close(session);
  end();
  EXPECT_EQ(std::ranges::count(rules_.seen, "ACCEPT"), 72);
  EXPECT_EQ(std::ranges::count(rules_.seen, "PRESENT"), 0);
  EXPECT_EQ(rules_.seen.back(), "RETRIEVE_MANY 2: 1 files");
}

TEST_F(EachTest, WhatIsNotAcceptedIsNotKept) {
  rules_.accept_error = EIO;
  start();
  const char* const names[] = {"a", "b"};
  int sessions[2];
  EXPECT_EQ(luo_session_create_each(luo_.get(), names, sessions, 2), 0);
  EXPECT_THAT(sessions, ElementsAre(-EIO, -EIO));
  for (const Fd& end : rules_.writes) {
    pollfd other{end.raw(), 0, 0};
    EXPECT_EQ(poll(&other, 1, 0), 1) << "somebody has it open";
  }
}

TEST_F(EachTest, NothingIsKeptWhenLuodIsGoneForGood) {
  rules_.close_at = 32 + 32 + 10;  // the first ones are retrieved and accepted
  start();
  std::vector<const char*> names(64, "a");
  std::vector<int> sessions(64, -1);
  EXPECT_EQ(luo_session_retrieve_each(luo_.get(), names.data(), sessions.data(), 64), -ECONNRESET);
  EXPECT_THAT(sessions, testing::Each(-ECONNRESET));
  end();
  for (const Fd& end : rules_.writes) {
    pollfd other{end.raw(), 0, 0};
    EXPECT_EQ(poll(&other, 1, 0), 1) << "somebody has it open";
  }
}

TEST_F(EachTest, WithoutFreeNumbersSessionsAreGivenBack) {
  start();
  std::vector<const char*> names(8, "a");
  std::vector<int> sessions(8, -1);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  const Fd lowest = Fd::adopt(dup(0));
  rules_.writes.reserve(8);
  // The script has its ends in this process, too: two of three numbers of each session.
  const rlimit few{static_cast<rlim_t>(lowest.raw()) + 6, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  const int came = luo_session_retrieve_each(luo_.get(), names.data(), sessions.data(), 2);
  setrlimit(RLIMIT_NOFILE, &old);
  ASSERT_GE(came, 0) << luo_last_error();
  for (int i = 0; i < 2; ++i) {
    if (sessions[i] >= 0) close(sessions[i]);
    else EXPECT_EQ(sessions[i], -EMFILE);
  }
}

TEST_F(EachTest, FilesTravelInGroupsOfTheirSession) {
  start();
  Pipe a = make_pipe().value(), b = make_pipe().value();
  const Fd file = make_memfd("test", 0).value();
  std::vector<int> sessions, fds;
  std::vector<std::uint64_t> tokens;
  const auto add = [&](const Pipe& session, std::size_t count, std::uint64_t token) {
    for (std::size_t i = 0; i < count; ++i) {
      sessions.push_back(session.read.raw());
      fds.push_back(file.raw());
      tokens.push_back(token);
    }
  };
  add(a, 3, 0);
  add(b, 300, 0);
  add(a, 2, EBUSY);
  fds[1] = 19'999;  // not open
  std::vector<int> errors(sessions.size(), -1);
  EXPECT_EQ(luo_preserve_each(luo_.get(), sessions.data(), fds.data(), tokens.data(), errors.data(), errors.size()),
            302);
  for (std::size_t i = 0; i < errors.size(); ++i) EXPECT_EQ(errors[i], i == 1 ? EBADF : i >= 303 ? EBUSY : 0) << i;
  end();
  // What could not be sent went once more by itself, with the others' answers taken.
  EXPECT_THAT(rules_.seen,
              ElementsAre("PRESENT", "PRESENT", "PRESERVE_MANY 51: 253 files", "PRESERVE_MANY 51: 47 files",
                          "PRESERVE_MANY 50: 2 files", "PRESERVE_MANY 50: 3 files"));
}

TEST_F(EachTest, FilesComeToTheirPlaces) {
  start();
  Pipe a = make_pipe().value(), b = make_pipe().value();
  const Fd none = make_memfd("test", 0).value();
  const int sessions[] = {a.read.raw(), a.read.raw(), none.raw(), 19'999, b.read.raw(), b.read.raw()};
  const std::uint64_t tokens[] = {0, ENOENT, 0, 0, EINVAL, 0};
  int fds[6];
  EXPECT_EQ(luo_retrieve_each(luo_.get(), sessions, tokens, fds, 6), 2);
  EXPECT_THAT(fds, ElementsAre(testing::Ge(0), -ENOENT, -ENOTTY, -EBADF, -EINVAL, testing::Ge(0)));
  close(fds[0]);
  close(fds[5]);
}

TEST_F(EachTest, AHandleThatLuodHasForgottenIsPresentedAgain) {
  start();
  Pipe a = make_pipe().value();
  const int session[] = {a.read.raw()};
  const std::uint64_t token = 0;
  int fd = -1;
  ASSERT_EQ(luo_retrieve_each(luo_.get(), session, &token, &fd, 1), 1);
  close(fd);
  rules_.forget = 50;
  EXPECT_EQ(luo_retrieve_each(luo_.get(), session, &token, &fd, 1), 1);
  close(fd);
  end();
  EXPECT_EQ(rules_.seen.back(), "RETRIEVE_MANY 51: 1 files");
}

TEST_F(EachTest, NothingLeaksWhenLuodIsGoneHalfway) {
  rules_.close_at = 2;  // after PRESENT and one answer
  start();
  Pipe a = make_pipe().value();
  const std::vector<int> sessions(300, a.read.raw());
  const std::vector<std::uint64_t> tokens(300, 0);
  std::vector<int> fds(300, -1);
  EXPECT_EQ(luo_retrieve_each(luo_.get(), sessions.data(), tokens.data(), fds.data(), 300), -ECONNRESET);
  EXPECT_THAT(fds, testing::Each(-ECONNRESET));
  std::vector<int> errors(300, -1);
  EXPECT_EQ(luo_preserve_each(luo_.get(), sessions.data(), fds.data(), tokens.data(), errors.data(), 300), -ECONNRESET);
  EXPECT_THAT(errors, testing::Each(ECANCELED));
}

TEST_F(EachTest, ArgumentsAreLookedAtFirst) {
  start();
  int number = -1;
  const std::uint64_t token = 0;
  EXPECT_EQ(luo_session_create_each(luo_.get(), nullptr, nullptr, 0), 0);
  EXPECT_EQ(luo_session_create_each(luo_.get(), nullptr, &number, 1), -EFAULT);
  EXPECT_EQ(number, -ECANCELED);
  EXPECT_EQ(luo_retrieve_each(luo_.get(), nullptr, nullptr, nullptr, 0), 0);
  EXPECT_EQ(luo_retrieve_each(luo_.get(), &number, &token, nullptr, 1), -EFAULT);
  EXPECT_EQ(luo_preserve_each(luo_.get(), &number, &number, nullptr, &number, 1), -EFAULT);
  end();
  EXPECT_THAT(rules_.seen, testing::IsEmpty());
}

}  // namespace
}  // namespace luo::client
