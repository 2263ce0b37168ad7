// RESP2 requests: the array form and the inline form, parsed as the bytes come in.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace luo::cache {

struct RequestLimits {
  std::int64_t bulk_bytes = 512LL << 20;  ///< one argument, as Redis's proto-max-bulk-len
  std::int64_t arguments = 1 << 20;       ///< of one request
  std::size_t line_bytes = 64 * 1024;     ///< of a header or an inline request
};

/// Parses one request after another out of a buffer that grows between calls. What a peer claims about
/// lengths reserves nothing: arguments are noted as they arrive.
class RequestParser {
 public:
  explicit RequestParser(RequestLimits limits = {}) noexcept : limits_{limits} {}

  enum class Status {
    Complete,  ///< arguments() has it (none: an empty line), consumed() says how long it was
    Partial,   ///< more bytes are needed
    Bad,       ///< error() says why; the stream cannot be read any further
  };
  /// `bytes` starts where the request starts. After Partial: call again with the same bytes and more,
  /// at any address; what has been looked at is not looked at again.
  Status parse(std::string_view bytes);

  /// Views into the bytes of the last parse(), or into the parser. Valid until the next parse().
  std::span<const std::string_view> arguments() const noexcept { return arguments_; }
  std::size_t consumed() const noexcept { return at_; }
  std::string_view error() const noexcept { return error_; }
  /// After Partial: how long the request is at least, as far as known.
  std::size_t expected() const noexcept;
  /// Forgets a partial request: the next parse() starts at its beginning again.
  void reset() noexcept;

 private:
  struct Slice {
    std::size_t at, size;
  };
  Status parse_array(std::string_view bytes);
  Status parse_inline(std::string_view bytes);
  Status bad(std::string text);
  // The line at at_ without its end, or false: not all there yet.
  bool take_line(std::string_view bytes, std::string_view& line);

  RequestLimits limits_;
  bool started_ = false;
  bool array_ = false;
  std::int64_t left_ = -1;  // arguments still to come; -1: the header is
  std::int64_t bulk_ = -1;  // length of the one that is being read; -1: its header is
  std::size_t at_ = 0;      // parsed up to here
  std::size_t seen_ = 0;    // no line end before here
  std::vector<Slice> slices_;
  std::vector<std::string_view> arguments_;
  std::string unquoted_;  // inline arguments after removal of quotes
  std::string error_;
};

/// Decimal, as Redis reads it: no blanks, no '+', no leading zeros. False if it is none or overflows.
bool parse_integer(std::string_view text, std::int64_t& value) noexcept;

}  // namespace luo::cache
