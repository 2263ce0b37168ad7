// Descriptors: who owns one shows in the signature.
#pragma once
#include <utility>

namespace luo {

/// Of a descriptor that is being made: whether exec closes it.
enum class OverExec { Close, Keep };

/// Sole owner of one descriptor, or of none (raw() == -1). Moving leaves the source empty.
/// An `Fd` parameter takes the descriptor; an `FdRef` parameter borrows it until the call returns.
class [[nodiscard]] Fd {
 public:
  Fd() noexcept = default;
  /// The only door in from plain ints.
  static Fd adopt(int raw) noexcept { return Fd{raw}; }
  Fd(Fd&& from) noexcept : raw_{from.release()} {}
  Fd& operator=(Fd from) noexcept {
    std::swap(raw_, from.raw_);
    return *this;
  }
  ~Fd() {
    if (raw_ >= 0) close_once(raw_);
  }
  int raw() const noexcept { return raw_; }
  bool valid() const noexcept { return raw_ >= 0; }
  /// Gives the descriptor up without closing it.
  [[nodiscard]] int release() noexcept { return std::exchange(raw_, -1); }
  void close() noexcept { Fd{release()}; }

 private:
  explicit Fd(int raw) noexcept : raw_{raw} {}
  static void close_once(int raw) noexcept;
  int raw_ = -1;
};

/// A loan: passed down, never stored.
struct FdRef {
  int raw;
  FdRef(const Fd& fd) noexcept : raw{fd.raw()} {}
  /// For numbers whose owner is the arena or another process's table.
  static FdRef borrow(int number) noexcept { return FdRef{number}; }

 private:
  explicit FdRef(int number) noexcept : raw{number} {}
};

/// Closes once (no EINTR retry: Linux has freed the number by then), keeps errno; EBADF aborts,
/// because then someone else closed our number and may already have got another file under it.
void close_number(int raw) noexcept;

}  // namespace luo
