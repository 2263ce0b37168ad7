// The table of cases: what is done, and what Linux 7.3 answers.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "conformance/side.h"

namespace conformance {

enum class Where { Device, Luod, Kernel };  ///< luoctl run, libluo, a real kernel

/// One run of one case: what it found wrong.
class Checker {
 public:
  Checker(Side& on, Where at) : side{on}, where{at} {}

  Side& side;
  const Where where;

  /// `got` is 0 or a descriptor, or a negative errno; `wanted` 0 for success, or a positive errno.
  void expect(std::string_view what, int got, int wanted);
  /// Where docs/differences.md says that ours is another: the kernel's answer, and ours.
  void expect_differs(std::string_view what, int got, int of_kernel, int ours) {
    expect(what, got, where == Where::Kernel ? of_kernel : ours);
  }
  void check(std::string_view what, bool right);
  bool is_kernel() const noexcept { return where == Where::Kernel; }

  /// Descriptors that are closed with the case.
  int keep(int result);
  void close(int fd);
  int session(std::string_view name);  ///< created; checked
  int memfd(std::string_view content = "content");
  int device() const { return side.device(); }

  const std::vector<std::string>& wrong() const noexcept { return wrong_; }
  ~Checker();
  Checker(const Checker&) = delete;
  Checker& operator=(const Checker&) = delete;

 private:
  std::vector<int> kept_;
  std::vector<std::string> wrong_;
};

enum class Needs { Anything, BareIoctls };

struct Case {
  const char* name;
  const char* section;  ///< of the reference
  Needs needs;
  void (*run)(Checker&);
};

/// On one side of an update.
std::vector<Case> generic_cases();  ///< sizes, pointers, numbers: §2.3
std::vector<Case> session_cases();  ///< §2.4, §2.5, §2.9, §3.2
std::vector<Case> file_cases();     ///< §2.6

/// Over an update: stage 1 leaves things to a process that goes on; stages 2 and 3 look at what came of them.
void leave(Checker& c);
std::vector<Case> arrival_cases();         ///< stage 2: §2.5, §2.7, §2.8, §3.2
std::vector<Case> second_arrival_cases();  ///< stage 3: §3.7

}  // namespace conformance
