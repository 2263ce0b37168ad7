#include "base/text.h"

#include <gtest/gtest.h>

namespace luo {
namespace {

TEST(PrintableName, KeepsWhatCanBeShownAndEscapesTheRest) {
  EXPECT_EQ(printable_name("vm-7 'a'"), "vm-7 'a'");
  EXPECT_EQ(printable_name("a\nb\\\x7f"), "a\\x0ab\\x5c\\x7f");
  EXPECT_EQ(printable_name("gr\xc3\xbcn"), "gr\xc3\xbcn");
  EXPECT_EQ(printable_name("\xc3\xbc\xff"), "\\xc3\\xbc\\xff") << "not UTF-8 as a whole";
}

TEST(PrintableName, KnowsUtf8) {
  for (const char* good : {"", "a", "\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    EXPECT_TRUE(is_utf8(good)) << good;
  for (const char* bad : {"\x80", "\xc1\x81", "\xc2", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\xc2\x41"})
    EXPECT_FALSE(is_utf8(bad)) << printable_name(bad);
}

}  // namespace
}  // namespace luo
