#include "handlers/handlers.h"

#include "handlers/eventfd.h"
#include "handlers/memfd.h"
#include "handlers/pipe.h"
#include "handlers/socket.h"

namespace luo {
namespace {

constexpr std::string_view kAll = "memfd,socket,eventfd,pipe";

class Chosen final : public HandlerSet {
 public:
  const HandlerRegistry& registry() const noexcept override { return registry_; }

  Result<> add(std::string_view name) {
    if (name == "memfd") return registry_.add(memfd_);
    if (name == "socket") return registry_.add(socket_);
    if (name == "eventfd") return registry_.add(eventfd_);
    if (name == "pipe") return registry_.add(pipe_);
    return fail(EINVAL, "there is no handler '{}'; known are: all, {}", name, kAll);
  }

 private:
  handlers::MemfdHandler memfd_;
  handlers::SocketHandler socket_;
  handlers::EventfdHandler eventfd_;
  handlers::PipeHandler pipe_;
  HandlerRegistry registry_;
};

}  // namespace

Result<std::unique_ptr<HandlerSet>> make_handlers(std::string_view list) {
  auto chosen = std::make_unique<Chosen>();
  if (list == "all") list = kAll;
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
