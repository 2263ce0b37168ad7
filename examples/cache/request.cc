#include "cache/request.h"

#include <fmt/format.h>

#include <cctype>
#include <cstring>

namespace luo::cache {
namespace {

bool is_blank(char c) noexcept { return std::isspace(static_cast<unsigned char>(c)) != 0; }

int hex_value(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  const int lower = std::tolower(static_cast<unsigned char>(c));
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// The character of an escape in a double-quoted argument; moves `i` to its last character.
char unescape(std::string_view line, std::size_t& i) noexcept {
  ++i;
  if (line[i] == 'x' && i + 2 < line.size() && hex_value(line[i + 1]) >= 0 && hex_value(line[i + 2]) >= 0) {
    const int value = hex_value(line[i + 1]) * 16 + hex_value(line[i + 2]);
    i += 2;
    return static_cast<char>(value);
  }
  switch (line[i]) {
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'b': return '\b';
    case 'a': return '\a';
    default: return line[i];
  }
}

}  // namespace

bool parse_integer(std::string_view text, std::int64_t& value) noexcept {
  if (text.empty() || text.size() > 20) return false;
  const bool negative = text[0] == '-';
  std::size_t i = negative ? 1 : 0;
  if (i == text.size()) return false;
  if (text[i] == '0') {
    value = 0;
    return text.size() == 1;
  }
  std::uint64_t sum = 0;
  for (; i < text.size(); ++i) {
    const auto digit = static_cast<unsigned>(text[i] - '0');
    if (digit > 9 || __builtin_mul_overflow(sum, 10U, &sum) || __builtin_add_overflow(sum, digit, &sum)) return false;
  }
  if (sum > (std::uint64_t{1} << 63) - (negative ? 0 : 1)) return false;
  value = static_cast<std::int64_t>(negative ? 0 - sum : sum);
  return true;
}

void RequestParser::reset() noexcept {
  started_ = false;
  left_ = bulk_ = -1;
  at_ = seen_ = 0;
  slices_.clear();
  arguments_.clear();
}

std::size_t RequestParser::expected() const noexcept {
  return bulk_ < 0 ? at_ + 1 : at_ + static_cast<std::size_t>(bulk_) + 2;
}

RequestParser::Status RequestParser::bad(std::string text) {
  error_ = std::move(text);
  return Status::Bad;
}

RequestParser::Status RequestParser::parse(std::string_view bytes) {
  if (!started_) {
    reset();
    if (bytes.empty()) return Status::Partial;
    started_ = true;
    array_ = bytes[0] == '*';
  }
  const Status status = array_ ? parse_array(bytes) : parse_inline(bytes);
  if (status == Status::Complete) started_ = false;
  return status;
}

bool RequestParser::take_line(std::string_view bytes, std::string_view& line) {
  if (seen_ < at_) seen_ = at_;
  std::size_t end = seen_;
  while (end < bytes.size() && bytes[end] != '\r') ++end;
  seen_ = end;
  if (end + 2 > bytes.size()) return false;
  line = bytes.substr(at_, end - at_);
  at_ = end + 2;
  return true;
}

RequestParser::Status RequestParser::parse_array(std::string_view bytes) {
  std::string_view line;
  if (left_ < 0) {
    if (!take_line(bytes, line)) {
      if (bytes.size() > limits_.line_bytes) return bad("Protocol error: too big mbulk count string");
      return Status::Partial;
    }
    std::int64_t count = 0;
    if (!parse_integer(line.substr(1), count) || count > limits_.arguments)
      return bad("Protocol error: invalid multibulk length");
    left_ = count > 0 ? count : 0;
  }
  while (left_ > 0) {
    if (bulk_ < 0) {
      if (!take_line(bytes, line)) {
        if (bytes.size() - at_ > limits_.line_bytes) return bad("Protocol error: too big bulk count string");
        return Status::Partial;
      }
      if (line.empty() || line[0] != '$')
        return bad(fmt::format("Protocol error: expected '$', got '{}'", line.empty() ? '\r' : line[0]));
      std::int64_t size = 0;
      if (!parse_integer(line.substr(1), size) || size < 0 || size > limits_.bulk_bytes)
        return bad("Protocol error: invalid bulk length");
      bulk_ = size;
    }
    const auto size = static_cast<std::size_t>(bulk_);
    if (bytes.size() - at_ < size + 2) return Status::Partial;
    slices_.push_back({at_, size});
    at_ += size + 2;
    bulk_ = -1;
    --left_;
  }
  arguments_.clear();
  for (const Slice& slice : slices_) arguments_.push_back(bytes.substr(slice.at, slice.size));
  return Status::Complete;
}

RequestParser::Status RequestParser::parse_inline(std::string_view bytes) {
  const std::size_t end = bytes.find('\n', seen_);
  if (end == std::string_view::npos) {
    seen_ = bytes.size();
    if (bytes.size() > limits_.line_bytes) return bad("Protocol error: too big inline request");
    return Status::Partial;
  }
  std::string_view line = bytes.substr(0, end);
  if (line.ends_with('\r')) line.remove_suffix(1);
  at_ = end + 1;
  unquoted_.clear();
  slices_.clear();
  for (std::size_t i = 0;;) {
    while (i < line.size() && is_blank(line[i])) ++i;
    if (i == line.size()) break;
    const std::size_t start = unquoted_.size();
    char quote = 0;
    for (; i < line.size() && (quote != 0 || !is_blank(line[i])); ++i) {
      const char c = line[i];
      if (quote == 0 && (c == '"' || c == '\'')) {
        quote = c;
      } else if (quote == '"' && c == '\\' && i + 1 < line.size()) {
        unquoted_.push_back(unescape(line, i));
      } else if (quote == '\'' && c == '\\' && line.substr(i + 1).starts_with('\'')) {
        unquoted_.push_back('\'');
        ++i;
      } else if (quote != 0 && c == quote) {
        quote = 0;
        if (i + 1 < line.size() && !is_blank(line[i + 1])) return bad("Protocol error: unbalanced quotes in request");
      } else {
        unquoted_.push_back(c);
      }
    }
    if (quote != 0) return bad("Protocol error: unbalanced quotes in request");
    slices_.push_back({start, unquoted_.size() - start});
  }
  arguments_.clear();
  for (const Slice& slice : slices_) arguments_.push_back(std::string_view{unquoted_}.substr(slice.at, slice.size));
  return Status::Complete;
}

}  // namespace luo::cache
