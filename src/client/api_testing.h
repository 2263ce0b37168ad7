// What the tests of the C API share.
#pragma once
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>

#include "client/fake_luod.h"
#include "luo/luo.h"
#include "sys/memfd.h"

namespace luo::client {

struct Closer {
  void operator()(luo_connection* c) const { luo_close(c); }
};
using Luo = std::unique_ptr<luo_connection, Closer>;

inline Luo connect(const FakeLuod& luod) {
  luo_connection* c = nullptr;
  EXPECT_EQ(luo_open(luod.path().c_str(), &c), 0) << luo_last_error();
  return Luo{c};
}

inline ino_t inode_of(int fd) {
  struct stat info {};
  EXPECT_EQ(fstat(fd, &info), 0);
  return info.st_ino;
}

inline Fd memfd() { return make_memfd("test", 0).value(); }

/// No descriptor above those that are open now, until the end of the scope.
class NoMoreDescriptors {
 public:
  NoMoreDescriptors() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &old_), 0);
    const Fd lowest = Fd::adopt(dup(0));
    const rlimit none{static_cast<rlim_t>(lowest.raw()), old_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  ~NoMoreDescriptors() { setrlimit(RLIMIT_NOFILE, &old_); }

 private:
  rlimit old_{};
};

}  // namespace luo::client
