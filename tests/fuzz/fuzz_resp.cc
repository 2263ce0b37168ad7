// luo-cache's request parser: a stream of requests gives the same whether it comes whole or in pieces, and no
// byte outside what has come is read. The first byte is the size of the pieces.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cache/request.h"

namespace {

using luo::cache::RequestParser;
using Status = RequestParser::Status;

/// Small enough that a fuzzer reaches them. Not the limit of a line: that one is for lines whose end has not
/// come, so it does depend on the pieces.
constexpr luo::cache::RequestLimits kLimits{.bulk_bytes = 300, .arguments = 20};

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "found: %s\n", what);
  std::abort();
}

struct Outcome {
  std::vector<std::vector<std::string>> requests;
  std::string error;
  std::size_t left = 0;  ///< bytes of a request that is not complete
};

/// Lets the parser see `step` bytes more at a time, each time in memory of its own.
Outcome read_in_pieces(std::string_view stream, std::size_t step) {
  Outcome outcome;
  RequestParser parser{kLimits};
  std::size_t begin = 0, end = 0;
  while (true) {
    const auto copy = std::make_unique<char[]>(end - begin);
    std::copy_n(stream.data() + begin, end - begin, copy.get());
    const Status status = parser.parse({copy.get(), end - begin});
    if (status == Status::Bad) {
      outcome.error = parser.error();
      require(!outcome.error.empty(), "a refusal without a reason");
      return outcome;
    }
    if (status == Status::Complete) {
      require(parser.consumed() > 0 && parser.consumed() <= end - begin, "consumed what is not there");
      auto& request = outcome.requests.emplace_back();
      for (const std::string_view argument : parser.arguments()) request.emplace_back(argument);
      begin += parser.consumed();
      continue;
    }
    require(parser.expected() > 0, "is waiting for nothing");
    if (end == stream.size()) {
      outcome.left = end - begin;
      return outcome;
    }
    end = std::min(stream.size(), end + step);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view stream{reinterpret_cast<const char*>(data + 1), size - 1};
  const Outcome whole = read_in_pieces(stream, std::max<std::size_t>(stream.size(), 1));
  const Outcome pieces = read_in_pieces(stream, 1 + data[0] % 64U);
  require(whole.requests == pieces.requests, "other requests when it comes in pieces");
  require(whole.error == pieces.error && whole.left == pieces.left, "another end when it comes in pieces");
  std::int64_t value = 0;
  if (luo::cache::parse_integer(stream, value))
    require(std::to_string(value) == stream, "a number that reads otherwise");
  return 0;
}
