#include "cache/request.h"

#include <gtest/gtest.h>

namespace luo::cache {
namespace {

using Status = RequestParser::Status;
using Arguments = std::vector<std::string>;

// All requests of a stream that arrives in the given pieces; "!" and the error text if it goes bad.
std::vector<Arguments> parse_pieces(const std::vector<std::string>& pieces, RequestLimits limits = {}) {
  RequestParser parser{limits};
  std::vector<Arguments> requests;
  std::string waiting;
  for (const std::string& piece : pieces) {
    // A fresh copy: the buffer may move between two calls.
    std::string moved = waiting + piece;
    waiting.swap(moved);
    for (;;) {
      const Status status = parser.parse(waiting);
      if (status == Status::Partial) break;
      if (status == Status::Bad) {
        requests.push_back({"!", std::string{parser.error()}});
        return requests;
      }
      requests.emplace_back(parser.arguments().begin(), parser.arguments().end());
      waiting.erase(0, parser.consumed());
    }
  }
  return requests;
}

std::vector<Arguments> parse_all(const std::string& bytes, RequestLimits limits = {}) {
  return parse_pieces({bytes}, limits);
}

std::string error_of(const std::string& bytes, RequestLimits limits = {}) {
  const auto requests = parse_all(bytes, limits);
  return !requests.empty() && requests.back()[0] == "!" ? requests.back()[1] : "(no error)";
}

const std::string kStream =
    "*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\na\r\nb\n\r\n"
    "PING\r\n"
    "*1\r\n$4\r\nPING\r\n"
    "\r\n"
    "set 'a b' \"c\\x41\\n\"\n"
    "*0\r\n"
    "*2\r\n$3\r\nGET\r\n$0\r\n\r\n";
const std::vector<Arguments> kRequests = {{"SET", "key", "a\r\nb\n"}, {"PING"}, {"PING"},   {},
                                          {"set", "a b", "cA\n"},     {},       {"GET", ""}};

TEST(RequestParser, ParsesAStreamAtOnce) { EXPECT_EQ(parse_all(kStream), kRequests); }

TEST(RequestParser, ParsesAStreamByteByByte) {
  std::vector<std::string> bytes;
  for (const char c : kStream) bytes.emplace_back(1, c);
  EXPECT_EQ(parse_pieces(bytes), kRequests);
}

TEST(RequestParser, ParsesAStreamCutAtEveryTwoPlaces) {
  for (std::size_t i = 0; i <= kStream.size(); ++i)
    for (std::size_t j = i; j <= kStream.size(); ++j)
      ASSERT_EQ(parse_pieces({kStream.substr(0, i), kStream.substr(i, j - i), kStream.substr(j)}), kRequests)
          << "cut at " << i << " and " << j;
}

TEST(RequestParser, StartsAgainAfterReset) {
  RequestParser parser;
  const std::string request = "*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n";
  for (std::size_t n = 0; n < request.size(); ++n) {
    ASSERT_EQ(parser.parse(request.substr(0, n)), Status::Partial);
    parser.reset();
  }
  ASSERT_EQ(parser.parse(request), Status::Complete);
  EXPECT_EQ(parser.consumed(), request.size());
  EXPECT_EQ(parser.arguments().size(), 2U);
}

TEST(RequestParser, RefusesWhatRedisRefuses) {
  EXPECT_EQ(error_of("*x\r\n"), "Protocol error: invalid multibulk length");
  EXPECT_EQ(error_of("*1048577\r\n"), "Protocol error: invalid multibulk length");
  EXPECT_EQ(error_of("*99999999999999999999\r\n"), "Protocol error: invalid multibulk length");
  EXPECT_EQ(error_of("*1\r\n:1\r\n"), "Protocol error: expected '$', got ':'");
  EXPECT_EQ(error_of("*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
  EXPECT_EQ(error_of("*1\r\n$ 1\r\n"), "Protocol error: invalid bulk length");
  EXPECT_EQ(error_of("*1\r\n$536870913\r\n"), "Protocol error: invalid bulk length");
  EXPECT_EQ(error_of("set 'a\r\n"), "Protocol error: unbalanced quotes in request");
  EXPECT_EQ(error_of("set \"a\"b\r\n"), "Protocol error: unbalanced quotes in request");
  EXPECT_EQ(error_of("*" + std::string(70'000, '1')), "Protocol error: too big mbulk count string");
  EXPECT_EQ(error_of("*1\r\n$" + std::string(70'000, '1')), "Protocol error: too big bulk count string");
  EXPECT_EQ(error_of(std::string(70'000, 'a')), "Protocol error: too big inline request");
}

TEST(RequestParser, IgnoresNegativeCounts) {
  EXPECT_EQ(parse_all("*-1\r\nPING\r\n"), (std::vector<Arguments>{{}, {"PING"}}));
}

TEST(RequestParser, HonoursItsLimits) {
  EXPECT_EQ(error_of("*1\r\n$11\r\n", {.bulk_bytes = 10}), "Protocol error: invalid bulk length");
  EXPECT_EQ(error_of("*3\r\n", {.arguments = 2}), "Protocol error: invalid multibulk length");
}

TEST(RequestParser, NamesWhatItExpects) {
  RequestParser parser;
  const std::string start = "*2\r\n$4\r\nECHO\r\n$1000\r\n";
  ASSERT_EQ(parser.parse(start), Status::Partial);
  EXPECT_EQ(parser.expected(), start.size() + 1002);
}

TEST(ParseInteger, TakesWhatRedisTakes) {
  std::int64_t value = 0;
  for (const auto& [text, wanted] : {std::pair{"0", std::int64_t{0}},
                                     {"-1", -1},
                                     {"9223372036854775807", INT64_MAX},
                                     {"-9223372036854775808", INT64_MIN}}) {
    ASSERT_TRUE(parse_integer(text, value)) << text;
    EXPECT_EQ(value, wanted);
  }
  for (const char* text : {"", "-", "+1", " 1", "1 ", "01", "-0", "1.0", "0x1", "9223372036854775808",
                           "-9223372036854775809", "99999999999999999999999"})
    EXPECT_FALSE(parse_integer(text, value)) << text;
}

}  // namespace
}  // namespace luo::cache
