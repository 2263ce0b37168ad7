#include "base/hash.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

namespace luo {
namespace {

TEST(SipHash, DiffersForEveryPrefixOfTheSameBytes) {
  std::array<std::byte, 64> bytes{};
  std::set<std::uint64_t> seen;
  for (std::size_t n = 0; n <= bytes.size(); ++n) seen.insert(siphash13({1, 2}, std::span{bytes}.first(n)));
  EXPECT_EQ(seen.size(), bytes.size() + 1);
}

TEST(SipHash, DependsOnEveryBitOfTheKeyAndOfTheInput) {
  std::array<std::byte, 16> bytes{};
  const auto base = siphash13({0, 0}, bytes);
  for (unsigned bit = 0; bit < 64; ++bit) {
    EXPECT_NE(siphash13({1ULL << bit, 0}, bytes), base);
    EXPECT_NE(siphash13({0, 1ULL << bit}, bytes), base);
  }
  for (unsigned bit = 0; bit < 128; ++bit) {
    auto other = bytes;
    other[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    EXPECT_NE(siphash13({0, 0}, other), base);
  }
}

TEST(SipHash, HashesUnalignedInputLikeAligned) {
  std::array<std::byte, 24> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  std::array<std::byte, 25> shifted{};
  std::copy(bytes.begin(), bytes.end(), shifted.begin() + 1);
  EXPECT_EQ(siphash13({3, 4}, bytes), siphash13({3, 4}, std::span{shifted}.subspan(1)));
}

}  // namespace
}  // namespace luo
