#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "conformance/cases.h"

namespace conformance {
namespace {

constexpr std::size_t kPage = 4096;
void* const kNowhere = reinterpret_cast<void*>(8);

/// Pages of which the last one may be forbidden; an argument can be put so that it ends there.
class Pages {
 public:
  explicit Pages(std::size_t count, int protection_of_last = PROT_READ | PROT_WRITE)
      : bytes_{count * kPage},
        memory_{
            static_cast<char*>(::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))} {
    ::mprotect(memory_ + bytes_ - kPage, kPage, protection_of_last);
  }
  ~Pages() { ::munmap(memory_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  char* begin() const { return memory_; }
  char* last() const { return memory_ + bytes_ - kPage; }
  template <class Arg>
  char* put(char* at, Arg arg, std::uint32_t size) const {
    arg.size = size;
    std::memcpy(at, &arg, sizeof arg);
    return at;
  }

 private:
  std::size_t bytes_;
  char* memory_;
};

SessionArg named(const char* name) {
  SessionArg arg;
  std::strncpy(arg.name, name, sizeof arg.name - 1);
  return arg;
}

void unknown_numbers(Checker& c) {
  const int s = c.session("generic");
  for (const unsigned nr : {0x02u, 0x3fu, 0x40u, 0x43u, 0x44u, 0x80u, 0xffu})
    c.expect("number " + std::to_string(nr) + " on the device", raw_ioctl(c.device(), 0xBA00 | nr, kNowhere), EINVAL);
  for (const unsigned nr : {0x00u, 0x01u, 0x3fu, 0x44u, 0x80u, 0xffu})
    c.expect("number " + std::to_string(nr) + " on a session", raw_ioctl(s, 0xBA00 | nr, kNowhere), EINVAL);
}

void other_bits(Checker& c) {
  const int s = c.session("generic");
  SessionArg arg = named("x");
  c.expect("_IOWR of CREATE_SESSION", raw_ioctl(c.device(), 0xC048BA00, &arg), ENOTTY);
  c.expect("_IOW of CREATE_SESSION", raw_ioctl(c.device(), 0x4048BA00, &arg), ENOTTY);
  FinishArg finish;
  c.expect("_IOWR of FINISH", raw_ioctl(s, 0xC008BA42, &finish), ENOTTY);
  c.expect("the size's place comes before the bits", raw_ioctl(c.device(), 0xC048BA00, kNowhere), EFAULT);
}

void unreadable(Checker& c) {
  const int s = c.session("generic");
  for (const unsigned long command : {kCreateSession, kRetrieveSession})
    for (void* where : {static_cast<void*>(nullptr), kNowhere, reinterpret_cast<void*>(0xffff800000000000)})
      c.expect("unreadable argument", raw_ioctl(c.device(), command, where), EFAULT);
  for (const unsigned long command : {kPreserveFd, kRetrieveFd, kFinish, kGetName})
    c.expect("unreadable argument of a session", raw_ioctl(s, command, kNowhere), EFAULT);
}

void sizes(Checker& c) {
  const int s = c.session("generic");
  const Pages pages{4};
  for (const std::uint32_t size : {0u, 1u, 4u, 8u, 71u})
    c.expect("CREATE_SESSION of " + std::to_string(size) + " bytes",
             raw_ioctl(c.device(), kCreateSession, pages.put(pages.begin(), named("small"), size)), EINVAL);
  for (const std::uint32_t size : {0u, 8u, 15u})
    c.expect("PRESERVE_FD of " + std::to_string(size) + " bytes",
             raw_ioctl(s, kPreserveFd, pages.put(pages.begin(), FileArg{.fd = 0}, size)), EINVAL);
  c.expect("GET_NAME of 71 bytes", raw_ioctl(s, kGetName, pages.put(pages.begin(), NameArg{}, 71)), EINVAL);
  for (const std::uint32_t size : {73u, 80u, 4096u, 3u * 4096}) {
    const std::string name = "large-" + std::to_string(size);
    char* arg = pages.put(pages.begin(), named(name.c_str()), size);
    c.expect("with a tail of zeros", raw_ioctl(c.device(), kCreateSession, arg), 0);
    SessionArg back;
    std::memcpy(&back, arg, sizeof back);
    c.check("its size is echoed", back.size == size);
    c.close(back.fd);
    arg[size - 1] = 1;
    c.expect("with a dirty tail", raw_ioctl(c.device(), kCreateSession, arg), E2BIG);
    arg[size - 1] = 0;
  }
}

void tail_that_faults(Checker& c) {
  const Pages pages{2, PROT_NONE};
  char* arg = pages.put(pages.last() - sizeof(SessionArg), named("edge"), 72);
  c.expect("the struct ends where memory ends", raw_ioctl(c.device(), kCreateSession, arg), 0);
  SessionArg back;
  std::memcpy(&back, arg, sizeof back);
  c.close(back.fd);
  pages.put(arg, named("edge"), 80);
  c.expect("a tail that cannot be read", raw_ioctl(c.device(), kCreateSession, arg), EFAULT);
  pages.put(pages.last() - 8, FinishArg{}, 72);
  SessionArg half = named("");
  std::memcpy(pages.last() - 8, &half, 8);
  c.expect("a struct of which half can be read", raw_ioctl(c.device(), kCreateSession, pages.last() - 8), EFAULT);
}

void read_only_answer(Checker& c) {
  const Pages pages{1};
  pages.put(pages.begin(), named("read-only"), 72);
  ::mprotect(pages.begin(), kPage, PROT_READ);
  c.expect("CREATE_SESSION into read-only memory", raw_ioctl(c.device(), kCreateSession, pages.begin()), EFAULT);
  const int again = c.keep(c.side.create("read-only"));
  c.expect("the name is free", again, 0);
  ::mprotect(pages.begin(), kPage, PROT_READ | PROT_WRITE);
  pages.put(pages.begin(), FileArg{.fd = c.memfd(), .token = 9}, 16);
  ::mprotect(pages.begin(), kPage, PROT_READ);
  c.expect("PRESERVE_FD with read-only memory", raw_ioctl(again, kPreserveFd, pages.begin()), EFAULT);
  c.expect_differs("that token again", c.side.preserve(again, c.memfd(), 9), EEXIST, 0);
}

void direction_first(Checker& c) {
  const int s = c.session("generic");
  const Pages pages{2, PROT_NONE};
  for (const unsigned long command : {kRetrieveFd, kFinish}) {
    char* dirty = pages.put(pages.begin(), FileArg{}, 64);
    dirty[63] = 1;
    c.expect("wrong direction before a dirty tail", raw_ioctl(s, command, dirty), EINVAL);
    dirty[63] = 0;
    c.expect("wrong direction before a tail that faults",
             raw_ioctl(s, command, pages.put(pages.last() - 16, FileArg{}, 64)), EINVAL);
    c.expect("an unreadable size before that", raw_ioctl(s, command, pages.last()), EFAULT);
  }
  char* dirty = pages.put(pages.begin(), FileArg{}, 64);
  dirty[63] = 1;
  c.expect("right direction, dirty tail", raw_ioctl(s, kPreserveFd, dirty), E2BIG);
}

void path_only_descriptor(Checker& c) {
  const int s = c.session("generic");
  const int path = c.keep(::open(("/proc/self/fd/" + std::to_string(s)).c_str(), O_PATH | O_CLOEXEC));
  NameArg arg;
  c.expect("an ioctl on an O_PATH descriptor", raw_ioctl(path, kGetName, &arg), EBADF);
  c.expect("an ioctl on a closed one", raw_ioctl(999, kGetName, &arg), EBADF);
  const int file = c.memfd();
  c.expect("an ioctl on another kind of file", raw_ioctl(file, kGetName, &arg), ENOTTY);
}

void duplicates(Checker& c) {
  const int s = c.session("generic");
  const int twin = c.keep(::dup(s));
  NameArg arg;
  c.expect("GET_NAME on a dup", raw_ioctl(twin, kGetName, &arg), 0);
  c.check("it is the same session", std::strcmp(arg.name, "generic") == 0);
  const int device = c.keep(::dup(c.device()));
  SessionArg session = named("through-a-dup");
  c.expect("CREATE_SESSION on a dup of the device", raw_ioctl(device, kCreateSession, &session), 0);
  c.close(session.fd);
}

void exclusive(Checker& c) {
  c.expect("a second open", ::open("/dev/liveupdate", O_RDWR) < 0 ? -errno : 0, EBUSY);
  c.expect("spelled otherwise", ::open("//dev/../dev/./liveupdate", O_RDONLY) < 0 ? -errno : 0, EBUSY);
  const std::string link = "/tmp/luo-conformance-" + std::to_string(::getpid());
  ::symlink("/dev/liveupdate", link.c_str());
  c.expect("through a symbolic link", ::open(link.c_str(), O_RDWR) < 0 ? -errno : 0, EBUSY);
  ::unlink(link.c_str());
  const int folder = c.keep(::open("/dev", O_RDONLY | O_DIRECTORY));
  c.expect("relative to a descriptor", ::openat(folder, "liveupdate", O_RDWR) < 0 ? -errno : 0, EBUSY);
  struct {
    std::uint64_t flags, mode, resolve;
  } how{O_RDWR, 0, 0};
  c.expect("by openat2", ::syscall(SYS_openat2, folder, "liveupdate", &how, sizeof how) < 0 ? -errno : 0, EBUSY);
  c.expect("by creat", ::creat("/dev/liveupdate", 0600) < 0 ? -errno : 0, EBUSY);
  c.expect("its name under /proc",
           ::open(("/proc/self/fd/" + std::to_string(c.device())).c_str(), O_RDWR) < 0 ? -errno : 0, EBUSY);
}

}  // namespace

std::vector<Case> generic_cases() {
  return {
      {"unknown numbers", "2.3 step 1", Needs::BareIoctls, unknown_numbers},
      {"other bits than the command's", "2.3 step 3", Needs::BareIoctls, other_bits},
      {"unreadable arguments", "2.3 step 2", Needs::BareIoctls, unreadable},
      {"sizes", "2.3 steps 5, 6", Needs::BareIoctls, sizes},
      {"arguments at the edge of memory", "2.3 steps 6, 7", Needs::BareIoctls, tail_that_faults},
      {"answers into read-only memory", "2.3 step 10", Needs::BareIoctls, read_only_answer},
      {"direction before size", "2.3 step 4", Needs::BareIoctls, direction_first},
      {"descriptors that are none", "2.3", Needs::BareIoctls, path_only_descriptor},
      {"duplicates of descriptors", "2.1", Needs::BareIoctls, duplicates},
      {"one open file of the device", "2.1", Needs::BareIoctls, exclusive},
  };
}

}  // namespace conformance
