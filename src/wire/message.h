// From bytes to checked types and back: framing and the kernel's rule for extensible structs. Used by
// both ends. Nothing here looks past the span it is given, keeps a reference to it, or has a thread.
#pragma once
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "wire/protocol.h"

namespace luo::wire {

/// A struct that may cross the wire: fixed layout, and its first member is its size.
template <class T>
concept Argument = std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T> && requires(T t) {
  { t.size } -> std::same_as<std::uint32_t&>;
};

/// The header of a whole datagram that arrived with `fds_received` descriptors. EBADMSG: framing is broken
/// (too short, its length is not the datagram's, not the descriptors it announces), the connection is lost.
Result<Header> parse_header(std::span<const std::byte> datagram, std::size_t fds_received);

/// What follows the header, of a datagram that parse_header() accepted.
inline std::span<const std::byte> payload_of(std::span<const std::byte> datagram) {
  return datagram.subspan(sizeof(Header));
}

namespace detail {
/// The checks of parse_arg; returns the argument's own size.
Result<std::uint32_t> check_argument(std::span<const std::byte> payload, std::size_t known, bool more_follows);
}  // namespace detail

/// The argument that `payload` consists of, in the kernel's order of checks: EINVAL smaller than we know it,
/// EBADMSG not all there or followed by bytes that belong to nothing (framing: the connection is lost),
/// E2BIG larger than we know it with something in the part we do not know. `size` stays as it was given.
template <Argument T>
Result<T> parse_arg(std::span<const std::byte> payload) {
  LUO_TRY(detail::check_argument(payload, sizeof(T), false));
  T arg;
  std::memcpy(&arg, payload.data(), sizeof arg);
  return arg;
}

template <class T, class Element>
struct WithArray {
  T arg;
  std::vector<Element> elements;
};

/// An argument followed by exactly arg.count elements. Errors as parse_arg; EINVAL: count is 0 or over
/// `most`; EBADMSG: the bytes are not that many elements. Memory is bound by the bytes that are there.
template <class Element, Argument T = ManyArg>
Result<WithArray<T, Element>> parse_array(std::span<const std::byte> payload, std::size_t most = kMaxFds) {
  static_assert(std::is_trivially_copyable_v<Element>);
  const std::uint32_t size = LUO_TRY(detail::check_argument(payload, sizeof(T), true));
  WithArray<T, Element> out;
  std::memcpy(&out.arg, payload.data(), sizeof out.arg);
  const auto rest = payload.subspan(size);
  if (out.arg.count == 0 || out.arg.count > most)
    return fail(EINVAL, "an array of {} elements, 1 to {} are allowed", out.arg.count, most);
  if (rest.size() != out.arg.count * sizeof(Element))
    return fail(EBADMSG, "{} elements announced, {} bytes follow", out.arg.count, rest.size());
  out.elements.resize(out.arg.count);
  std::memcpy(out.elements.data(), rest.data(), rest.size());
  return out;
}

/// Builds one message at a time; keeps its memory for the next. Descriptors are borrowed until it is sent.
class Builder {
 public:
  /// Starts anew. `error` is a positive errno or 0.
  Builder& start(std::uint32_t command, std::uint64_t nonce, std::uint64_t session, std::int32_t error = 0);
  Builder& start(Command command, std::uint64_t nonce, std::uint64_t session, std::int32_t error = 0) {
    return start(static_cast<std::uint32_t>(command), nonce, session, error);
  }
  /// Appends `value` as it lies in memory. A message over kMaxMessage is a broken invariant of the caller.
  template <class T>
  Builder& add(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    return add_bytes(std::as_bytes(std::span{&value, 1}));
  }
  /// The same, with value.size filled in.
  template <Argument T>
  Builder& arg(T value) {
    value.size = sizeof value;
    return add(value);
  }
  template <class T>
  Builder& add_array(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    return add_bytes(std::as_bytes(values));
  }
  Builder& add_bytes(std::span<const std::byte> bytes);
  Builder& add_fd(int number);
  /// Later than start(), for what is known late, or differs when the same message is sent again.
  Builder& set_nonce(std::uint64_t nonce);
  Builder& set_session(std::uint64_t session);
  Builder& set_error(std::int32_t error);
  Builder& drop_fds();

  /// The finished datagram, valid until the next call on this object.
  std::span<const std::byte> bytes();
  std::span<const int> fds() const { return fds_; }

 private:
  template <class T>
  Builder& put(std::size_t offset, const T& value);

  std::vector<std::byte> bytes_;
  std::vector<int> fds_;
};

/// Text in a fixed field, up to its NUL or its end.
template <std::size_t N>
std::string_view text_in(const char (&field)[N]) {
  return {field, strnlen(field, N)};
}

/// Puts text into a field, cut so that a NUL fits; the rest is zero.
template <std::size_t N>
void put_text(char (&field)[N], std::string_view text) {
  std::memset(field, 0, N);
  text.copy(field, N - 1);
}

/// "PRESERVE_FD", for messages to people; "command 0x1234" if it is none of ours.
std::string name_of(std::uint32_t command);

}  // namespace luo::wire
