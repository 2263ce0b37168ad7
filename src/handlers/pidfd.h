// Pidfds: the process that they name goes on being that one, also when it has ended. Told apart by kcmp(2): of one
// process there may be several. Recognised by the process's number, as long as it has one.
#pragma once
#include "luo/handler.h"

namespace luo::handlers {

/// data: pid as luod sees it (-1: it had ended), 0, 0, 0
class PidfdHandler final : public Handler {
 public:
  std::string_view name() const noexcept override { return "pidfd-v1"; }
  bool can_preserve(const FileInfo& file) const noexcept override;
  Identity identity(const FileInfo& file) const noexcept override {
    return {static_cast<std::uint64_t>(file.st.st_dev), static_cast<std::uint64_t>(file.st.st_ino), true};
  }
  /// Errors: EOPNOTSUPP it names no process that luod can see.
  Result<HandlerData> preserve(const FileInfo& file, SessionId session, Token token) override;
  void unpreserve(const KeptFile&) noexcept override {}
  /// Errors: ESTALE another process.
  Result<> retrieve(const KeptFile& file) override;
  void finish(const KeptFile&, bool) noexcept override {}
};

}  // namespace luo::handlers
