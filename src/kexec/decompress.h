// Unpacks what a kernel's image keeps packed, piece by piece, in bounded memory. Any thread.
#pragma once
#include <cstddef>
#include <functional>
#include <span>

#include "base/error.h"

namespace luo::kexec {

/// Gets what is unpacked, in order; a piece is valid until it returns. False: that is enough.
using Sink = std::function<bool(std::span<const std::byte>)>;

/// gzip, xz, lzma, zstd and lz4 (as `lz4 -l` writes it), told apart by how they begin. What follows the packed data in
/// `packed` (a kernel has its length there) is not looked at. Takes at most some 200 MiB, whatever the data ask for.
/// Errors: EOPNOTSUPP packed in another way; EBADMSG damaged, or cut off; EFBIG more than a GiB comes out, or it wants
/// more memory than that; ENOMEM. Pieces may have gone to `sink` before.
Result<> decompress(std::span<const std::byte> packed, const Sink& sink);

}  // namespace luo::kexec
