// What the kernel before has left for luod: its own session, in it the image of the arena.
#pragma once
#include "daemon/control.h"
#include "medium/device.h"

namespace luo::daemon {

/// With Arrival::ToLook or Populated: makes the arena's file what the image says (all but the control page), or says
/// that nothing came (Arrival::Over). May be killed at any instruction, and called again. The arena must not be mapped
/// by this process. Errors: EBADMSG, EPROTO: the image cannot be used (EPROTO
/// also: its arena has another size than this luod's); it is saved in the state directory then, where a
/// luod that can finds it, and its files stay in the kernel until the next boot; if that fails it stays in the kernel
/// as well, and the next call tries again; ENOMEM, ENOSPC.
Result<> fetch_state(Control& control);
/// The same through another device.
Result<> fetch_state(Control& control, medium::Device& device);

/// What came can be read, and this luod still cannot serve it, for want of a handler perhaps: saves the image, unless
/// it is saved, for a luod that can. Otherwise it would go with this one. Logs what became of it.
void save_state(const Control& control) noexcept;
void save_state(const Control& control, medium::Device& device) noexcept;

/// It has arrived: what was saved is not needed any more.
void forget_saved_state(const Control& control) noexcept;

}  // namespace luo::daemon
