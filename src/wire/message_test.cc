#include "wire/message.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace luo::wire {
namespace {

std::vector<std::byte> copy_of(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

std::vector<std::byte> preserve_request() {
  Builder builder;
  builder.start(Command::PreserveFd, 7, 9).arg(TokenArg{.size = 0, .fd = -1, .token = 42}).add_fd(5);
  return copy_of(builder.bytes());
}

std::vector<std::byte> argument_with_size(std::uint32_t size, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  std::ranges::copy(std::as_bytes(std::span{&size, 1}).first(std::min(bytes, sizeof size)), out.begin());
  return out;
}

TEST(Message, BuiltOneIsParsedBack) {
  Builder builder;
  builder.start(Command::PreserveFd, 7, 9, EBADF).arg(TokenArg{.size = 0, .fd = -1, .token = 42});
  const auto datagram = builder.bytes();
  const auto header = parse_header(datagram, 0);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->length, 48U);
  EXPECT_EQ(header->command, 0xBA40U);
  EXPECT_EQ(header->nonce, 7U);
  EXPECT_EQ(header->session, 9U);
  EXPECT_EQ(header->error, EBADF);
  const auto arg = parse_arg<TokenArg>(payload_of(datagram));
  ASSERT_TRUE(arg);
  EXPECT_EQ(arg->size, 16U);
  EXPECT_EQ(arg->token, 42U);
}

TEST(Message, BuilderStartsAnewEachTime) {
  Builder builder;
  builder.start(Command::PreserveFd, 1, 0).arg(TokenArg{}).add_fd(3);
  (void)builder.bytes();
  builder.start(Command::Finish, 2, 0).arg(PlainArg{});
  EXPECT_EQ(builder.bytes().size(), sizeof(Header) + sizeof(PlainArg));
  EXPECT_TRUE(builder.fds().empty());
  EXPECT_EQ(parse_header(builder.bytes(), 0)->fds, 0U);
}

TEST(Message, RefusesEveryTruncationAndExtension) {
  const auto whole = preserve_request();
  for (std::size_t n = 0; n < whole.size(); ++n)
    EXPECT_EQ(parse_header(std::span{whole}.first(n), 1).error().code, EBADMSG) << n << " bytes";
  auto longer = whole;
  longer.push_back({});
  EXPECT_EQ(parse_header(longer, 1).error().code, EBADMSG);
  EXPECT_TRUE(parse_header(whole, 1));
}

TEST(Message, RefusesTooManyAndTooFewDescriptors) {
  const auto whole = preserve_request();
  for (const std::size_t fds : {0U, 2U, 253U}) EXPECT_EQ(parse_header(whole, fds).error().code, EBADMSG) << fds;
}

TEST(Message, RefusesEveryLieAboutTheLength) {
  auto bytes = preserve_request();
  for (const std::uint32_t lie : {0U, 1U, 31U, 47U, 49U, 0xFFFFFFFFU}) {
    std::memcpy(bytes.data(), &lie, sizeof lie);
    EXPECT_EQ(parse_header(bytes, 1).error().code, EBADMSG) << lie;
  }
}

TEST(Argument, SmallerThanKnownIsInvalidWhateverArrived) {
  for (std::uint32_t size = 0; size < sizeof(TokenArg); ++size)
    for (const std::size_t bytes : {4U, 8U, 16U, 64U})
      EXPECT_EQ(parse_arg<TokenArg>(argument_with_size(size, bytes)).error().code, EINVAL) << size;
}

TEST(Argument, EveryTruncationIsAFramingError) {
  for (std::size_t n = 0; n < sizeof(TokenArg); ++n)
    EXPECT_EQ(parse_arg<TokenArg>(argument_with_size(sizeof(TokenArg), n)).error().code, EBADMSG) << n;
  EXPECT_EQ(parse_arg<TokenArg>(argument_with_size(0xFFFFFFFF, 4096)).error().code, EBADMSG);
}

TEST(Argument, BytesThatBelongToNothingAreAFramingError) {
  EXPECT_EQ(parse_arg<TokenArg>(argument_with_size(sizeof(TokenArg), 17)).error().code, EBADMSG);
}

TEST(Argument, LargerWithAZeroTailIsAcceptedAndItsSizeEchoed) {
  const auto arg = parse_arg<TokenArg>(argument_with_size(4096, 4096));
  ASSERT_TRUE(arg);
  EXPECT_EQ(arg->size, 4096U);
}

TEST(Argument, AnyDirtyByteInTheTailIsTooBig) {
  for (std::size_t at = sizeof(TokenArg); at < 64; ++at) {
    auto bytes = argument_with_size(64, 64);
    bytes[at] = std::byte{1};
    EXPECT_EQ(parse_arg<TokenArg>(bytes).error().code, E2BIG) << "byte " << at;
  }
}

TEST(Argument, TruncationComesBeforeADirtyTail) {
  auto bytes = argument_with_size(64, 40);
  bytes[39] = std::byte{1};
  EXPECT_EQ(parse_arg<TokenArg>(bytes).error().code, EBADMSG);
}

class ManyTest : public testing::Test {
 protected:
  static std::vector<std::byte> many(std::uint32_t count, std::size_t entries) {
    Builder builder;
    builder.start(Command::PreserveMany, 1, 1).arg(ManyArg{.size = 0, .count = count});
    for (std::size_t i = 0; i < entries; ++i) builder.add(ManyEntry{.token = i, .error = 0, .reserved = 0});
    return copy_of(payload_of(builder.bytes()));
  }
};

TEST_F(ManyTest, CarriesItsElements) {
  const auto parsed = parse_array<ManyEntry>(many(253, 253));
  ASSERT_TRUE(parsed);
  ASSERT_EQ(parsed->elements.size(), 253U);
  EXPECT_EQ(parsed->elements[252].token, 252U);
}

TEST_F(ManyTest, RefusesCountsThatAreNotAllowed) {
  EXPECT_EQ(parse_array<ManyEntry>(many(0, 0)).error().code, EINVAL);
  EXPECT_EQ(parse_array<ManyEntry>(many(254, 254)).error().code, EINVAL);
  EXPECT_EQ(parse_array<ManyEntry>(many(0xFFFFFFFF, 2)).error().code, EINVAL);
}

TEST_F(ManyTest, RefusesEveryTruncationAndSurplus) {
  const auto whole = many(3, 3);
  for (std::size_t n = 0; n < whole.size(); ++n)
    EXPECT_EQ(parse_array<ManyEntry>(std::span{whole}.first(n)).error().code, EBADMSG) << n << " bytes";
  EXPECT_EQ(parse_array<ManyEntry>(many(3, 4)).error().code, EBADMSG);
  EXPECT_EQ(parse_array<ManyEntry>(many(3, 2)).error().code, EBADMSG);
}

TEST(Text, IsCutToItsFieldAndReadUpToItsEnd) {
  char field[8];
  put_text(field, "0123456789");
  EXPECT_EQ(text_in(field), "0123456");
  put_text(field, "");
  EXPECT_EQ(text_in(field), "");
  std::memset(field, 'x', sizeof field);
  EXPECT_EQ(text_in(field), "xxxxxxxx");
}

TEST(NameOf, KnowsCommandsAndShowsOthersAsNumbers) {
  EXPECT_EQ(name_of(0xBA40), "PRESERVE_FD");
  EXPECT_EQ(name_of(0x1234), "command 0x1234");
}

}  // namespace
}  // namespace luo::wire
