// What is checked before an arena that another process left is used. Nothing here writes.
#pragma once
#include <string>

#include "base/fd.h"
#include "kho/format.h"
#include "kho/memfd.h"

namespace luo::kho {

HeaderConstants constants_of(const Layout& layout, const Geometry& geometry, Pages pages) noexcept;

/// Memory for what every arena has before its first block. ENOSPC.
Result<> give_first_pages(FdRef memfd, const Geometry& geometry, Pages pages);

/// EPROTO unless this program knows the kind.
Result<> check_pages(Pages pages);
/// The whole file, as an arena of that kind is mapped.
Result<Mapping> map_whole(FdRef memfd, const Geometry& geometry, Pages pages);

/// "luod version 1"; bytes that are not printable are shown as hex.
std::string to_string(const Layout& layout);

/// Reads and checks the constant part: kind and size of the file, magic, byte order, format, checksum, page
/// size, places of the sections. EINVAL, EBADMSG, EPROTO.
Result<HeaderConstants> read_constants(FdRef memfd);
/// The same of any file, such as a copy of an arena.
Result<HeaderConstants> read_constants_of_copy(FdRef file);

/// Whether an entry of the undo log may name [at, at + length): all but the constants, the control page, the
/// log itself and the backed bits.
bool may_roll_back(const Geometry& geometry, std::uint64_t at, std::uint64_t length) noexcept;

/// The changing part of the header and the chunk table, after a rollback. O(chunks in use). EBADMSG.
Result<> check_state(std::byte* base, const Geometry& geometry, FdRef memfd);

/// Makes the page tables of a mapping ready for all memory in use. Another process may be writing: reads only
/// the frontier and the backed bits, and believes them only within the file. O(memory in use).
void bring_in(std::byte* base, const Geometry& geometry) noexcept;

}  // namespace luo::kho
