#include "cache/reply.h"

#include <charconv>
#include <cstring>

namespace luo::cache {
namespace {

constexpr std::size_t kIntegerLine = 24;  // kind, sign, 19 digits, CR LF

char* put_integer(char* at, std::int64_t value) noexcept { return std::to_chars(at, at + 20, value).ptr; }

char* put_end(char* at) noexcept {
  *at++ = '\r';
  *at++ = '\n';
  return at;
}

}  // namespace

char* Reply::space(std::size_t n) {
  if (buffer_.space().size() >= n) [[likely]]
    return buffer_.space().data();
  if (overflowed_ || buffer_.size() + n > limit_ || !buffer_.grow(*tx_, n)) {
    overflowed_ = true;
    return nullptr;
  }
  return buffer_.space().data();
}

void Reply::raw(std::string_view bytes) {
  if (char* at = space(bytes.size())) {
    std::memcpy(at, bytes.data(), bytes.size());
    buffer_.filled(bytes.size());
  }
}

void Reply::header(char kind, std::int64_t value) {
  if (char* at = space(kIntegerLine)) {
    *at = kind;
    buffer_.filled(static_cast<std::size_t>(put_end(put_integer(at + 1, value)) - at));
  }
}

void Reply::line(char kind, std::string_view text) {
  if (char* at = space(text.size() + 3)) {
    *at = kind;
    std::memcpy(at + 1, text.data(), text.size());
    put_end(at + 1 + text.size());
    buffer_.filled(text.size() + 3);
  }
}

void Reply::error(std::string_view text) {
  if (char* at = space(text.size() + 3)) {
    *at = '-';
    for (std::size_t i = 0; i < text.size(); ++i) at[i + 1] = text[i] == '\r' || text[i] == '\n' ? ' ' : text[i];
    put_end(at + 1 + text.size());
    buffer_.filled(text.size() + 3);
  }
}

void Reply::bulk(std::string_view bytes) {
  char* const start = space(kIntegerLine + bytes.size() + 2);
  if (start == nullptr) return;
  *start = '$';
  char* at = put_end(put_integer(start + 1, static_cast<std::int64_t>(bytes.size())));
  if (!bytes.empty()) std::memcpy(at, bytes.data(), bytes.size());
  at = put_end(at + bytes.size());
  buffer_.filled(static_cast<std::size_t>(at - start));
}

void Reply::bulk_integer(std::int64_t value) {
  char digits[20];
  bulk({digits, static_cast<std::size_t>(put_integer(digits, value) - digits)});
}

}  // namespace luo::cache
