// Tables and colours of text for people.
#pragma once
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "cli/render.h"

namespace luo::cli {

enum class Colour { Plain, Bold, Green, Yellow, Red };

inline std::string coloured(std::string_view text, Colour colour, Style style) {
  constexpr std::string_view kCodes[] = {"", "\033[1m", "\033[32m", "\033[33m", "\033[31m"};
  if (!style.colours || colour == Colour::Plain) return std::string{text};
  return fmt::format("{}{}\033[0m", kCodes[static_cast<int>(colour)], text);
}

/// Columns as wide as their widest cell; the last is not padded. Numbers are right-aligned.
class Table {
 public:
  struct Cell {
    std::string text;
    Colour colour = Colour::Plain;
  };
  explicit Table(std::vector<std::string_view> titles, std::string_view right_aligned) : right_{right_aligned} {
    std::vector<Cell> row;
    for (const auto title : titles) row.push_back({std::string{title}, Colour::Bold});
    rows_.push_back(std::move(row));
  }
  void add(std::vector<Cell> row) { rows_.push_back(std::move(row)); }
  std::string text(Style style) const {
    std::vector<std::size_t> widths(rows_[0].size(), 0);
    for (const auto& row : rows_)
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].text.size());
    std::string out;
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::string gap(widths[i] - row[i].text.size(), ' ');
        const bool right = right_[i] == 'r', last = i + 1 == row.size();
        if (i != 0) out += "  ";
        if (right) out += gap;
        out += coloured(row[i].text, row[i].colour, style);
        if (!right && !last) out += gap;
      }
      out += '\n';
    }
    return out;
  }

 private:
  std::string_view right_;  // 'r' or 'l' for each column
  std::vector<std::vector<Cell>> rows_;
};

}  // namespace luo::cli
