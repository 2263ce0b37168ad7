// What the kernel medium needs of the kernel's LUO, so that its errors can be had in a test: one call is one ioctl.
#pragma once
#include <string>
#include <unordered_map>

#include "base/error.h"
#include "base/fd.h"

namespace luo::medium {

class Device {
 public:
  /// Descriptors that come back are closed over an exec; the caller changes that.
  virtual Result<Fd> create_session(const std::string& name) = 0;
  /// ENOENT: nothing of that name came in.
  virtual Result<Fd> retrieve_session(const std::string& name) = 0;
  /// EEXIST: the session has that token, whatever `fd` is; EBADF: it has not, and `fd` is none.
  virtual Result<> preserve(FdRef session, int fd, std::uint64_t token) = 0;
  virtual Result<Fd> retrieve(FdRef session, std::uint64_t token) = 0;
  virtual Result<> finish(FdRef session) = 0;
  /// Whether the descriptor, which may be anything, is that of this session, whichever side it is of.
  virtual bool is_session(FdRef fd, const std::string& name) = 0;

 protected:
  ~Device() = default;
};

/// The kernel's own, through a descriptor of /dev/liveupdate, which is borrowed.
class LuoDevice final : public Device {
 public:
  explicit LuoDevice(FdRef device) : device_{device} {}
  Result<Fd> create_session(const std::string& name) override;
  Result<Fd> retrieve_session(const std::string& name) override;
  Result<> preserve(FdRef session, int fd, std::uint64_t token) override;
  Result<Fd> retrieve(FdRef session, std::uint64_t token) override;
  Result<> finish(FdRef session) override;
  bool is_session(FdRef fd, const std::string& name) override;

 private:
  FdRef device_;
};

/// The session descriptors in this process's table by name, whoever left them there: what was retrieved just before a
/// worker was killed is found so. O(descriptors).
std::unordered_map<std::string, int> session_descriptors();

/// Opens the device so that it goes over an exec. Errors: ENOENT, EACCES, EBUSY (says who has it), EIO (this kernel
/// could not read what the one before left).
Result<Fd> open_device();

}  // namespace luo::medium
