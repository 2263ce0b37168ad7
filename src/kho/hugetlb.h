// What taking over an arena of hugetlb pages needs besides. There, a page fault that finds the pool empty is a
// SIGBUS, so memory is asked for by a call that can fail before anything is touched, and a private mapping, whose
// copies of pages come from the pool as well, is no place to try a rollback.
#pragma once
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "kho/format.h"
#include "kho/image_extents.h"
#include "kho/memfd.h"

namespace luo::kho {

/// A copy, in ordinary memory, of what a rollback changes and check_state() reads: header, log, and the records of
/// chunks in use. The rest of its heap_at bytes is zeros. All metadata have memory. EBADMSG: count of chunks.
Result<Mapping> copy_metadata(const Mapping& arena, const Geometry& geometry, std::uint64_t log_bytes);

/// EBADMSG if the rollback brought chunks into use: their records are not in the copy. A transaction only adds
/// chunks, so none of ours does.
Result<> check_copy(const Mapping& copy, const Mapping& arena);

/// Memory for all chunks that are noted as having some, in use in `settled` (the arena or a copy of its metadata, its
/// chunk table checked), or in `written`; then the notes to match. Changes nothing unless the arena is damaged. ENOSPC.
Result<> give_noted(const Mapping& arena, const std::byte* settled, const std::vector<Extent>& written, FdRef memfd);

}  // namespace luo::kho
