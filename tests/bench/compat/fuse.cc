// luo-compat-fuse: the way that `luoctl run` does not go (docs/adr/0016-seccomp-or-fuse.md). A FUSE file in a mount
// namespace of its own whose open and release give exclusivity and last close. Prints what it costs and where its
// limits are, as JSON. Leaves nothing behind: the mounts go with the namespace.
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "../client.h"

namespace bench {
namespace {

using luo::Fd;
using luo::Result;

/// Serves one file that can be open once, until its mount is gone.
class Server {
 public:
  explicit Server(Fd fuse) : fuse_{std::move(fuse)} {}
  [[noreturn]] void run() {
    std::vector<char> buffer(1 << 17);
    for (;;) {
      const ssize_t n = ::read(fuse_.raw(), buffer.data(), buffer.size());
      if (n < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN)) continue;
      if (n < static_cast<ssize_t>(sizeof(fuse_in_header))) ::_exit(0);  // ENODEV: unmounted
      fuse_in_header header;
      std::memcpy(&header, buffer.data(), sizeof header);
      serve(header);
    }
  }

 private:
  void serve(const fuse_in_header& header) {
    switch (header.opcode) {
      case FUSE_INIT: {
        fuse_init_out out{};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = FUSE_KERNEL_MINOR_VERSION;
        out.max_write = 4096;
        return answer(header, out);
      }
      case FUSE_GETATTR: {
        fuse_attr_out out{};
        out.attr_valid = 3600;
        out.attr.ino = 1;
        out.attr.mode = S_IFREG | 0666;
        out.attr.nlink = 1;
        return answer(header, out);
      }
      case FUSE_OPEN: {
        if (open_) return refuse(header, EBUSY);
        open_ = true;
        return answer(header, fuse_open_out{.fh = 1, .open_flags = FOPEN_DIRECT_IO, .padding = 0});
      }
      case FUSE_RELEASE: open_ = false; return refuse(header, 0);
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
      case FUSE_INTERRUPT: return;
      default: return refuse(header, ENOSYS);  // FLUSH, too: the kernel does not ask again
    }
  }
  void refuse(const fuse_in_header& header, int error) const {
    const fuse_out_header out{sizeof out, -error, header.unique};
    (void)!::write(fuse_.raw(), &out, sizeof out);
  }
  template <class Out>
  void answer(const fuse_in_header& header, const Out& body) const {
    std::array<char, sizeof(fuse_out_header) + sizeof(Out)> message;
    const fuse_out_header out{message.size(), 0, header.unique};
    std::memcpy(message.data(), &out, sizeof out);
    std::memcpy(message.data() + sizeof out, &body, sizeof body);
    (void)!::write(fuse_.raw(), message.data(), message.size());
  }
  Fd fuse_;
  bool open_ = false;
};

/// Makes `path`, an existing file, the device. The server ends with the mount.
Result<pid_t> mount_at(const std::string& path) {
  Fd fuse = Fd::adopt(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!fuse.valid()) return luo::sys_fail("open('/dev/fuse')");
  const std::string options = fmt::format("fd={},rootmode=100000,user_id=0,group_id=0,allow_other", fuse.raw());
  if (::mount("luo", path.c_str(), "fuse", MS_NOSUID | MS_NODEV, options.c_str()) != 0)
    return luo::sys_fail("mount fuse at {}", path);
  const pid_t server = ::fork();
  if (server < 0) return luo::sys_fail("fork");
  if (server == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    Server{std::move(fuse)}.run();
  }
  return server;
}

Fd open_device(const std::string& path) { return Fd::adopt(::open(path.c_str(), O_RDWR | O_CLOEXEC)); }

/// How often the next open is refused although the last close has happened: after close(2), and after a process that
/// held it was killed and waited for.
Result<nlohmann::json> measure(const std::string& path, std::size_t rounds) {
  std::vector<double> both, opened, closed;
  std::size_t refused_after_close = 0, refused_after_death = 0, refused_rightly = 0;
  for (std::size_t i = 0; i < rounds; ++i) {
    const std::uint64_t began = now_ns();
    Fd fd = open_device(path);
    const double open_us = us_each(began, 1);
    if (!fd.valid() && errno != EBUSY) return luo::sys_fail("open('{}')", path);
    if (!fd.valid()) {
      ++refused_after_close;
      continue;
    }
    if (i % 100 == 0 && !open_device(path).valid() && errno == EBUSY) ++refused_rightly;
    const std::uint64_t closing = now_ns();
    fd.close();
    closed.push_back(us_each(closing, 1));
    opened.push_back(open_us);
  }
  const std::size_t deaths = rounds / 50;
  for (std::size_t i = 0; i < deaths; ++i) {
    Fd fd = open_device(path);
    if (!fd.valid()) {
      ++refused_after_death;
      continue;
    }
    const pid_t holder = ::fork();
    if (holder == 0) {
      ::pause();
      ::_exit(0);
    }
    fd.close();
    ::kill(holder, SIGKILL);
    ::waitpid(holder, nullptr, 0);
  }
  return nlohmann::json{{"open_us", median(opened)},
                        {"close_us", median(closed)},
                        {"rounds", rounds},
                        {"second_opens_refused", refused_rightly},
                        {"second_opens", (rounds + 99) / 100},
                        {"wrongly_refused_after_close", refused_after_close},
                        {"deaths_of_the_holder", deaths},
                        {"wrongly_refused_after_death", refused_after_death}};
}

/// In a child, so that its namespaces and mounts end with it: the errno of the first step that fails, or 0.
template <class Steps>
int errno_of(Steps&& steps) {
  const pid_t child = ::fork();
  if (child == 0) {
    errno = 0;
    ::_exit(steps() ? 0 : errno == 0 ? 255 : errno);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool own_mounts() { return ::unshare(CLONE_NEWNS) == 0 && ::mount("", "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0; }

/// /dev with one more file, for this namespace only.
bool overlay_dev(const std::string& folder) {
  if (::mount("luo", folder.c_str(), "tmpfs", 0, nullptr) != 0) return false;
  for (const char* name : {"/upper", "/work"})
    if (::mkdir((folder + name).c_str(), 0755) != 0) return false;
  const std::string options = fmt::format("lowerdir=/dev,upperdir={0}/upper,workdir={0}/work", folder);
  if (::mount("luo", "/dev", "overlay", MS_NOSUID, options.c_str()) != 0) return false;
  return Fd::adopt(::open("/dev/liveupdate", O_CREAT | O_RDWR | O_CLOEXEC, 0666)).valid();
}

nlohmann::json limits(const std::string& folder) {
  const std::string inner = folder + "/inner";
  nlohmann::json found;
  const auto try_dev = [&] {
    return own_mounts() && overlay_dev(inner) && mount_at("/dev/liveupdate") &&
           open_device("/dev/liveupdate").valid() && Fd::adopt(::open("/dev/null", O_RDWR | O_CLOEXEC)).valid();
  };
  ::mkdir(inner.c_str(), 0777);
  found["dev_liveupdate_exists"] = ::access("/dev/liveupdate", F_OK) == 0;
  found["root_overlay_on_dev_errno"] = errno_of(try_dev);
  // What the command sees of /dev below the overlay: mounts such as pts and shm do not shine through.
  found["root_overlay_hides_ptmx_errno"] =
      errno_of([&] { return try_dev() && Fd::adopt(::open("/dev/pts/ptmx", O_RDWR | O_CLOEXEC | O_NOCTTY)).valid(); });
  const auto as_nobody = [] { return ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0; };
  found["plain_user_dev_fuse_errno"] =
      errno_of([&] { return as_nobody() && Fd::adopt(::open("/dev/fuse", O_RDWR | O_CLOEXEC)).valid(); });
  found["plain_user_namespace_errno"] =
      errno_of([&] { return as_nobody() && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0; });
  found["mount_inside_seen_outside"] =
      errno_of([&] {
        return own_mounts() && ::mount("luo", inner.c_str(), "tmpfs", 0, nullptr) == 0 &&
               Fd::adopt(::open((inner + "/seen").c_str(), O_CREAT | O_CLOEXEC, 0600)).valid();
      }) == 0 &&
      ::access((inner + "/seen").c_str(), F_OK) == 0;
  return found;
}

Result<nlohmann::json> run(const std::string& folder) {
  nlohmann::json report{{"limits", limits(folder)}};
  const std::string path = folder + "/liveupdate";
  if (!Fd::adopt(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666)).valid()) return luo::sys_fail("'{}'", path);
  std::uint64_t began = now_ns();
  if (!own_mounts()) return luo::sys_fail("a mount namespace");
  const pid_t server = LUO_TRY(mount_at(path));
  if (!open_device(path).valid()) return luo::sys_fail("open('{}')", path);
  report["setup_us"] = us_each(began, 1);
  report["device"] = LUO_TRY(measure(path, 50'000));
  ::kill(server, SIGKILL);
  ::waitpid(server, nullptr, 0);
  report["server_killed_open_errno"] = open_device(path).valid() ? 0 : errno;
  ::umount2(path.c_str(), MNT_DETACH);
  return report;
}

}  // namespace
}  // namespace bench

int main() {
  std::array<char, 32> folder{"/tmp/luo-fuse.XXXXXX"};
  if (::mkdtemp(folder.data()) == nullptr) return 2;
  const auto report = bench::run(folder.data());
  std::error_code ignored;
  std::filesystem::remove_all(folder.data(), ignored);
  if (!report) {
    fmt::print(stderr, "luo-compat-fuse: {}\n", report.error().what);
    return 2;
  }
  std::cout << report->dump(1) << "\n";
  return 0;
}
