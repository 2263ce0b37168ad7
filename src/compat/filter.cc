#include "compat/filter.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <vector>

namespace luo::compat {
namespace {

#if defined(__x86_64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "luoctl run: this architecture's audit number is missing"
#endif

// Without it a signal makes the kernel run, and us see, the same request a second time. Linux 5.19.
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

constexpr std::uint32_t low_word_of(unsigned argument) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  return static_cast<std::uint32_t>(offsetof(seccomp_data, args) + 8 * argument);
}

/// A program whose jumps name labels.
class Assembler {
 public:
  enum Label : std::uint8_t { Next, Ioctl, OpenAt, Open, Flags, Allow, Notify, kLabels };

  void put(Label label) { at_[label] = lines_.size(); }
  void load(std::uint32_t offset) { add(BPF_LD | BPF_W | BPF_ABS, offset); }
  void keep(std::uint32_t mask) { add(BPF_ALU | BPF_AND | BPF_K, mask); }
  void if_equal(std::uint32_t value, Label then, Label otherwise = Next) {
    add(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise);
  }
  void if_any(std::uint32_t bits, Label then) { add(BPF_JMP | BPF_JSET | BPF_K, bits, then); }
  void go(Label to) { if_equal(0, to, to); }
  void answer(std::uint32_t action) { add(BPF_RET | BPF_K, action); }

  std::vector<sock_filter> assemble() const {
    std::vector<sock_filter> program;
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      const auto distance = [&](Label to) {
        return to == Next ? std::uint8_t{0} : static_cast<std::uint8_t>(at_[to] - i - 1);
      };
      const Line& line = lines_[i];
      program.push_back({line.code, distance(line.then), distance(line.otherwise), line.value});
    }
    return program;
  }

 private:
  struct Line {
    std::uint16_t code;
    std::uint32_t value;
    Label then, otherwise;
  };
  void add(int code, std::uint32_t value, Label then = Next, Label otherwise = Next) {
    lines_.push_back({static_cast<std::uint16_t>(code), value, then, otherwise});
  }
  std::vector<Line> lines_;
  std::array<std::size_t, kLabels> at_{};
};

std::vector<sock_filter> program() {
  using enum Assembler::Label;
  Assembler a;
  a.load(offsetof(seccomp_data, arch));
  a.if_equal(kArchitecture, Next, Allow);
  a.load(offsetof(seccomp_data, nr));
  a.if_equal(SYS_ioctl, Ioctl);
  a.if_equal(SYS_openat, OpenAt);
  a.if_equal(SYS_openat2, Notify);  // its flags lie in memory
#ifdef SYS_open
  a.if_equal(SYS_open, Open);
  a.if_equal(SYS_creat, Notify);
#endif
  a.go(Allow);
  a.put(Ioctl);
  a.load(low_word_of(1));
  a.keep(0xff00);
  a.if_equal(0xba00, Notify, Allow);
  a.put(OpenAt);
  a.load(low_word_of(2));
  a.go(Flags);
  a.put(Open);
  a.load(low_word_of(1));
  a.put(Flags);
  a.if_any(O_DIRECTORY, Allow);  // O_TMPFILE has this bit, too
  a.keep(O_CREAT | O_EXCL);
  a.if_equal(O_CREAT | O_EXCL, Allow, Notify);
  a.put(Allow);
  a.answer(SECCOMP_RET_ALLOW);
  a.put(Notify);
  a.answer(SECCOMP_RET_USER_NOTIF);
  return a.assemble();
}

int install(const sock_fprog& filter) {
  constexpr unsigned long kFlags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
  return static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, kFlags, &filter));
}

}  // namespace

Result<Fd> install_filter() {
  std::vector<sock_filter> lines = program();
  const sock_fprog filter{static_cast<unsigned short>(lines.size()), lines.data()};
  int listener = install(filter);
  if (listener < 0 && errno == EACCES) {  // not root: allowed for who can gain no privileges
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return sys_fail("prctl(PR_SET_NO_NEW_PRIVS)");
    listener = install(filter);
  }
  if (listener < 0) return sys_fail("seccomp(SECCOMP_SET_MODE_FILTER, NEW_LISTENER | WAIT_KILLABLE_RECV)");
  return Fd::adopt(listener);
}

}  // namespace luo::compat
