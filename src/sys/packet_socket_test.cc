#include "sys/packet_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "sys/memfd.h"
#include "sys/pipe.h"

namespace luo {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

ino_t inode_of(const Fd& fd) {
  struct stat info {};
  EXPECT_EQ(fstat(fd.raw(), &info), 0);
  return info.st_ino;
}

class PacketSocketTest : public testing::Test {
 protected:
  PacketSocketTest() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    near = Fd::adopt(ends[0]);
    far = Fd::adopt(ends[1]);
  }
  std::string text() const { return {reinterpret_cast<const char*>(buffer.data()), got.bytes}; }

  Fd near, far;
  std::array<std::byte, 4096> buffer{};
  Received got;
};

TEST_F(PacketSocketTest, CarriesEveryCountOfDescriptorsInOrder) {
  for (const std::size_t count : {0U, 1U, 2U, 252U, 253U}) {
    std::vector<Fd> files;
    std::vector<int> numbers;
    for (std::size_t i = 0; i < count; ++i) {
      files.push_back(make_memfd("x", 0).value());
      numbers.push_back(files.back().raw());
    }
    ASSERT_TRUE(send(near, bytes_of("hello"), numbers));
    ASSERT_TRUE(receive(far, buffer, got, 0));
    EXPECT_EQ(text(), "hello");
    ASSERT_EQ(got.fds.size(), count);
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(inode_of(got.fds[i]), inode_of(files[i]));
      EXPECT_EQ(fcntl(got.fds[i].raw(), F_GETFD), FD_CLOEXEC);
    }
    EXPECT_FALSE(got.truncated || got.control_truncated || got.eof);
  }
}

TEST_F(PacketSocketTest, RefusesMoreDescriptorsThanAMessageCarries) {
  const std::vector<int> numbers(254, near.raw());
  EXPECT_EQ(send(near, bytes_of("x"), numbers).error().code, EINVAL);
}

TEST_F(PacketSocketTest, PeeksAMessageAgainAndConsumesItWithItsDescriptors) {
  Pipe pipe = make_pipe().value();
  const int number = pipe.read.raw();
  ASSERT_TRUE(send(near, bytes_of("first"), {&number, 1}));
  ASSERT_TRUE(send(near, bytes_of("second"), {}));
  pipe.read.close();
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(receive(far, buffer, got, MSG_PEEK));
    EXPECT_EQ(text(), "first");
    EXPECT_EQ(got.fds.size(), 1U);
  }
  got.fds.clear();
  EXPECT_FALSE(reader_gone(pipe.write.raw()));
  ASSERT_TRUE(consume(far));
  EXPECT_TRUE(reader_gone(pipe.write.raw()));
  ASSERT_TRUE(receive(far, buffer, got, 0));
  EXPECT_EQ(text(), "second");
  EXPECT_EQ(consume(far).error().code, EAGAIN);
  EXPECT_EQ(receive(far, buffer, MSG_DONTWAIT).error().code, EAGAIN);
}

TEST_F(PacketSocketTest, ClosesWhatAnEarlierMessageBroughtWhenItReceivesAgain) {
  Pipe pipe = make_pipe().value();
  const int number = pipe.read.raw();
  ASSERT_TRUE(send(near, bytes_of("x"), {&number, 1}));
  ASSERT_TRUE(send(near, bytes_of("y"), {}));
  pipe.read.close();
  ASSERT_TRUE(receive(far, buffer, got, 0));
  ASSERT_TRUE(receive(far, buffer, got, 0));
  EXPECT_TRUE(reader_gone(pipe.write.raw()));
}

TEST_F(PacketSocketTest, SaysThatAMessageWasLongerThanTheBuffer) {
  ASSERT_TRUE(send(near, bytes_of("0123456789"), {}));
  ASSERT_TRUE(receive(far, std::span{buffer}.first(4), got, 0));
  EXPECT_TRUE(got.truncated);
  EXPECT_EQ(text(), "0123");
}

