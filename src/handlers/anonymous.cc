#include "handlers/anonymous.h"

#include "base/hash.h"
#include "handlers/proc.h"

namespace luo::handlers {

bool AnonymousHandler::can_preserve(const FileInfo& file) const noexcept {
  // An anonymous inode has no type; a pidfd of Linux 6.9 and later is a regular file of pidfs.
  if ((file.st.st_mode & S_IFMT) != 0 && !S_ISREG(file.st.st_mode)) return false;
  return link_of(file.fd) == link_;
}

Result<std::uint64_t> AnonymousHandler::digest(int fd) const {
  if (constant_.empty()) return 0;
  const std::string value = LUO_TRY(fdinfo_field(fd, constant_));
  return siphash13(HashKey{}, std::as_bytes(std::span{value}));  // no secret: it is only compared
}

Result<HandlerData> AnonymousHandler::preserve(const FileInfo& file, SessionId, Token) {
  return HandlerData{LUO_TRY(digest(file.fd)), 0, 0, 0};
}

Result<> AnonymousHandler::retrieve(const KeptFile& file) {
  if (const Link link = link_of(file.fd); link.view() != link_)
    return fail(ESTALE, "fd {} is {}, preserved was {}", file.fd, link.view(), link_);
  if (LUO_TRY(digest(file.fd)) != file.data[0])
    return fail(ESTALE, "fd {} is another {}: its {} differs", file.fd, link_, constant_);
  return {};
}

}  // namespace luo::handlers
