#include "base/fd.h"
#include "luo/engine.h"

namespace luo {

void Change::commit() noexcept {
  tx.commit();
  for (const int fd : close_) close_number(fd);
  close_.clear();
  if (after_ != nullptr) std::exchange(after_, nullptr)(context_);
}

void Change::back_to(const Mark& mark) noexcept {
  tx.back_to(mark.tx);
  close_.resize(mark.closes);
}

}  // namespace luo
