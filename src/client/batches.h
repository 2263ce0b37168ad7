// Files of one session in batches: PRESERVE_MANY and RETRIEVE_MANY.
#pragma once
#include <cstdint>
#include <span>

#include "base/error.h"
#include "client/instance.h"
#include "wire/message.h"

namespace luo::client {

/// What the kernel would say when it comes to look at a descriptor that a message has just refused to carry: it is not
/// open, or an io_uring, which no message carries and no handler knows. 0: it can be sent. (An O_PATH descriptor can;
/// luod refuses it.)
std::int32_t trouble_with(int fd);
/// Whether sending failed because of a descriptor: then trouble_with() tells which.
inline bool is_about_descriptors(const Error& error) noexcept { return error.code == EBADF || error.code == EINVAL; }

/// PRESERVE_MANY of at most wire::kMaxFds; those with an errno in `errors` are reported, not sent. The session is the
/// caller's to set.
void put_preserve(wire::Builder& request, std::span<const int> fds, std::span<const std::uint64_t> tokens,
                  std::span<const int> errors);
/// What became of each. EPROTO: not an answer to it; nothing is changed then.
Result<> take_preserved(const Answer& answer, std::span<int> errors);

/// RETRIEVE_MANY of at most wire::kMaxFds.
void put_retrieve(wire::Builder& request, std::span<const std::uint64_t> tokens);
/// A descriptor, the caller's from here on, or a negative errno each. EPROTO: not an answer to it.
Result<> take_retrieved(Answer answer, std::span<int> fds);

/// The whole of it, with `c.mutex` held. Errors: those of ask_about(), for the batch as a whole.
Result<> preserve_batch(luo_connection& c, int session, std::span<const int> fds, std::span<const std::uint64_t> tokens,
                        std::span<int> errors);
Result<> retrieve_batch(luo_connection& c, int session, std::span<const std::uint64_t> tokens, std::span<int> fds);
/// Before an error is all that a caller sees: nothing may leak to it. Each becomes -code.
void give_back(std::span<int> fds, int code) noexcept;

}  // namespace luo::client
