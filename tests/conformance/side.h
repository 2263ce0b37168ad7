// The two ways to LUO that the same cases go: ioctls on /dev/liveupdate, or libluo.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace conformance {

/// Numbers and structs of the kernel's interface, reference §2.2.
enum : unsigned long {
  kCreateSession = 0xBA00,
  kRetrieveSession = 0xBA01,
  kPreserveFd = 0xBA40,
  kRetrieveFd = 0xBA41,
  kFinish = 0xBA42,
  kGetName = 0xBA43
};
struct SessionArg {
  std::uint32_t size = sizeof(SessionArg);
  std::int32_t fd = -1;
  char name[64] = {};
};
struct FileArg {
  std::uint32_t size = sizeof(FileArg);
  std::int32_t fd = -1;
  std::uint64_t token = 0;
};
struct FinishArg {
  std::uint32_t size = sizeof(FinishArg);
  std::uint32_t reserved = 0;
};
struct NameArg {
  std::uint32_t size = sizeof(NameArg);
  std::uint32_t reserved = 0;
  char name[64] = {};
};

/// Results are 0 or a descriptor, or a negative errno.
class Side {
 public:
  virtual ~Side() = default;
  virtual int create(std::string_view name) = 0;
  virtual int retrieve(std::string_view name) = 0;
  virtual int preserve(int session, int fd, std::uint64_t token) = 0;
  virtual int retrieve_fd(int session, std::uint64_t token) = 0;
  virtual int finish(int session) = 0;
  virtual int name(int session, std::span<char, 64> name) = 0;
  /// The device's descriptor, for cases about bare ioctls; -1: this side has none.
  virtual int device() const { return -1; }
};

/// ioctl with its result as here.
int raw_ioctl(int fd, unsigned long command, const void* argument);

/// Of this process; EBUSY and others are printed, nullptr then.
std::unique_ptr<Side> open_device();
/// `socket` may be null: libluo's rule.
std::unique_ptr<Side> open_luod(const char* socket);

}  // namespace conformance
