// What is read of an image before it is known to be one. Nothing here writes.
#pragma once
#include <span>
#include <string_view>

#include "base/fd.h"
#include "kho/image_format.h"

namespace luo::kho {

/// All of `to`, from `at` on. EBADMSG: the file is shorter; `what` says of which part.
Result<> read_at(FdRef file, std::uint64_t at, std::span<std::byte> to, std::string_view what);

/// Reads and checks the header, all of it. EBADMSG, EPROTO, EINVAL (not a file).
Result<ImageHeader> read_image_header(FdRef image);

/// What a sound header says of the image's length, in a file that may be longer (ImageOptions::in_place). EBADMSG
/// (shorter, too), EPROTO, EINVAL.
Result<std::uint64_t> image_length(FdRef image);

/// EBADMSG, with both, if a checksum differs.
Result<> check_sum(std::string_view what, std::uint64_t is, std::uint64_t stored);

}  // namespace luo::kho
