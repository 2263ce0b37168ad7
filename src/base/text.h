// Names that others choose, made fit to be shown. Any thread.
#pragma once
#include <string>
#include <string_view>

namespace luo {

/// Any bytes: control characters and backslashes, and all beyond ASCII unless the whole is UTF-8, become \xNN. So
/// different bytes stay different text, and the text can stand in JSON and on a terminal.
std::string printable_name(std::string_view name);

/// Whether it is UTF-8: no overlong forms, surrogates, or numbers past U+10FFFF.
bool is_utf8(std::string_view text) noexcept;

}  // namespace luo
