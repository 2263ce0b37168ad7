#include "handlers/handlers.h"

#include <dlfcn.h>

#include <algorithm>
#include <string>

#include "handlers/anonymous.h"
#include "handlers/device.h"
#include "handlers/eventfd.h"
#include "handlers/memfd.h"
#include "handlers/pidfd.h"
#include "handlers/pipe.h"
#include "handlers/regular.h"
#include "handlers/socket.h"
#include "luo/plugin.h"

namespace luo {
namespace {

constexpr std::string_view kAll = "memfd,socket,eventfd,pipe,timerfd,signalfd,inotify,pidfd,device,refused,file";

class Chosen final : public HandlerSet, private PluginHost {
 public:
  const HandlerRegistry& registry() const noexcept override { return registry_; }

  Result<> add(std::string_view name) {
    if (name.starts_with('/')) return load(std::string{name});
    if (name == "all") {
      for (std::string_view rest = kAll; !rest.empty();) {
        const std::size_t end = std::min(rest.find(','), rest.size());
        LUO_TRY(add(rest.substr(0, end)));
        rest.remove_prefix(std::min(end + 1, rest.size()));
      }
      return {};
    }
    if (name == "memfd") return registry_.add(memfd_);
    if (name == "socket") return registry_.add(socket_);
    if (name == "eventfd") return registry_.add(eventfd_);
    if (name == "pipe") return registry_.add(pipe_);
    if (name == "timerfd") return registry_.add(timerfd_);
    if (name == "signalfd") return registry_.add(signalfd_);
    if (name == "inotify") return registry_.add(inotify_);
    if (name == "pidfd") return registry_.add(pidfd_);
    if (name == "device") return registry_.add(device_);
    if (name == "refused") return registry_.add(refused_);
    if (name == "file") return registry_.add(regular_);
    return fail(EINVAL, "there is no handler '{}'; known are: all, {}, and shared objects by their whole path", name,
                kAll);
  }

 private:
  /// It stays loaded: a worker inherits it from its keeper, and finds it by its path even if the file is gone.
  Result<> load(const std::string& path) {
    void* object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (object == nullptr) return fail(ELIBACC, "load the handlers in '{}': {}", path, dlerror());
    const auto* plugin = static_cast<const Plugin*>(dlsym(object, "luo_plugin"));
    if (plugin == nullptr)
      return fail(ELIBBAD, "load the handlers in '{}': it has no luo_plugin (see LUO_PLUGIN in luo/plugin.h)", path);
    if (plugin->abi != kPluginAbi)
      return fail(ELIBBAD, "load the handlers in '{}': built for another luod (plugin ABI {}, this one has {})", path,
                  plugin->abi, kPluginAbi);
    LUO_TRY_DURING(fmt::format("add the handlers of plugin {}", plugin->name), plugin->add(*this));
    return {};
  }
  Result<> add(Handler& handler) override { return registry_.add(handler); }
  Result<> add_flb(Handler& handler, Flb& flb) override { return registry_.add_flb(handler, flb); }

  handlers::MemfdHandler memfd_;
  handlers::SocketHandler socket_;
  handlers::EventfdHandler eventfd_;
  handlers::PipeHandler pipe_;
  handlers::AnonymousHandler timerfd_{"timerfd-v1", "anon_inode:[timerfd]", "clockid"};
  handlers::AnonymousHandler signalfd_{"signalfd-v1", "anon_inode:[signalfd]", ""};  // its mask may be changed
  handlers::AnonymousHandler inotify_{"inotify-v1", "anon_inode:inotify", ""};
  handlers::PidfdHandler pidfd_;
  handlers::DeviceHandler device_;
  handlers::RefusedHandler refused_;
  handlers::RegularHandler regular_;
  HandlerRegistry registry_;
};

}  // namespace

Result<std::unique_ptr<HandlerSet>> make_handlers(std::string_view list) {
  auto chosen = std::make_unique<Chosen>();
  for (bool more = true; more;) {
    const std::size_t comma = list.find(',');
    more = comma != std::string_view::npos;
    auto added = chosen->add(list.substr(0, comma));
    if (!added && added.error().code == EEXIST)
      return fail(EINVAL, "choose handlers: '{}' stands twice", list.substr(0, comma));
    if (!added) return std::unexpected(std::move(added).error().during("choose handlers"));
    if (more) list.remove_prefix(comma + 1);
  }
  return std::unique_ptr<HandlerSet>{std::move(chosen)};
}

}  // namespace luo
