#include "kexec/state_formats.h"

#include <gmock/gmock.h>

namespace luo::kexec {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

StateFormats found_in(std::string_view kernel, std::size_t piece) {
  FormatFinder finder;
  for (std::size_t at = 0; at < kernel.size(); at += piece)
    finder.feed(std::as_bytes(std::span{kernel}.subspan(at, std::min(piece, kernel.size() - at))));
  return finder.found();
}

TEST(StateFormats, AreFoundWhereverAPieceEnds) {
  using namespace std::string_literals;
  const std::string kernel = "luo-v7\0\0text kho-v4\0\x01memfd-v1234\0memfd-v2\0luo-v5\0"s + std::string(100, '\0');
  for (std::size_t piece = 1; piece <= kernel.size(); ++piece)
    EXPECT_THAT(found_in(kernel, piece), ElementsAre("kho-v4", "luo-v5", "luo-v7", "memfd-v1234", "memfd-v2")) << piece;
}

TEST(StateFormats, WhatOnlyLooksLikeOneIsNone) {
  using namespace std::string_literals;
  const std::string kernel =
      "oluo-v5\0my-luo-v5\0luo-v\0luo-v5a\0luo-v12345\0luo-v5 is\0LUO-v5\0memblock-v1\0kho-v\0-v4\0v4\0kho-v4"s;
  for (const std::size_t piece : {1U, 5U, 1000U}) EXPECT_THAT(found_in(kernel, piece), IsEmpty()) << piece;
}

TEST(StateFormats, TheLatestThatOneKnowsIsWhatItWrites) {
  const StateFormats now{"kho-v4", "luo-v5", "luo-v10", "memfd-v2"};
  EXPECT_THAT(not_read(now, now), IsEmpty());
  EXPECT_THAT(not_read(now, {"kho-v4", "luo-v10", "luo-v11", "memfd-v2"}), IsEmpty());
  EXPECT_THAT(not_read(now, {"kho-v4", "luo-v5", "memfd-v2"}), ElementsAre("luo-v10"));
  EXPECT_THAT(not_read(now, {}), ElementsAre("kho-v4", "luo-v10", "memfd-v2"));
  EXPECT_THAT(not_read({}, now), IsEmpty());
}

}  // namespace
}  // namespace luo::kexec
