// An arena in a form that can be stored, checked and built up again: right-sized, with checksums, sealed.
//
// An image has the arena's layout, roots and heap metadata, and those pages of the heap that have allocated
// blocks; what is free in them is zeros, so that equal heaps make equal images. Addresses stay what they were:
// every Ref holds in the arena that populate() builds. What lies where: image_format.h, docs/image-format.md.
//
// The checksums are XXH3 (64 bits; header-only, BSD): they are against damage, not against forgers, so a keyed
// hash gains nothing, and at many gigabytes a second they cost less than copying the data does; SipHash-1-3,
// which tables here use against chosen keys, would take longer than all the rest. Whoever can write an image can
// make it a valid one; what populate() then checks is enough to use the arena, not to believe its content.
#pragma once
#include <array>

#include "kho/arena.h"

namespace luo::kho {

/// 2: a checksum for each segment, so that damage has a place. 1: one over all data; still written, for those
/// who read nothing newer.
inline constexpr std::uint32_t kImageFormat = 2;
inline constexpr std::uint32_t kOldestImageFormat = 1;

struct ImageOptions {
  std::uint32_t format = kImageFormat;  ///< kOldestImageFormat .. kImageFormat
  bool control = false;                 ///< the control page too; else it is zeros in the new arena
  bool in_place = false;  ///< the file keeps its size, which must be enough; what follows the image is left
};

/// What an image's header says.
struct ImageInfo {
  std::uint32_t format;
  Layout layout;
  Bytes max_size;    ///< of the arena's heap
  Bytes file_bytes;  ///< of the image
  Bytes data_bytes;  ///< of those, pages of the arena
  std::uint64_t segments;
  std::uint64_t used_bytes, blocks;  ///< as ArenaStats has them
  std::array<PhysAddr, Arena::kRoots> roots;
  bool control;  ///< the control page is in it
  bool sealed;   ///< nobody can change it any more
};

/// Writes an image into `file`, from its start, in place of what was there; its header comes last, so that an
/// unfinished one is not taken for an image. Changes nothing in the arena; its owner's thread. Returns the size
/// in bytes. O(memory in use). Errors: EBUSY (a transaction has written something), ENOSPC (in_place, and the
/// file is too small: nothing is written), EBADMSG (the arena is damaged), EINVAL (format; not a file with offsets),
/// and what ftruncate and write give: ENOSPC, EFBIG, EPERM (sealed), EBADF (opened for reading).
Result<std::uint64_t> write_image(const Arena& arena, FdRef file, const ImageOptions& options = {});

/// The same into a new memfd (CLOEXEC), shown as memfd:NAME, sealed against every change. Errors: also EMFILE,
/// ENOMEM.
Result<Fd> seal(const Arena& arena, std::string_view name, const ImageOptions& options = {});

/// Builds the arena again, in a memfd of its own (memfd:NAME), with pages of its kind. Reads the image from its start
/// with pread; it may be any file. Errors: EBADMSG (damaged: says what and where), EPROTO (another byte order, page
/// size, format, feature or layout; both are named), EINVAL (not a file), ENOMEM, ENOSPC, EMFILE.
Result<Arena> populate(FdRef image, const Layout& expected, std::string_view name);

/// Reads the header only. Errors as populate(), but any layout is accepted.
Result<ImageInfo> inspect_image(FdRef image);

}  // namespace luo::kho
