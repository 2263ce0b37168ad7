// The kernel medium: what luod keeps is also in the kernel's LUO, so that it crosses a kexec.
//
// It knows no session and no handler. It is given files of groups (a group is a session of luod's), and keeps each in a
// kernel session, a *part*: one for each group, more where a kernel session is full, shared ones where the kernel has
// no more sessions to give. The kernel cannot give back one file: what leaves a part whose other files stay makes the
// part be built again, O(files in it), at most kFilesPerPart.
//
// The engine's records are the truth, the kernel's a copy (kernel_records.h). preserve() and unpreserve() belong to the
// transaction that is open when they are called; settle(), afterwards, makes the copy agree with what became of it.
// Nothing is lost if that fails: the part is then not whole, and complete(), before a kexec, tries again.
//
// Linux 7.3 takes 630,000 files in a session and 510,000 sessions; 6.19 and 7.0 take 128 and some 740.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "medium/device.h"
#include "medium/kernel_records.h"

namespace luo::medium {

/// Where the kernel has a file. Fits into what a handler remembers of it.
struct Place {
  std::uint32_t part = 0;  ///< 0: nowhere
  std::uint64_t token = 0;
};

/// Calls `visit` with each file that the engine has in `group` (kShared: in any) and that has a place.
using Visit = std::function<void(const Place& place, int fd)>;
using Files = std::function<void(std::uint64_t group, const Visit& visit)>;

enum class When { Now, Late };

class Kernel {
 public:
  static constexpr unsigned kRootSlot = 2;
  /// More would make the kernel's linear lists, and a rebuild, slow.
  static constexpr std::uint64_t kFilesPerPart = 512;
  /// Parts that one transaction may begin: what reserve() keeps ready.
  static constexpr std::size_t kSpare = 16;
  static constexpr const char* kOwnName = "luod";

  /// Makes its records, or takes over what is there. Outlived by the arena and the device. Errors: EBADMSG (damaged),
  /// ENOMEM. Must not be called within a transaction.
  static Result<Kernel> open(kho::Arena& arena, Device& device, Files files);
  /// Whether the arena has such records: they were made for a kernel's LUO.
  static bool has_records(const kho::Arena& arena) noexcept;

  // --- within a transaction
  /// Takes the file in. The kernel's answer, explained: ENOENT (it has no handler for this kind), EBUSY (somebody else
  /// has preserved it), EFBIG, EOPNOTSUPP, ENOSPC, ENOMEM.
  Result<Place> preserve(std::uint64_t group, int fd, When when);
  /// The engine has it there no more. A place with part 0 is ignored.
  void unpreserve(const Place& place) noexcept;

  // --- at any time
  /// Makes what was touched agree. O(1) if nothing was; asks the kernel nothing if all went well.
  void settle();
  /// Whether the place is one: of a part that is there, not of one that was there before.
  bool holds(const Place& place) const noexcept;
  bool is_late(const Place& place) const noexcept;
  bool has_late() const noexcept { return !by_group_[1].empty(); }
  /// Every part whole; O(parts). Errors: the kernel's, with what could not be preserved.
  Result<> complete();
  struct Counts {
    std::uint64_t sessions, files;  ///< that the kernel has of us
    std::uint64_t lacking;          ///< files that are to be in it and are not
  };
  Counts counts() const noexcept;
  void append_fds(std::vector<int>& out) const;

  // --- between transactions
  /// That what a worker before has left is sound: each part's descriptor is the kernel session of its name, and each
  /// file of the engine's is where a part for it is. Asks the kernel for no change. Not between populating the arena
  /// from an image and arrive(). O(files). Errors: EBADMSG.
  Result<> check();
  /// Records for parts to come. Errors: ENOMEM.
  Result<> reserve();
  /// After a worker was killed: asks the kernel about parts that are marked, or whose counters are not what the engine
  /// says, then settles. Its descriptors that no record names are closed already, and the engine has swept. O(files).
  void recover();

  /// Called before a session's descriptor is closed: what was in it is free only when nobody else has copies of the
  /// descriptor any more, so it waits for those who may.
  void before_close(std::function<void()> wait) { before_close_ = std::move(wait); }

  // --- leaving (the parts are complete)
  /// Preserves the image in our own session, from now until withdraw_image(). What is written into it later crosses,
  /// too.
  Result<> offer_image(FdRef image);
  void withdraw_image() noexcept;
  /// The session that carries the image, -1: none; and the same for a worker that comes after the one that made it.
  int offered() const noexcept { return own_.raw(); }
  void take_offer_over(int session) noexcept { own_ = Fd::adopt(session); }

  // --- arriving: the records came out of an image, their descriptors are another system's
  /// Forgets the descriptors of the side before. First of all.
  void arrive() noexcept;
  /// The file that the kernel before had there. Errors: ENOENT, and those of the kernel's retrieve; sticky.
  Result<Fd> bring(const Place& place);
  /// Everything has been brought and committed: gives the kernel its sessions back. To be called again if `arriving`
  /// still.
  void end_arrival();
  bool arriving() const noexcept { return root_->arriving == kArriving; }
  /// Four words that travel with the image.
  std::span<std::uint64_t, 4> clock() const noexcept { return root_->clock; }
  /// The image that the kernel before has left; none: nothing came. `own` is our session, to be kept open until the
  /// image is not needed any more: its close loses the image. -1 in `own`: it is to be retrieved.
  struct Left {
    Fd session, image;
  };
  static Result<Left> find_image(Device& device);
  /// The same image once more, out of the session that came with it.
  static Result<Fd> image_in(Device& device, FdRef own);

 private:
  Kernel(kho::Arena& arena, Device& device, Files files);
  Result<> index();
  PartRecord* part(std::uint32_t number) const noexcept {
    return number != 0 && number <= parts_.size() ? parts_[number - 1] : nullptr;
  }
  std::vector<std::uint64_t> count_files() const;
  std::string name_of(std::uint64_t serial) const;
  void mark(std::uint32_t number) noexcept;
  std::vector<std::uint32_t>& parts_of(std::uint64_t group, bool late) { return by_group_[late ? 1 : 0][group]; }
  Result<std::uint32_t> part_with_room(std::uint64_t group, bool late);
  Result<std::uint32_t> begin_part(std::uint64_t group, bool late);
  Result<std::uint32_t> share_a_part();
  Result<> create(PartRecord& part);
  Result<Place> put(std::uint32_t number, int fd);
  Result<> fill(std::uint32_t number);
  Result<> make_whole(std::uint32_t number);
  void drop_given_up() noexcept;
  void drop_session(PartRecord& part) noexcept;
  void end_part(std::uint32_t number) noexcept;
  void save_files(std::uint32_t number) noexcept;

  kho::Arena* arena_;
  Device* device_;
  Files files_;
  KernelRoot* root_ = nullptr;
  std::vector<PartRecord*> parts_;  ///< by number - 1
  std::vector<std::uint32_t> free_;
  std::unordered_map<std::uint64_t, std::vector<std::uint32_t>> by_group_[2];  ///< [1]: late ones
  std::uint32_t shared_ = 0;                                                   ///< where there may be room
  std::vector<std::uint32_t> touched_;
  std::unordered_map<std::string, int> left_behind_;  ///< session descriptors by name, of a worker that was killed
  std::unordered_map<std::uint32_t, std::uint64_t> saved_;  ///< OpenTx::number() in which `files` was logged
  std::function<void()> before_close_;
  Fd own_;  ///< while an image is offered
};

}  // namespace luo::medium
