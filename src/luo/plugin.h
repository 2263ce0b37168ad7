// Handlers and FLBs from outside: a shared object that luod loads (`luod --handlers /usr/lib/luo/mine.so,all`).
//
//   class Mine final : public luo::Handler { ... };
//   luo::Result<> add(luo::PluginHost& host) { static Mine mine; return host.add(mine); }
//   LUO_PLUGIN("mine", add)
//
// Built with the compiler and the headers of the luod that loads it (`kPluginAbi` is checked), with
// -shared -fPIC; what it uses of luo:: comes from luod itself. It lives in luod's worker: a crash of it is a crash of
// the worker, after which the next one goes on; and it is loaded again after an update of luod.
#pragma once
#include <cstdint>

#include "base/error.h"
#include "luo/flb.h"
#include "luo/handler.h"

namespace luo {

/// Advances whenever a class of handler.h, flb.h, or this file changes.
inline constexpr std::uint32_t kPluginAbi = 2;

/// What a plugin may register. Its objects live until the process ends.
class PluginHost {
 public:
  virtual Result<> add(Handler& handler) = 0;                ///< as HandlerRegistry::add()
  virtual Result<> add_flb(Handler& handler, Flb& flb) = 0;  ///< as HandlerRegistry::add_flb()

 protected:
  ~PluginHost() = default;
};

struct Plugin {
  std::uint32_t abi;
  const char* name;  ///< for people
  Result<> (*add)(PluginHost& host);
};

}  // namespace luo

#define LUO_PLUGIN(NAME, ADD)                                                 \
  extern "C" {                                                                \
  extern __attribute__((visibility("default"))) const luo::Plugin luo_plugin; \
  const luo::Plugin luo_plugin = {luo::kPluginAbi, NAME, ADD};                \
  }
