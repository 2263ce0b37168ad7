// A handler whose files also go into the kernel's LUO, so that they cross a kexec (the kernel medium). What the kernel
// has no handler for is refused, unless its session says transient=allow: then it lives through everything but a kexec.
#pragma once
#include "luo/engine.h"
#include "luo/handler.h"
#include "medium/kernel.h"

namespace luo::handlers {

/// data: the inner handler's first two words; where the kernel has the file, and what it would not bring back
class CarriedHandler final : public Handler {
 public:
  /// What the session says (Carry). Of a session that is not there: 0.
  using CarryOf = std::function<unsigned(SessionId)>;
  /// Both outlive it.
  CarriedHandler(Handler& inner, medium::Kernel& kernel, CarryOf carry_of)
      : inner_{inner}, kernel_{kernel}, carry_of_{std::move(carry_of)} {}

  std::string_view name() const noexcept override { return inner_.name(); }
  bool can_preserve(const FileInfo& file) const noexcept override { return inner_.can_preserve(file); }
  bool can_be_polled(const FileInfo& file) const noexcept override { return inner_.can_be_polled(file); }
  Identity identity(const FileInfo& file) const noexcept override { return inner_.identity(file); }
  /// Errors: the inner handler's; the kernel's (medium::Kernel::preserve); EOPNOTSUPP the kernel cannot carry it, and
  /// the session does not say that it need not.
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void set_waker(const std::function<void()>& wake) override { inner_.set_waker(wake); }
  void set_flbs(FlbAccess& access) override { inner_.set_flbs(access); }
  void unpreserve(const KeptFile& file) noexcept override;
  Result<HandlerData> freeze(const KeptFile& file) override;
  void unfreeze(const KeptFile& file) noexcept override { inner_.unfreeze(inner(file)); }
  Result<> retrieve(const KeptFile& file) override { return inner_.retrieve(inner(file)); }
  bool can_finish(const KeptFile& file) const noexcept override { return inner_.can_finish(inner(file)); }
  void finish(const KeptFile& file, bool retrieved) noexcept override;

  /// Where the kernel has it; part 0: nowhere.
  static medium::Place place_of(const HandlerData& data) noexcept;
  /// Of a file that has no place: gives it to the kernel now, until the update that is under way is off. The data as it
  /// is: the kernel cannot carry it. Within a transaction. Errors: the kernel's.
  Result<HandlerData> place_late(SessionId session, int fd, const HandlerData& data);
  /// The opposite.
  HandlerData displace(const HandlerData& data) noexcept;
  /// The file that the kernel brought, as it was before: seals, mode. Gone: it was not given to the kernel.
  Engine::Arrival bring(const SessionView& session, const FileView& file);

 private:
  KeptFile inner(const KeptFile& file) const noexcept;

  Handler& inner_;
  medium::Kernel& kernel_;
  CarryOf carry_of_;
};

}  // namespace luo::handlers
