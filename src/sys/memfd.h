// Files without a name. Any thread.
#pragma once
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"
#include "base/strong.h"

namespace luo {

/// `flags` are MFD_*; CLOEXEC is always on. `name` shows in /proc, at most 249 bytes.
Result<Fd> make_memfd(const std::string& name, unsigned flags);

/// A memfd with that content which nobody can change any more, its offset at 0.
Result<Fd> sealed_memfd(const std::string& name, std::string_view content);

/// The whole content from offset 0 (of a pipe or terminal: all until its end). The file may belong to
/// somebody else and change meanwhile. EFBIG if there are more than `limit` bytes.
Result<std::string> read_all(FdRef file, Bytes limit);

/// Writes all of it at the file's offset; goes on after short writes and EINTR.
Result<> write_all(FdRef file, std::string_view content);

}  // namespace luo
