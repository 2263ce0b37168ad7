// Into the next kernel, and out of the one before.
#include <fcntl.h>

#include "base/log.h"
#include "medium/kernel.h"

namespace luo::medium {
namespace {

constexpr std::uint64_t kImageToken = 1;

/// Retrieved just now, or by a worker that was killed: then its descriptor is in the table already, and closing it
/// would finish the session.
Result<Fd> take_session(Device& device, const std::string& name, std::unordered_map<std::string, int>& left_behind) {
  auto fd = device.retrieve_session(name);
  if (fd || fd.error().code != EINVAL) return fd;
  if (left_behind.empty()) left_behind = session_descriptors();
  const auto there = left_behind.find(name);
  if (there == left_behind.end()) return fd;
  return Fd::adopt(there->second);
}

}  // namespace

Result<> Kernel::offer_image(FdRef image) {
  withdraw_image();
  auto own = device_->create_session(kOwnName);
  if (!own && own.error().code == EEXIST) {
    // Linux 7.3 does not survive a kexec after this refusal unless some session is made, or goes, after it (D1).
    (void)device_->create_session(name_of(root_->next_serial++));
    return fail(EEXIST, "make luod's own kernel session '{}': somebody else has made one of that name", kOwnName);
  }
  if (!own) return std::unexpected(std::move(own).error().during("make luod's own kernel session"));
  fcntl(own->raw(), F_SETFD, 0);
  LUO_TRY_DURING("preserve luod's own state", device_->preserve(*own, image.raw, kImageToken));
  own_ = std::move(*own);
  return {};
}

void Kernel::withdraw_image() noexcept { own_.close(); }

Result<Kernel::Left> Kernel::find_image(Device& device) {
  Left left;
  std::unordered_map<std::string, int> left_behind;
  auto session = take_session(device, kOwnName, left_behind);
  if (!session && session.error().code == ENOENT) return left;
  if (!session) return std::unexpected(std::move(session).error().during("take luod's own kernel session back"));
  fcntl(session->raw(), F_SETFD, 0);
  left.session = std::move(*session);
  auto image = image_in(device, left.session);
  if (!image) {
    (void)left.session.release();  // open, so that what is in it stays there
    return std::unexpected(std::move(image).error());
  }
  left.image = std::move(*image);
  return left;
}

Result<Fd> Kernel::image_in(Device& device, FdRef own) {
  return LUO_TRY_DURING("take luod's state back from the kernel", device.retrieve(own, kImageToken));
}

void Kernel::arrive() noexcept {
  root_->arriving = kArriving;
  for (PartRecord* record : parts_) record->fd = -1;
}

Result<Fd> Kernel::bring(const Place& place) {
  PartRecord* record = part(place.part);
  if (!holds(place)) return fail(ENOENT, "it was not given to the kernel before");
  if (record->fd == -1) {
    auto fd = take_session(*device_, name_of(record->serial), left_behind_);
    if (!fd) return std::unexpected(std::move(fd).error().during("take a kernel session back"));
    fcntl(fd->raw(), F_SETFD, 0);
    record->fd = fd->release();
  }
  return device_->retrieve(FdRef::borrow(record->fd), place.token);
}

void Kernel::end_arrival() {
  for (std::uint32_t number = 1; number <= parts_.size(); ++number) {
    PartRecord& record = *part(number);
    if (record.group == 0) continue;
    // Of sessions that nobody had claimed on the side before: nothing of it was brought, and only who takes it can give
    // its memory back.
    if (record.fd < 0 && record.in_kernel != 0)
      if (auto fd = take_session(*device_, name_of(record.serial), left_behind_); fd) record.fd = fd->release();
    if (record.fd >= 0)
      if (auto done = device_->finish(FdRef::borrow(record.fd)); !done)
        log(Level::Warning, "give kernel session {} back: {}", number, done.error());
    record.files = 0;
    end_part(number);
  }
  root_->some_marked = 0;
  root_->arriving = 0;
}

}  // namespace luo::medium
