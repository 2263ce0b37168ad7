// The two ways to luod.
#include <fcntl.h>
#include <luo/luo.h>
#include <sys/ioctl.h>

#include <array>
#include <cstring>

#include "../client.h"
#include "steps.h"
#include "wire/protocol.h"

namespace bench {
namespace {

using luo::Fd;
using luo::FdRef;
using luo::Result;
namespace wire = luo::wire;

/// The wire's structs are the kernel's.
class ByIoctl : public Luo {
 public:
  explicit ByIoctl(Fd device) : device_{std::move(device)} {}
  Result<Fd> create(const std::string& name) override { return hand_out(wire::Command::CreateSession, name); }
  Result<Fd> retrieve(const std::string& name) override { return hand_out(wire::Command::RetrieveSession, name); }
  Result<> preserve(FdRef session, FdRef file, std::uint64_t token) override {
    wire::TokenArg arg{sizeof arg, file.raw, token};
    return call(session, wire::Command::PreserveFd, arg);
  }
  Result<Fd> retrieve_file(FdRef session, std::uint64_t token) override {
    wire::TokenArg arg{sizeof arg, -1, token};
    LUO_TRY(call(session, wire::Command::RetrieveFd, arg));
    return Fd::adopt(arg.fd);
  }
  Result<> get_name(FdRef session) override {
    wire::GetNameArg arg{sizeof arg, 0, {}};
    return call(session, wire::Command::GetName, arg);
  }
  Result<> finish(FdRef session) override {
    wire::PlainArg arg{sizeof arg, 0};
    return call(session, wire::Command::Finish, arg);
  }

 private:
  template <class Arg>
  static Result<> call(FdRef on, wire::Command command, Arg& arg) {
    if (::ioctl(on.raw, static_cast<unsigned long>(command), &arg) < 0)
      return luo::sys_fail("ioctl {:#x}", static_cast<unsigned>(command));
    return {};
  }
  Result<Fd> hand_out(wire::Command command, const std::string& name) {
    wire::NameArg arg{sizeof arg, -1, {}};
    std::memcpy(arg.name, name.data(), std::min(name.size(), sizeof arg.name - 1));
    LUO_TRY(call(device_, command, arg));
    return Fd::adopt(arg.fd);
  }
  Fd device_;
};

class ByLibluo : public Luo {
 public:
  explicit ByLibluo(Connection connection) : connection_{std::move(connection)} {}
  Result<Fd> create(const std::string& name) override { return bench::create(connection_, name); }
  Result<Fd> retrieve(const std::string& name) override { return bench::retrieve(connection_, name); }
  Result<> preserve(FdRef session, FdRef file, std::uint64_t token) override {
    return done(luo_preserve_fd(connection_.get(), session.raw, file.raw, token), "preserve");
  }
  Result<Fd> retrieve_file(FdRef session, std::uint64_t token) override {
    const int fd = luo_retrieve_fd(connection_.get(), session.raw, token);
    LUO_TRY(done(fd, "retrieve a file"));
    return Fd::adopt(fd);
  }
  Result<> get_name(FdRef session) override {
    std::array<char, LUO_NAME_LENGTH> name;
    return done(luo_session_get_name(connection_.get(), session.raw, name.data()), "get_name");
  }
  Result<> finish(FdRef session) override { return done(luo_session_finish(connection_.get(), session.raw), "finish"); }

 private:
  static Result<> done(int result, std::string_view what) {
    if (result < 0) return luo_fail(result, what);
    return {};
  }
  Connection connection_;
};

}  // namespace

Result<std::unique_ptr<Luo>> by_ioctl(const std::string& device) {
  Fd fd = Fd::adopt(::open(device.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid()) return luo::sys_fail("open('{}')", device);
  return std::make_unique<ByIoctl>(std::move(fd));
}

Result<std::unique_ptr<Luo>> by_libluo(const std::string& socket) {
  Connection connection = LUO_TRY(Connection::open(socket));
  return std::make_unique<ByLibluo>(std::move(connection));
}

}  // namespace bench
