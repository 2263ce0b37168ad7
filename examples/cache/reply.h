// RESP2 answers, appended to a connection's output inside the transaction of the commands that they
// answer: a command and its answer happen together or not at all.
#pragma once
#include <cstdint>
#include <string_view>

#include "cache/buffer.h"

namespace luo::cache {

class Reply {
 public:
  /// `limit`: bytes that may wait to be sent. The buffer's changes must have begun in `tx`.
  Reply(Buffer buffer, kho::Tx& tx, std::size_t limit) noexcept : buffer_{buffer}, tx_{&tx}, limit_{limit} {}

  void ok() { raw("+OK\r\n"); }
  void null() { raw("$-1\r\n"); }
  void null_array() { raw("*-1\r\n"); }
  void status(std::string_view text) { line('+', text); }
  /// With its code: "ERR syntax error". Line breaks in it become blanks.
  void error(std::string_view text);
  void integer(std::int64_t value) { header(':', value); }
  void array(std::size_t count) { header('*', static_cast<std::int64_t>(count)); }
  void bulk(std::string_view bytes);
  void bulk_integer(std::int64_t value);

  std::size_t pending() const noexcept { return buffer_.size(); }
  /// No memory for an answer, or more than the limit waits: the connection has to go.
  bool overflowed() const noexcept { return overflowed_; }

 private:
  char* space(std::size_t n);  // nullptr: overflowed
  void raw(std::string_view bytes);
  void header(char kind, std::int64_t value);
  void line(char kind, std::string_view text);

  Buffer buffer_;
  kho::Tx* tx_;
  std::size_t limit_;
  bool overflowed_ = false;
};

}  // namespace luo::cache