TEST_F(PacketSocketTest, SaysThatDescriptorsAreMissingAndKeepsNone) {
  Pipe pipe = make_pipe().value();
  const std::array<int, 2> numbers{pipe.read.raw(), pipe.read.raw()};
  ASSERT_TRUE(send(near, bytes_of("x"), numbers));
  pipe.read.close();
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  const Fd lowest = Fd::adopt(dup(far.raw()));
  const rlimit tight{static_cast<rlim_t>(lowest.raw()) + 2, old.rlim_max};  // room for one of two
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  const auto result = receive(far, buffer, got, 0);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  ASSERT_TRUE(result);
  EXPECT_TRUE(got.control_truncated);
  EXPECT_FALSE(got.eof);
  EXPECT_LE(got.fds.size(), 1U);
  got.fds.clear();
  EXPECT_TRUE(reader_gone(pipe.write.raw()));
}

TEST_F(PacketSocketTest, TellsTheEndFromAReset) {
  ASSERT_TRUE(send(near, bytes_of("last"), {}));
  near.close();
  ASSERT_TRUE(receive(far, buffer, got, 0));
  EXPECT_FALSE(got.eof);
  ASSERT_TRUE(receive(far, buffer, got, 0));
  EXPECT_TRUE(got.eof);
  EXPECT_EQ(send(far, bytes_of("x"), {}).error().code, EPIPE);
}

TEST_F(PacketSocketTest, ReportsAResetWhenThePeerLeftMessagesUnread) {
  ASSERT_TRUE(send(far, bytes_of("unread"), {}));
  near.close();
  EXPECT_EQ(receive(far, buffer, 0).error().code, ECONNRESET);
}

TEST_F(PacketSocketTest, SendReportsABadDescriptor) {
  const int bad = 19'999;
  EXPECT_EQ(send(near, bytes_of("x"), {&bad, 1}).error().code, EBADF);
}

TEST_F(PacketSocketTest, SendReportsAPeerThatStoppedReading) {
  Result<> result;
  while (result) result = send(near, std::span{buffer}, {}, MSG_DONTWAIT);
  EXPECT_EQ(result.error().code, EAGAIN);
}

class SocketPathTest : public testing::Test {
 protected:
  SocketPathTest() {
    char folder_name[] = "/tmp/luo-sock-XXXXXX";
    folder = mkdtemp(folder_name);
    path = folder + "/s";
  }
  ~SocketPathTest() override {
    unlink(path.c_str());
    rmdir(folder.c_str());
  }
  std::string folder, path;
};

TEST_F(SocketPathTest, ConnectsToAListenerAndKnowsThePeer) {
  const auto listener = listen_packets(path, 8);
  ASSERT_TRUE(listener);
  EXPECT_EQ(accept_packets(*listener).error().code, EAGAIN);
  const auto client = connect_packets(path);
  ASSERT_TRUE(client);
  const auto server = accept_packets(*listener);
  ASSERT_TRUE(server);
  const auto peer = peer_credentials(*server);
  ASSERT_TRUE(peer);
  EXPECT_EQ(peer->pid, getpid());
  EXPECT_EQ(peer->uid, getuid());
  EXPECT_EQ(peer->gid, getgid());
}

TEST_F(SocketPathTest, TellsMissingFromStaleFromTaken) {
  EXPECT_EQ(connect_packets(path).error().code, ENOENT);
  { const auto listener = listen_packets(path, 8); }
  EXPECT_EQ(connect_packets(path).error().code, ECONNREFUSED);
  EXPECT_EQ(listen_packets(path, 8).error().code, EADDRINUSE);
  EXPECT_EQ(connect_packets(std::string(108, 'p')).error().code, ENAMETOOLONG);
  EXPECT_EQ(connect_packets("").error().code, ENOENT);
}

}  // namespace
}  // namespace luo
