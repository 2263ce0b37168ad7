// A blocking RESP connection, as small as a verifying client needs: it notices everything.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace demo {

struct Reply {
  enum class Kind { Status, Error, Integer, Bulk, Nil };
  Kind kind = Kind::Nil;
  std::int64_t integer = 0;
  std::string text;  ///< of Status, Error and Bulk
};

/// One connection to a RESP server on 127.0.0.1. Any answer that does not come within
/// `kPatience` is ETIMEDOUT: a client that waits for ever would hide a lost request.
class RespClient {
 public:
  static constexpr int kPatienceSeconds = 60;

  static luo::Result<RespClient> connect(std::uint16_t port);

  /// Adds one command to `out`, in RESP.
  static void encode(std::string& out, std::initializer_list<std::string_view> words);

  luo::Result<> send(std::string_view bytes);
  /// Overwrites `reply` (and reuses its memory). Errors: ECONNRESET (closed by the server), EPROTO, ETIMEDOUT.
  luo::Result<> receive(Reply& reply);
  /// One command, one answer.
  luo::Result<Reply> call(std::initializer_list<std::string_view> words);

 private:
  luo::Result<> fill();
  luo::Result<std::string_view> line();
  luo::Fd socket_;
  std::string input_;
  std::size_t at_ = 0;
  std::string output_;
};

}  // namespace demo
