// Messages as a peer could send them: whatever the bytes are, an error or a checked type comes out, and no
// byte outside the message is read. The first byte says how many descriptors came with it.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "wire/message.h"

namespace {

using namespace luo;
using namespace luo::wire;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "found: %s\n", what);
  std::abort();
}

template <class T>
void argument(std::span<const std::byte> payload) {
  const auto parsed = parse_arg<T>(payload);
  if (!parsed)
    return require(parsed.error().code != 0 && !parsed.error().what.empty(), "an error without code or text");
  require(parsed->size >= sizeof(T) && parsed->size == payload.size(), "an argument of another size");
}

template <class Element>
void array(std::span<const std::byte> payload) {
  const auto parsed = parse_array<Element>(payload);
  if (!parsed) return;
  require(!parsed->elements.empty() && parsed->elements.size() <= kMaxFds, "an array of another size");
  require(parsed->elements.size() == parsed->arg.count, "an array with another count");
  require(payload.size() == parsed->arg.size + parsed->elements.size() * sizeof(Element),
          "an array with bytes left over");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  // A copy of exactly that size: one byte too many is seen.
  const auto copy = std::make_unique<std::byte[]>(size - 1);
  if (size > 1) std::memcpy(copy.get(), data + 1, size - 1);
  const std::span<const std::byte> datagram{copy.get(), size - 1};

  std::span<const std::byte> payload = datagram;
  if (const auto header = parse_header(datagram, data[0])) {
    require(header->length == datagram.size() && header->fds == data[0], "a header of another message");
    payload = payload_of(datagram);
    (void)name_of(header->command);
  }
  argument<PlainArg>(payload);
  argument<NameArg>(payload);
  argument<GetNameArg>(payload);
  argument<TokenArg>(payload);
  argument<HelloArg>(payload);
  argument<WaitArg>(payload);
  argument<VerdictArg>(payload);
  argument<QueryArg>(payload);
  argument<UpdateArg>(payload);
  argument<PrepareEvent>(payload);
  argument<EndEvent>(payload);
  array<ManyEntry>(payload);
  array<ManyResult>(payload);
  return 0;
}
