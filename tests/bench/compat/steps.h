// What luo-compat is asked to do, one step after the other, so that several of them can take turns.
#pragma once
#include <memory>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace bench {

/// The six ioctls: as a program for the kernel's device makes them, or through libluo. Errors: as the errno.
class Luo {
 public:
  virtual ~Luo() = default;
  virtual luo::Result<luo::Fd> create(const std::string& name) = 0;
  virtual luo::Result<luo::Fd> retrieve(const std::string& name) = 0;
  virtual luo::Result<> preserve(luo::FdRef session, luo::FdRef file, std::uint64_t token) = 0;
  virtual luo::Result<luo::Fd> retrieve_file(luo::FdRef session, std::uint64_t token) = 0;
  virtual luo::Result<> get_name(luo::FdRef session) = 0;
  virtual luo::Result<> finish(luo::FdRef session) = 0;
};
luo::Result<std::unique_ptr<Luo>> by_ioctl(const std::string& device);
luo::Result<std::unique_ptr<Luo>> by_libluo(const std::string& socket);

/// Puts this process under a filter that traps getppid(2), whose supervisor, another process, answers at once; it ends
/// with this one. `sync_wakeup`: the one who answers runs on the processor of the one who asks (Linux 6.6).
luo::Result<> trap_getppid(bool sync_wakeup);

}  // namespace bench
