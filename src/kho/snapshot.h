// An arena's file, or an image of one, read to be looked at. Nothing is written; nothing of the file is mapped, so
// that whoever cuts it off meanwhile does no harm; and nothing in it is believed: what is not sound is a fault that
// names its place, and what does not depend on it can be looked at all the same.
//
// Of an arena whose owner died inside a transaction this shows what was committed, as Arena::open() would bring it
// back. The file of an arena that is in use changes while it is read: its faults mean nothing then. Look at an image
// of it (image.h), which its owner makes between two transactions.
#pragma once
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "kho/image_format.h"

namespace luo::kho {

class Snapshot {
 public:
  enum class Kind { Arena, Image };
  struct OpenTransaction {
    std::uint64_t entries = 0, bytes = 0;  ///< of the undo log; 0: none is open
  };

  /// Any file that can be read at offsets. Errors, if not even the header can be believed: EBADMSG, EPROTO, EINVAL
  /// (not a file), ENOMEM. What else is wrong is in faults(). Reads all metadata; of an image, also all data once.
  static Result<Snapshot> read(Fd file);

  Snapshot(Snapshot&&) noexcept;
  Snapshot& operator=(Snapshot&&) noexcept;
  ~Snapshot();

  Kind kind() const noexcept;
  /// What is wrong, in the order in which it was found; each with EBADMSG and its place, or what the kernel said.
  std::span<const Error> faults() const noexcept;

  const HeaderConstants& constants() const noexcept;
  const HeaderState& state() const noexcept;                 ///< not believed, unless chunks() is there
  const std::optional<ImageHeader>& image() const noexcept;  ///< of an image only
  std::span<const Segment> segments() const noexcept;        ///< of an image only; empty if they are not sound
  OpenTransaction open_transaction() const noexcept;         ///< of an arena only
  Bytes memory() const noexcept;                             ///< that the file has: less than its size if it has holes
  bool sealed() const noexcept;                              ///< nobody can change the file any more

  /// The chunk table up to the frontier, sound; else empty.
  std::span<const Chunk> chunks() const noexcept;
  /// Whether the chunk has memory: of an arena, in use or kept for later; of an image, that it will have.
  bool has_memory(std::uint32_t chunk) const noexcept;

  /// The size of the block that starts there; 0: none does.
  std::size_t block_bytes(PhysAddr at) const noexcept;
  /// The content of [at, at + to.size()). EBADMSG unless that lies in one allocated block.
  Result<> read(PhysAddr at, std::span<std::byte> to) const;
  template <class T>
  Result<T> get(Ref<T> ref) const {
    T value;
    if (auto got = read(ref.addr(), std::as_writable_bytes(std::span{&value, 1})); !got)
      return std::unexpected(std::move(got).error());
    return value;
  }
  /// The control page; none: the image was made without it, or is not sound there.
  std::optional<std::span<const std::byte, Arena::kControlBytes>> control() const noexcept;

 private:
  struct Impl;
  explicit Snapshot(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace luo::kho
