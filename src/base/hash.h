// SipHash-1-3, keyed: for tables whose keys a peer chooses (names, tokens), so that nobody can make
// them collide. J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace luo {

struct HashKey {
  std::uint64_t k0, k1;
};

/// A key from getrandom(2). Aborts if the kernel has no randomness to give (it has, after boot).
HashKey random_hash_key() noexcept;

/// Any thread; reads exactly `bytes`.
std::uint64_t siphash13(HashKey key, std::span<const std::byte> bytes) noexcept;

}  // namespace luo
