// What clients may send: wrong, too much, or nothing. luod answers as Linux would, or closes where the
// framing is broken; other clients notice nothing, and no descriptor stays behind.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <random>

#include "scenario.h"
#include "sys/packet_socket.h"

namespace luo::test {
namespace {

using wire::Command;

template <class T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto bytes = std::as_bytes(std::span{&value, 1});
  return {bytes.begin(), bytes.end()};
}

class BadInput : public testing::Test {
 protected:
  explicit BadInput(LuodOptions options = {}) : luod_{std::move(options)} {}
  void SetUp() override {
    ASSERT_TRUE(luod_.running()) << luod_.log();
    session_ = other_.create("other");
    ASSERT_EQ(luo_preserve_fd(other_, session_.raw(), file_.raw(), 1), 0);
    before_ = luod_.state();
    worker_ = luod_.worker();
  }
  void TearDown() override {
    EXPECT_EQ(luo_preserve_fd(other_, session_.raw(), file_.raw(), 1), -EEXIST) << luo_last_error();
    EXPECT_EQ(luod_.state(), before_) << luod_.log();
    EXPECT_EQ(luod_.worker(), worker_) << "it died of it\n" << luod_.log();
  }
  /// A message of that payload, framed well.
  static std::vector<std::byte> framed(RawClient& client, Command command, std::uint64_t session,
                                       std::span<const std::byte> payload, std::uint32_t fds = 0) {
    wire::Header header{};
    header.length = static_cast<std::uint32_t>(sizeof header + payload.size());
    header.command = static_cast<std::uint32_t>(command);
    header.nonce = client.next_nonce();
    header.session = session;
    header.fds = fds;
    auto out = bytes_of(header);
    out.insert(out.end(), payload.begin(), payload.end());
    return out;
  }
  int answered(RawClient& client, Command command, std::uint64_t session, std::span<const std::byte> payload) {
    const auto message = framed(client, command, session, payload);
    if (!client.send_bytes(message)) return -1;
    const auto answer = client.answer();
    return answer ? answer->error() : -answer.error().code;
  }
  Luod luod_;
  Client other_{luod_};
  Fd session_;
  const Fd file_ = memfd_with("x");
  std::string before_;
  pid_t worker_ = 0;
};

TEST_F(BadInput, BrokenFramingClosesTheConnection) {
  const auto good = [](RawClient& c) { return framed(c, Command::GetName, 0, bytes_of(wire::GetNameArg{})); };
  const auto longer = [&](RawClient& c) {
    auto m = good(c);
    reinterpret_cast<wire::Header*>(m.data())->length += 1;
    return m;
  };
  const auto shorter = [&](RawClient& c) {
    auto m = good(c);
    m.resize(m.size() - 1);
    return m;
  };
  const auto cut = [](RawClient& c) { return std::vector<std::byte>(wire::Header{}.length + 5 + c.next_nonce() * 0); };
  const auto says_fds = [&](RawClient& c) {
    auto m = good(c);
    reinterpret_cast<wire::Header*>(m.data())->fds = 1;
    return m;
  };
  const auto no_nonce = [&](RawClient& c) {
    auto m = good(c);
    reinterpret_cast<wire::Header*>(m.data())->nonce = 0;
    return m;
  };
  const auto old_nonce = [&](RawClient& c) {
    auto m = good(c);
    reinterpret_cast<wire::Header*>(m.data())->nonce = 1;
    return m;
  };
  const std::vector<std::function<std::vector<std::byte>(RawClient&)>> all{longer,   shorter,  cut,
                                                                           says_fds, no_nonce, old_nonce};
  for (std::size_t i = 0; i < all.size(); ++i) {
    RawClient client = raw_client(luod_);
    ASSERT_TRUE(client.send_bytes(all[i](client)).has_value());
    EXPECT_TRUE(client.closed_by_luod()) << i;
  }
}

TEST_F(BadInput, AMessageThatIsTooLongClosesTheConnection) {
  RawClient client = raw_client(luod_);
  const std::vector<std::byte> rest(wire::kMaxMessage);
  ASSERT_TRUE(client.send_bytes(framed(client, Command::GetName, 0, rest)).has_value());
  EXPECT_TRUE(client.closed_by_luod());
}

TEST_F(BadInput, AnythingBeforeHelloClosesTheConnection) {
  RawClient client = *RawClient::connect(luod_.socket());
  EXPECT_EQ(answered(client, Command::CreateSession, 0, bytes_of(name_arg("a"))), -ECONNRESET);
}

TEST_F(BadInput, UnknownCommandsAndSecondHellosAreInvalid) {
  RawClient client = raw_client(luod_);
  for (const std::uint32_t command : {0U, 0xBA02U, 0xBA3FU, 0xBA44U, 0xBA7FU, 0xBA9FU, 0xBABFU, 0xBAC0U, 0xFFFFFFFFU})
    EXPECT_EQ(answered(client, static_cast<Command>(command), 0, bytes_of(plain_arg())), EINVAL) << command;
  wire::HelloArg hello{};
  hello.size = sizeof hello;
  EXPECT_EQ(answered(client, Command::Hello, 0, bytes_of(hello)), EINVAL);
}

TEST_F(BadInput, SizesFollowTheKernelsRule) {
  RawClient client = raw_client(luod_);
  auto arg = name_arg("a");
  arg.size = sizeof arg - 1;
  EXPECT_EQ(answered(client, Command::CreateSession, 0, bytes_of(arg)), EINVAL) << "smaller";
  arg.size = sizeof arg + 8;
  auto larger = bytes_of(arg);
  larger.resize(larger.size() + 8);
  {
    const auto message = framed(client, Command::CreateSession, 0, larger);
    ASSERT_TRUE(client.send_bytes(message).has_value());
    EXPECT_EQ(client.answer()->error(), 0) << "larger, the unknown part zero";
  }
  larger.back() = std::byte{1};
  EXPECT_EQ(answered(client, Command::CreateSession, 0, larger), E2BIG) << "larger, the unknown part not zero";
  arg.size = 4096;
  EXPECT_EQ(answered(client, Command::CreateSession, 0, bytes_of(arg)), -ECONNRESET) << "says more than is there";
  client = raw_client(luod_);
  EXPECT_EQ(answered(client, Command::CreateSession, 0, {}), -ECONNRESET) << "nothing";
}

TEST_F(BadInput, ReservedFieldsAreZero) {
  RawClient client = raw_client(luod_);
  const RawSession session = raw_session(client, Command::CreateSession, "a");
  ASSERT_TRUE(session.fd.valid());
  wire::GetNameArg name{};
  name.size = sizeof name;
  name.reserved = 1;
  EXPECT_EQ(answered(client, Command::GetName, session.handle, bytes_of(name)), EINVAL);
  EXPECT_EQ(answered(client, Command::Accept, session.handle, bytes_of(plain_arg(1))), EINVAL);
  EXPECT_EQ(answered(client, Command::ListTokens, session.handle, bytes_of(plain_arg(1))), EINVAL);
  EXPECT_EQ(answered(client, Command::Subscribe, 0, bytes_of(plain_arg(2))), EINVAL);
  EXPECT_EQ(answered(client, Command::Renew, session.handle, bytes_of(plain_arg(7))), EINVAL);
}

TEST_F(BadInput, HandlesOfOthersAreOfNoUse) {
  RawClient client = raw_client(luod_);
  for (const std::uint64_t handle : {0ULL, 1ULL, 2ULL, 77ULL, ~0ULL}) {
    wire::GetNameArg name{};
    name.size = sizeof name;
    EXPECT_EQ(answered(client, Command::GetName, handle, bytes_of(name)), EBADF);
    EXPECT_EQ(answered(client, Command::Finish, handle, bytes_of(plain_arg())), EBADF);
    EXPECT_EQ(answered(client, Command::Accept, handle, bytes_of(plain_arg())), EBADF);
    EXPECT_EQ(answered(client, Command::UnpreserveFd, handle, bytes_of(token_arg(1))), EBADF);
  }
}

TEST_F(BadInput, DescriptorsWhereNoneBelongCloseTheConnection) {
  for (const std::size_t n : {1UL, 253UL}) {
    RawClient client = raw_client(luod_);
    const std::vector<int> fds(n, file_.raw());
    ASSERT_TRUE(client.post(Command::GetName, 0, wire::GetNameArg{}, fds).has_value());
    EXPECT_TRUE(client.closed_by_luod()) << n;
  }
}

TEST_F(BadInput, WrongNumbersOfDescriptorsCloseTheConnection) {
  for (const std::size_t n : {0UL, 2UL, 253UL}) {
    RawClient client = raw_client(luod_);
    const RawSession session = raw_session(client, Command::CreateSession, "a");
    const std::vector<int> fds(n, file_.raw());
    ASSERT_TRUE(client.post(Command::PreserveFd, session.handle, token_arg(1), fds).has_value());
    EXPECT_TRUE(client.closed_by_luod()) << n;
  }
  struct Many {
    wire::ManyArg arg;
    wire::ManyEntry entry[2];
  } many{{sizeof(wire::ManyArg), 2}, {{1, 0, 0}, {2, 0, 0}}};
  for (const std::size_t n : {0UL, 1UL, 3UL}) {
    RawClient client = raw_client(luod_);
    const RawSession session = raw_session(client, Command::CreateSession, "a");
    const std::vector<int> fds(n, file_.raw());
    ASSERT_TRUE(client.post(Command::PreserveMany, session.handle, many, fds).has_value());
    EXPECT_TRUE(client.closed_by_luod()) << n;
  }
  RawClient client = raw_client(luod_);
  ASSERT_TRUE(client.post(Command::Present, 0, plain_arg()).has_value());
  EXPECT_TRUE(client.closed_by_luod());
}

TEST_F(BadInput, CountsOfBatchesAreChecked) {
  RawClient client = raw_client(luod_);
  const RawSession session = raw_session(client, Command::CreateSession, "a");
  for (const std::uint32_t count : {0U, 254U, 0xFFFFFFFFU})
    EXPECT_EQ(
        answered(client, Command::PreserveMany, session.handle, bytes_of(wire::ManyArg{sizeof(wire::ManyArg), count})),
        EINVAL)
        << count;
  EXPECT_EQ(answered(client, Command::PreserveMany, session.handle, bytes_of(wire::ManyArg{sizeof(wire::ManyArg), 3})),
            -ECONNRESET);
}

TEST_F(BadInput, WhatAClientSaysItMetIsReportedInOrder) {
  RawClient client = raw_client(luod_);
  const RawSession session = raw_session(client, Command::CreateSession, "a");
  const Fd mine = memfd_with("mine");
  const int fd = mine.raw();
  ASSERT_EQ(client.call(Command::PreserveFd, session.handle, token_arg(1), {&fd, 1})->error(), 0);
  for (const std::int32_t error : {EBADF, 4095, -1, INT32_MIN, INT32_MAX}) {
    auto message = framed(client, Command::PreserveFd, session.handle, bytes_of(token_arg(2)));
    reinterpret_cast<wire::Header*>(message.data())->error = error;
    ASSERT_TRUE(client.send_bytes(message).has_value());
    const auto answer = client.answer();
    if (error == EBADF) {
      EXPECT_EQ(answer->error(), EBADF);
      reinterpret_cast<wire::Header*>(message.data())->nonce = client.next_nonce();
      continue;
    }
    // Whatever it is, it is no success.
    if (!answer) break;
    EXPECT_NE(answer->error(), 0) << error;
  }
}

TEST_F(BadInput, AFullTableOfAPeerThatNeverReadsHoldsNobodyUp) {
  RawClient greedy = raw_client(luod_, "greedy");
  // Requests whose answers carry descriptors, until neither side can take more.
  wire::QueryArg query{};
  query.size = sizeof query;
  query.kind = static_cast<std::uint32_t>(wire::QueryKind::Status);
  int sent = 0;
  for (; sent < 5000; ++sent) {
    const auto message = framed(greedy, Command::Query, 0, bytes_of(query));
    if (!greedy.send_bytes(message, {}, MSG_DONTWAIT)) {
      // Full: let luod work. If it is full still, it has stopped reading.
      luod_.status();
      if (!greedy.send_bytes(message, {}, MSG_DONTWAIT)) break;
    }
  }
  EXPECT_LT(sent, 5000) << "luod keeps on reading from a peer that does not";
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(other_.create("x").valid()) << luo_last_error();
  luod_.kill_worker();
  worker_ = luod_.worker();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(other_.create("x").valid()) << luo_last_error();
  // Once it reads, it gets all of its answers, each once.
  std::uint64_t last = 0;
  for (int i = 0; i < sent; ++i) {
    std::vector<std::byte> buffer(wire::kMaxMessage);
    const auto got = receive(greedy.socket(), buffer, 0);
    ASSERT_TRUE(got.has_value()) << i << " of " << sent << ": " << got.error().what;
    wire::Header header{};
    std::memcpy(&header, buffer.data(), sizeof header);
    ASSERT_TRUE(header.nonce == last + 1 || header.nonce == last || last == 0) << header.nonce << " after " << last;
    if (header.nonce == last) --i;
    last = header.nonce;
  }
}

TEST_F(BadInput, AFloodHoldsNobodyUp) {
  const pid_t child = fork();
  if (child == 0) {
    RawClient flood = raw_client(luod_, "flood");
    std::vector<int> fds(253, file_.raw());
    for (;;) {
      // Each is answered EBADF; 253 descriptors are received and closed for it.
      struct Many {
        wire::ManyArg arg;
        wire::ManyEntry entry[253];
      } many{};
      many.arg = {sizeof(wire::ManyArg), 253};
      if (!flood.post(Command::PreserveMany, 5, many, fds)) _exit(0);
      std::byte sink[256];
      while (recv(flood.socket().raw, sink, sizeof sink, MSG_DONTWAIT) > 0) {}
    }
  }
  for (int i = 0; i < 200; ++i) {
    const Fd session = other_.create("x");
    ASSERT_TRUE(session.valid()) << luo_last_error();
  }
  kill_and_wait(child);
}

TEST_F(BadInput, GarbageIsSurvived) {
  std::mt19937 random{20260101};
  const std::uint32_t commands[] = {0xBA00, 0xBA01, 0xBA40, 0xBA41, 0xBA42, 0xBA43, 0xBA80, 0xBA81, 0xBA82,
                                    0xBA83, 0xBA84, 0xBA85, 0xBA86, 0xBA89, 0xBA8A, 0xBA8B, 0xBA8C, 0xBA8D,
                                    0xBA8E, 0xBA8F, 0xBA90, 0xBAA0, 0xBAA1, 0xBAA2, 0xBAA3, 0xBAA4, 0x1234};
  for (int round = 0; round < 150; ++round) {
    RawClient client = raw_client(luod_, "garbage");
    const RawSession session = raw_session(client, Command::CreateSession, "garbage");
    std::vector<Fd> keep;
    for (int i = 0; i < 20; ++i) {
      std::vector<std::byte> payload(random() % 300);
      for (auto& byte : payload) byte = static_cast<std::byte>(random() % 4 == 0 ? random() : 0);
      if (payload.size() >= 4 && random() % 4 != 0) {
        const std::uint32_t size = static_cast<std::uint32_t>(random() % 3 == 0 ? random() : payload.size());
        std::memcpy(payload.data(), &size, sizeof size);
      }
      std::vector<int> fds;
      for (auto n = random() % 4; n > 0; --n) {
        keep.push_back(memfd_with("g"));
        fds.push_back(keep.back().raw());
      }
      const auto command = static_cast<Command>(commands[random() % std::size(commands)]);
      auto message = framed(client, command, random() % 2 == 0 ? session.handle : random() % 8, payload,
                            static_cast<std::uint32_t>(fds.size()));
      if (random() % 16 == 0) message[random() % message.size()] = static_cast<std::byte>(random());
      if (!client.send_bytes(message, fds, MSG_DONTWAIT)) break;
    }
  }
}

// --- a luod that has few descriptors -------------------------------------------------------------------

class FewDescriptors : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }
  Luod luod_{LuodOptions{.nofile = 64}};
};

