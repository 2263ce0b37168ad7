// The worker's event loop: what owns it and its sources.
#pragma once
#include <systemd/sd-event.h>

#include <memory>

#include "base/log.h"

namespace luo::daemon {

struct SdUnref {
  void operator()(sd_event* e) const noexcept { sd_event_unref(e); }
  void operator()(sd_event_source* s) const noexcept { sd_event_source_disable_unref(s); }
};
using Loop = std::unique_ptr<sd_event, SdUnref>;
using Source = std::unique_ptr<sd_event_source, SdUnref>;

/// Logs what an sd_event call says if it has failed; gives back what was given.
inline int check_loop(int r) {
  if (r < 0) log(Level::Error, "event loop: {}", errno_text(-r));
  return r;
}

}  // namespace luo::daemon
