// Numbers that mean something are types: a token is not an address, an address is not a length.
#pragma once
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace luo {

template <class Tag, std::unsigned_integral Rep>
class Strong {
 public:
  constexpr Strong() noexcept = default;
  constexpr explicit Strong(Rep raw) noexcept : raw_{raw} {}
  constexpr Rep raw() const noexcept { return raw_; }
  friend constexpr auto operator<=>(Strong, Strong) noexcept = default;

 private:
  Rep raw_ = 0;
};

using Token = Strong<struct TokenTag, std::uint64_t>;          ///< the client's name for a file; unique in its session
using PhysAddr = Strong<struct PhysAddrTag, std::uint64_t>;    ///< an offset in an arena; 0 is "none"
using Bytes = Strong<struct BytesTag, std::uint64_t>;          ///< a length in bytes, never in pages
using SessionId = Strong<struct SessionIdTag, std::uint64_t>;  ///< never reused in the life of an arena; 0 is "none"
using PeerId = Strong<struct PeerIdTag, std::uint64_t>;        ///< a connection; never reused; 0 is "none"

constexpr Bytes operator""_KiB(unsigned long long n) noexcept { return Bytes{n << 10}; }
constexpr Bytes operator""_MiB(unsigned long long n) noexcept { return Bytes{n << 20}; }
constexpr Bytes operator""_GiB(unsigned long long n) noexcept { return Bytes{n << 30}; }

/// One past the range, or nullopt if it would wrap.
constexpr std::optional<PhysAddr> end_of(PhysAddr at, Bytes length) noexcept {
  std::uint64_t end = 0;
  return __builtin_add_overflow(at.raw(), length.raw(), &end) ? std::nullopt : std::optional{PhysAddr{end}};
}
static_assert(!std::is_convertible_v<std::uint64_t, Token> && !std::is_constructible_v<PhysAddr, Token>);

}  // namespace luo