TEST_F(FewDescriptors, AreReportedAndNothingIsHalfDone) {
  const Client client{luod_};
  const Fd session = client.create("s");
  ASSERT_TRUE(session.valid()) << luo_last_error();
  std::vector<Fd> files;
  std::uint64_t kept = 0;
  for (; kept < 100; ++kept) {
    files.push_back(memfd_with(std::to_string(kept)));
    const int r = luo_preserve_fd(client, session.raw(), files.back().raw(), kept);
    if (r == 0) continue;
    ASSERT_EQ(r, -EMFILE) << luo_last_error();
    break;
  }
  ASSERT_LT(kept, 100U);
  ASSERT_GT(kept, 20U);
  std::vector<std::uint64_t> tokens(200);
  EXPECT_EQ(luo_session_create(client, "t"), -EMFILE) << luo_last_error();
  // A batch comes whole or not at all.
  int fds[3], errors[3] = {};
  const std::uint64_t more[3] = {1000, 1001, 1002};
  for (int& fd : fds) {
    files.push_back(memfd_with("b"));
    fd = files.back().raw();
  }
  EXPECT_EQ(luo_preserve_many(client, session.raw(), fds, more, errors, 3), -EMFILE) << luo_last_error();
  ASSERT_EQ(luo_unpreserve_fd(client, session.raw(), 0), 0) << luo_last_error();
  ASSERT_EQ(luo_unpreserve_fd(client, session.raw(), 1), 0) << luo_last_error();
  ASSERT_EQ(luo_unpreserve_fd(client, session.raw(), 2), 0) << luo_last_error();
  EXPECT_EQ(luo_session_tokens(client, session.raw(), tokens.data(), tokens.size()), static_cast<int>(kept) - 3)
      << luo_last_error();
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), fds[0], 1000), 0) << luo_last_error();
}

TEST_F(FewDescriptors, AWorkerCanStartWhenNoneIsFree) {
  const Client client{luod_};
  const Fd session = client.create("s");
  const pid_t worker = luod_.worker();
  std::vector<Fd> files;
  int r = 0;
  for (std::uint64_t token = 0; token < 100 && r == 0; ++token) {
    files.push_back(memfd_with("x"));
    r = luo_preserve_fd(client, session.raw(), files.back().raw(), token);
  }
  ASSERT_EQ(r, -EMFILE);
  kill_and_wait(worker);
  EXPECT_EQ(luo_preserve_fd(client, session.raw(), files[0].raw(), 0), -EEXIST) << luo_last_error() << luod_.log();
  EXPECT_EQ(luo_unpreserve_fd(client, session.raw(), 0), 0) << luo_last_error();
}

}  // namespace
}  // namespace luo::test
