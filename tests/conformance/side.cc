#include "conformance/side.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "luo/luo.h"

namespace conformance {
namespace {

class DeviceSide : public Side {
 public:
  explicit DeviceSide(int device) : device_{device} {}
  ~DeviceSide() override { ::close(device_); }
  DeviceSide(const DeviceSide&) = delete;
  DeviceSide& operator=(const DeviceSide&) = delete;

  int create(std::string_view name) override { return session(kCreateSession, name); }
  int retrieve(std::string_view name) override { return session(kRetrieveSession, name); }
  int preserve(int session, int fd, std::uint64_t token) override {
    FileArg arg{.fd = fd, .token = token};
    return raw_ioctl(session, kPreserveFd, &arg);
  }
  int retrieve_fd(int session, std::uint64_t token) override {
    FileArg arg{.token = token};
    const int result = raw_ioctl(session, kRetrieveFd, &arg);
    return result < 0 ? result : arg.fd;
  }
  int finish(int session) override {
    FinishArg arg;
    return raw_ioctl(session, kFinish, &arg);
  }
  int name(int session, std::span<char, 64> name) override {
    NameArg arg;
    const int result = raw_ioctl(session, kGetName, &arg);
    std::memcpy(name.data(), arg.name, name.size());
    return result;
  }
  int device() const override { return device_; }

 private:
  int session(unsigned long command, std::string_view name) {
    SessionArg arg;
    name.copy(arg.name, sizeof arg.name);
    const int result = raw_ioctl(device_, command, &arg);
    return result < 0 ? result : arg.fd;
  }
  int device_;
};

class LuodSide : public Side {
 public:
  explicit LuodSide(luo_connection* luod) : luod_{luod} {}
  ~LuodSide() override { luo_close(luod_); }
  LuodSide(const LuodSide&) = delete;
  LuodSide& operator=(const LuodSide&) = delete;

  int create(std::string_view name) override { return luo_session_create(luod_, std::string{name}.c_str()); }
  int retrieve(std::string_view name) override { return luo_session_retrieve(luod_, std::string{name}.c_str()); }
  int preserve(int session, int fd, std::uint64_t token) override { return luo_preserve_fd(luod_, session, fd, token); }
  int retrieve_fd(int session, std::uint64_t token) override { return luo_retrieve_fd(luod_, session, token); }
  int finish(int session) override { return luo_session_finish(luod_, session); }
  int name(int session, std::span<char, 64> name) override { return luo_session_get_name(luod_, session, name.data()); }

 private:
  luo_connection* luod_;
};

}  // namespace

int raw_ioctl(int fd, unsigned long command, const void* argument) {
  return ::ioctl(fd, command, argument) < 0 ? -errno : 0;
}

std::unique_ptr<Side> open_device() {
  const int device = ::open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
  if (device >= 0) return std::make_unique<DeviceSide>(device);
  std::perror("luo-conformance: open /dev/liveupdate");
  return nullptr;
}

std::unique_ptr<Side> open_luod(const char* socket) {
  luo_connection* luod = nullptr;
  if (luo_open(socket, &luod) == 0) return std::make_unique<LuodSide>(luod);
  std::fprintf(stderr, "luo-conformance: %s\n", luo_last_error());
  return nullptr;
}

}  // namespace conformance
