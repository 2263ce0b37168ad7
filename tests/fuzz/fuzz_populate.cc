// An image that somebody has written over: populate() refuses it or builds an arena that is sound, can be worked
// with, and makes an image again. The first byte chooses: bit 0, an image of format 1; bit 1, one with the
// control page; bit 2, all checksums are made right after the damage, as a forger would; bit 3, the file is cut
// off, at the place that the next two bytes name.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "damage.h"
#include "kho/image.h"
#include "kho/image_checksum.h"
#include "kho/image_format.h"
#include "kho/snapshot.h"

namespace {

using namespace luo;
using namespace luo::kho;
using luo::fuzz::Damage;
using luo::fuzz::found;

constexpr Layout kLayout{"fuzz", 1};

Arena filled() {
  Arena arena = *Arena::create({.name = "fuzz-populate", .layout = kLayout, .max_size = 1_MiB});
  Tx tx{arena};
  PhysAddr freed[3];
  for (PhysAddr& at : freed) at = *tx.allocate(5000);
  unsigned slot = 0;
  for (const std::size_t bytes : {16U, 24U, 100U, 100U, 4000U, 9000U, 30000U, 70000U, 150000U}) {
    const PhysAddr at = *tx.allocate(bytes);
    std::memset(arena.get(Ref<char>{at.raw()}), 0x5a, bytes);
    if (slot < Arena::kRoots) tx.set_root(slot++, at);
  }
  tx.commit();
  Tx give_back{arena};
  for (const PhysAddr at : freed) give_back.release(at);
  give_back.commit();
  return arena;
}

/// An image, mapped, to be damaged and put back.
class Image {
 public:
  Image(std::uint32_t format, bool control) {
    fd_ = Fd::adopt(memfd_create("fuzz-image", MFD_CLOEXEC));
    bytes_ = *write_image(filled(), fd_, {.format = format, .control = control});
    void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.raw(), 0);
    if (at == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(at);
    pristine_.assign(base_, base_ + bytes_);
    std::memcpy(&header_, base_, sizeof header_);
    // Of the data a little is enough: nothing looks into it.
    damage_.emplace(std::vector<std::span<std::byte>>{{base_, header_.data_at + 64}});
  }

  const Fd& fd() const { return fd_; }
  Damage& damage() { return *damage_; }
  bool metadata_as_it_was() const { return std::memcmp(base_, pristine_.data(), header_.data_at) == 0; }
  bool as_it_was() const { return std::memcmp(base_, pristine_.data(), bytes_) == 0; }

  void cut(std::uint64_t at) {
    if (ftruncate(fd_.raw(), static_cast<off_t>(at % bytes_)) != 0) std::abort();
  }
  void restore() {  // first the size: what was cut off cannot be touched
    if (ftruncate(fd_.raw(), static_cast<off_t>(bytes_)) != 0) std::abort();
    std::memcpy(base_, pristine_.data(), bytes_);
  }

  /// As far as the header says where things are; the data's stay as they are, they were damaged least.
  void make_sums_right() {
    ImageHeader h;
    std::memcpy(&h, base_, sizeof h);
    const auto sum = [&](std::uint64_t at, std::uint64_t bytes, std::uint64_t& to) {
      if (at <= bytes_ && bytes <= bytes_ - at) to = image_checksum(std::span{base_ + at, bytes});
    };
    sum(h.table_at, h.table_bytes, h.table_sum);
    sum(h.bitmaps_at, h.bitmaps_bytes, h.bitmaps_sum);
    if (h.segments <= bytes_) sum(h.segments_at, h.segments * segment_bytes_in(h.format), h.segments_sum);
    h.constants.checksum = checksum_of(h.constants);
    h.checksum = image_checksum(h);
    std::memcpy(base_, &h, sizeof h);
  }

 private:
  Fd fd_;
  std::uint64_t bytes_ = 0;
  std::byte* base_ = nullptr;
  std::vector<std::byte> pristine_;
  ImageHeader header_{};
  std::optional<Damage> damage_;
};

void work(Arena& arena) {
  if (const auto sound = arena.check(); !sound) found(to_string(sound.error()).c_str());
  for (const std::size_t bytes : {16U, 100U, 5000U, 9000U, 40000U, 300000U}) {
    Tx tx{arena};
    const auto block = tx.allocate(bytes);
    if (!block) continue;
    if (!arena.is_allocated(*block, bytes)) found("allocate() gave what is not allocated");
    std::memset(arena.get(Ref<char>{block->raw()}), 0x5a, bytes);
    tx.set_root(2, *block);
    if (bytes == 9000) continue;  // taken back
    tx.commit();
  }
  for (unsigned slot = 0; slot < Arena::kRoots; ++slot) {
    const std::uint64_t root = arena.root(slot).raw(), bytes = arena.usable_size(PhysAddr{root});
    if (bytes == 0) continue;  // none, or forged to lead into the middle of a block
    std::memset(arena.get(Ref<char>{root}), 1, bytes);
    Tx tx{arena};
    tx.release(PhysAddr{root});
    for (unsigned other = 0; other < Arena::kRoots; ++other)
      if (const std::uint64_t at = arena.root(other).raw(); at >= root && at - root < bytes)
        tx.set_root(other, PhysAddr{});
    tx.commit();
  }
  if (const auto sound = arena.check(); !sound) found(to_string(sound.error()).c_str());
  const auto again = seal(arena, "fuzz-again");
  if (!again) found(to_string(again.error()).c_str());
  if (const auto twice = populate(*again, kLayout, "fuzz-again"); !twice) found(to_string(twice.error()).c_str());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Image images[] = {{2, false}, {1, false}, {2, true}, {1, true}};
  if (size == 0) return 0;
  const unsigned how = data[0];
  Image& image = images[how & 3U];
  std::span<const std::uint8_t> input{data + 1, size - 1};
  bool cut = false;
  std::uint64_t length = 0;
  if ((how & 8U) != 0 && input.size() >= 2) {
    cut = true;
    length = (input[0] | input[1] << 8) * std::uint64_t{7};
    input = input.subspan(2);
  }
  image.damage().apply(input);
  const bool forged = (how & 4U) != 0;
  if (forged) image.make_sums_right();
  const bool metadata_sound = image.metadata_as_it_was(), sound = image.as_it_was();
  if (cut) image.cut(length);
  {
    const auto info = inspect_image(image.fd());
    auto arena = populate(image.fd(), kLayout, "fuzz-populated");
    if (!arena && (arena.error().code == 0 || arena.error().what.empty())) found("an error without code or text");
    if (arena && cut) found("a cut image was accepted");
    if (arena && !info) found("populate() accepts a header that inspect_image() does not");
    if (arena && !forged && !metadata_sound) found("damaged metadata was accepted");
    if (!arena && sound && !cut) found(to_string(arena.error()).c_str());
    const auto looked = Snapshot::read(Fd::adopt(fcntl(image.fd().raw(), F_DUPFD_CLOEXEC, 0)));
    if (arena && (!looked || !looked->faults().empty())) found("populate() accepts what Snapshot does not");
    if (looked && looked->faults().empty() && looked->constants().layout == kLayout && !arena)
      found("Snapshot accepts what populate() does not");
    if (looked)
      for (const std::uint64_t root : looked->state().roots) {
        std::vector<std::byte> block(looked->block_bytes(PhysAddr{root}));
        (void)looked->read(PhysAddr{root}, block);
      }
    if (arena) work(*arena);
  }
  image.restore();
  return 0;
}
