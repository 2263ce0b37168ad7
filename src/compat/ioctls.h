// The six ioctls of the kernel's LUO, as a target makes them, on luod's requests.
#pragma once
#include <cstdint>
#include <unordered_map>

#include "client/connection.h"
#include "compat/call.h"
#include "compat/device.h"

namespace luo::compat {

/// Checks in the order of Linux 7.3: number, size readable, exact command, direction, size, tail, arguments. Every
/// borrowed descriptor is closed before the target goes on, so that its close is the last one. A descriptor that does
/// not arrive is taken back: a session that nobody got is not created or retrieved. One thread.
class Ioctls {
 public:
  Ioctls(client::Connection luod, const Device& device) : luod_{std::move(luod)}, device_{device} {}

  /// Carries it out and answers it; waits for luod. ECONNRESET: luod is gone for good; the call is answered with EIO.
  Result<> carry_out(const Call& call);

  client::Connection& luod() noexcept { return luod_; }

 private:
  Result<int> on_device(const Call& call);
  Result<int> on_session(const Call& call, Fd session, std::uint64_t inode);
  Result<int> hand_out(const Call& call);
  Result<int> preserve(const Call& call, FdRef session, std::uint64_t inode);
  Result<int> retrieve(const Call& call, FdRef session, std::uint64_t inode);
  Result<int> finish(const Call& call, FdRef session, std::uint64_t inode);
  Result<int> get_name(const Call& call, FdRef session, std::uint64_t inode);

  template <class Arg>
  Result<Arg> read_arg(const Call& call, FdRef session, std::uint64_t inode);
  Result<> wrong_direction(const Call& call, std::uint64_t known, FdRef session, std::uint64_t inode);
  Result<client::Answer> about(FdRef session, std::uint64_t inode);
  Result<std::uint64_t> handle_of(FdRef session, std::uint64_t inode);
  Result<client::Answer> ask();

  client::Connection luod_;
  Device device_;
  Caller caller_;
  wire::Builder request_;
  std::unordered_map<std::uint64_t, std::uint64_t> handles_;  ///< by the pipe's inode; checked by luod
};

}  // namespace luo::compat
