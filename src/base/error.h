// Errors are values: what a peer, a file, the kernel or an operator can cause is a Result.
#pragma once
#include <fmt/format.h>

#include <cerrno>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace luo {

/// One failure: a number for machines (an errno, which is also what crosses the wire) and one
/// sentence for people: goal, then call and operands. Printing appends the errno's text and name:
///   "update luod: open image /usr/bin/luod: No such file or directory [ENOENT]"
struct [[nodiscard]] Error {
  int code;          ///< an errno, never 0
  std::string what;  ///< without the errno's text

  /// Puts a goal in front: `return std::unexpected(std::move(e).during("open arena"))`.
  Error during(std::string_view goal) && {
    what.insert(0, std::string{goal} + ": ");
    return std::move(*this);
  }
};

/// The errno's text and name: "No such file or directory [ENOENT]". Any thread, no locale.
std::string errno_text(int code);

/// The whole sentence of an error.
std::string to_string(const Error& error);

/// std::expected, made [[nodiscard]] (libstdc++ 12 leaves that off).
template <class T = void>
struct [[nodiscard]] Result : std::expected<T, Error> {
  using std::expected<T, Error>::expected;
};

/// An error with a code of our choice: `return fail(EINVAL, "token {} is used", token)`.
template <class... Args>
[[nodiscard]] std::unexpected<Error> fail(int code, fmt::format_string<Args...> text, Args&&... args) {
  return std::unexpected(Error{code, fmt::format(text, std::forward<Args>(args)...)});
}

/// The error of a system call that has just failed; takes errno first of all.
/// `return sys_fail("pipe2(O_NONBLOCK)")`.
template <class... Args>
[[nodiscard]] std::unexpected<Error> sys_fail(fmt::format_string<Args...> text, Args&&... args) {
  const int code = errno;
  return std::unexpected(Error{code != 0 ? code : EIO, fmt::format(text, std::forward<Args>(args)...)});
}

/// Ends the process: an invariant of ours is broken, going on could damage what is kept.
[[noreturn]] void broken_invariant(std::string_view what, const char* file, int line) noexcept;

}  // namespace luo

/// Yields the value of a Result or returns its error from the enclosing function. Not nested, and not behind
/// anything in the same expression that owns something: g++ does not destroy that on the way out.
#define LUO_TRY(expr)                                         \
  __extension__({                                             \
    auto luo_result_ = (expr);                                \
    if (!luo_result_) [[unlikely]]                            \
      return std::unexpected(std::move(luo_result_).error()); \
    *std::move(luo_result_);                                  \
  })

/// The same with a goal put in front of the error.
#define LUO_TRY_DURING(goal, expr)                                         \
  __extension__({                                                          \
    auto luo_result_ = (expr);                                             \
    if (!luo_result_) [[unlikely]]                                         \
      return std::unexpected(std::move(luo_result_).error().during(goal)); \
    *std::move(luo_result_);                                               \
  })

/// "This cannot happen", checked in every build.
#define LUO_CHECK(condition)                                   \
  do {                                                         \
    if (!(condition)) [[unlikely]]                             \
      ::luo::broken_invariant(#condition, __FILE__, __LINE__); \
  } while (false)

template <>
struct fmt::formatter<luo::Error> : fmt::formatter<std::string_view> {
  auto format(const luo::Error& e, format_context& ctx) const {
    return fmt::formatter<std::string_view>::format(luo::to_string(e), ctx);
  }
};
