#include "wire/message.h"

#include <algorithm>

namespace luo::wire {

Result<Header> parse_header(std::span<const std::byte> datagram, std::size_t fds_received) {
  Header header;
  if (datagram.size() < sizeof header)
    return fail(EBADMSG, "a message of {} bytes, the header has {}", datagram.size(), sizeof header);
  std::memcpy(&header, datagram.data(), sizeof header);
  if (header.length != datagram.size())
    return fail(EBADMSG, "a message of {} bytes that says it has {}", datagram.size(), header.length);
  if (header.fds != fds_received)
    return fail(EBADMSG, "{} descriptors arrived, the message says {}", fds_received, header.fds);
  return header;
}

namespace detail {

Result<std::uint32_t> check_argument(std::span<const std::byte> payload, std::size_t known, bool more_follows) {
  std::uint32_t size;
  if (payload.size() < sizeof size) return fail(EBADMSG, "an argument of {} bytes has no size", payload.size());
  std::memcpy(&size, payload.data(), sizeof size);
  if (size < known) return fail(EINVAL, "an argument of {} bytes, at least {} are needed", size, known);
  if (payload.size() < size) return fail(EBADMSG, "an argument of {} bytes, {} arrived", size, payload.size());
  if (!more_follows && payload.size() != size)
    return fail(EBADMSG, "an argument of {} bytes, {} arrived", size, payload.size());
  const auto tail = payload.subspan(known, size - known);
  if (std::ranges::any_of(tail, [](std::byte b) { return b != std::byte{0}; }))
    return fail(E2BIG, "an argument of {} bytes uses more than the {} we know", size, known);
  return size;
}

}  // namespace detail

Builder& Builder::start(std::uint32_t command, std::uint64_t nonce, std::uint64_t session, std::int32_t error) {
  bytes_.clear();
  fds_.clear();
  return add(Header{.length = 0, .command = command, .nonce = nonce, .session = session, .fds = 0, .error = error});
}

Builder& Builder::add_bytes(std::span<const std::byte> bytes) {
  LUO_CHECK(bytes_.size() + bytes.size() <= kMaxMessage);
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  return *this;
}

Builder& Builder::add_fd(int number) {
  LUO_CHECK(fds_.size() < kMaxFds);
  fds_.push_back(number);
  return *this;
}

template <class T>
Builder& Builder::put(std::size_t offset, const T& value) {
  LUO_CHECK(bytes_.size() >= sizeof(Header));
  std::memcpy(bytes_.data() + offset, &value, sizeof value);
  return *this;
}

Builder& Builder::set_nonce(std::uint64_t nonce) { return put(offsetof(Header, nonce), nonce); }
Builder& Builder::set_session(std::uint64_t session) { return put(offsetof(Header, session), session); }
Builder& Builder::set_error(std::int32_t error) { return put(offsetof(Header, error), error); }

Builder& Builder::drop_fds() {
  fds_.clear();
  return *this;
}

std::span<const std::byte> Builder::bytes() {
  put(offsetof(Header, length), static_cast<std::uint32_t>(bytes_.size()));
  put(offsetof(Header, fds), static_cast<std::uint32_t>(fds_.size()));
  return bytes_;
}

std::string name_of(std::uint32_t command) {
  switch (static_cast<Command>(command)) {
    case Command::CreateSession: return "CREATE_SESSION";
    case Command::RetrieveSession: return "RETRIEVE_SESSION";
    case Command::PreserveFd: return "PRESERVE_FD";
    case Command::RetrieveFd: return "RETRIEVE_FD";
    case Command::Finish: return "FINISH";
    case Command::GetName: return "GET_NAME";
    case Command::Hello: return "HELLO";
    case Command::Accept: return "ACCEPT";
    case Command::Present: return "PRESENT";
    case Command::UnpreserveFd: return "UNPRESERVE_FD";
    case Command::Renew: return "RENEW";
    case Command::PreserveMany: return "PRESERVE_MANY";
    case Command::RetrieveMany: return "RETRIEVE_MANY";
    case Command::RetrieveWait: return "RETRIEVE_WAIT";
    case Command::Subscribe: return "SUBSCRIBE";
    case Command::Prepared: return "PREPARED";
    case Command::TakeOver: return "TAKE_OVER";
    case Command::ListTokens: return "LIST_TOKENS";
    case Command::Hold: return "HOLD";
    case Command::Drop: return "DROP";
    case Command::SetEvent: return "SET_EVENT";
    case Command::GetState: return "GET_STATE";
    case Command::PreserveAfter: return "PRESERVE_AFTER";
    case Command::Query: return "QUERY";
    case Command::UpdateLuod: return "UPDATE_LUOD";
    case Command::UpdateService: return "UPDATE_SERVICE";
    case Command::UpdateWait: return "UPDATE_WAIT";
    case Command::UpdateCancel: return "UPDATE_CANCEL";
    case Command::UpdateSimulated: return "UPDATE_SIMULATED";
    case Command::Stop: return "STOP";
    case Command::Inspect: return "INSPECT";
    case Command::SetOption: return "SET_OPTION";
    case Command::UpdateKernel: return "UPDATE_KERNEL";
  }
  return fmt::format("command {:#x}", command);
}

}  // namespace luo::wire
