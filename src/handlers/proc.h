// What /proc says of a descriptor.
#pragma once
#include <array>
#include <string>
#include <string_view>

#include "base/error.h"

namespace luo::handlers {

/// A short link; one that is longer is cut off, and then equal to none that anybody asks for.
struct Link {
  std::array<char, 96> text{};
  std::size_t length = 0;
  std::string_view view() const noexcept { return {text.data(), length}; }
  friend bool operator==(const Link& link, std::string_view other) noexcept { return link.view() == other; }
};
/// /proc/self/fd/N: "anon_inode:inotify", "/dev/kvm". Empty if there is none.
Link link_of(int fd) noexcept;

/// The rest of the line "field:" in /proc/self/fdinfo/N, without the blanks around it. Errors: EOPNOTSUPP there is no
/// such line.
Result<std::string> fdinfo_field(int fd, std::string_view field);

}  // namespace luo::handlers
