// A set of preserved pages, read without believing it: what kho/pages_check.cc checks in an arena of one's own.
#include "inspect/parts.h"
#include "kho/pages_format.h"

namespace luo::inspect {
namespace {

using namespace kho::pages;

constexpr std::size_t kMostRanges = 64;  ///< that are listed, unless all are asked for

class Walk {
 public:
  Walk(const kho::Snapshot& arena, bool all) : arena_{arena}, all_{all} {}

  Result<> entry(Entry e, Span slot) {
    switch (tag_of(e)) {
      case Tag::None: return {};
      case Tag::Block: {
        const Span own{block_page(e), block_order(e)};
        if (own.order > kAllBits || base_of(own.base, own.order) != own.base || !slot.holds(own))
          return bad(slot, "a block of order {} at page {:#x}", own.order, own.base);
        add(own.base, std::uint64_t{1} << own.order);
        return {};
      }
      case Tag::Node: return node(ref_of(e).at, slot);
      case Tag::Sparse: return sparse(ref_of(e).at, slot);
      case Tag::Dense: return dense(ref_of(e).at, slot);
    }
    return bad(slot, "entry {:#x} is of no kind", e);
  }

  Json finish(std::uint64_t count) {
    Json list = Json::array();
    for (const auto& [first, pages] : ranges_) list.push_back({{"first", first}, {"pages", pages}});
    return {{"pages", count},
            {"ranges", number_},
            {"blocks", blocks_},
            {"block_bytes", bytes_},
            {"range_list", std::move(list)}};
  }
  std::uint64_t pages() const { return pages_; }

 private:
  template <class... Args>
  static std::unexpected<Error> bad(Span slot, fmt::format_string<Args...> text, Args&&... args) {
    return fail(EBADMSG, "preserved pages from {:#x} (2^{}): {}", slot.base, slot.order,
                fmt::format(text, std::forward<Args>(args)...));
  }

  /// Of a whole block: its first `words`, or all of it. More blocks than there are: some are used twice.
  Result<std::vector<std::uint64_t>> block(std::uint64_t at, std::size_t least, Span slot) {
    const std::size_t bytes = arena_.block_bytes(PhysAddr{at});
    if (bytes < least * 8 || ++blocks_ > arena_.state().blocks)
      return bad(slot, "no block of {} bytes at {:#x}, or one that is used twice", least * 8, at);
    bytes_ += bytes;
    std::vector<std::uint64_t> words(std::min<std::size_t>(bytes, kDenseBytes) / 8);
    LUO_TRY(arena_.read(PhysAddr{at}, std::as_writable_bytes(std::span{words})));
    return words;
  }

  Result<> node(std::uint64_t at, Span slot) {
    const std::vector<std::uint64_t> words = LUO_TRY(block(at, 3, slot));
    const unsigned level = node_level(words[0]);
    if (level == 0 || level > kTopLevel || (words[0] & kLowBits) != (kNodeMark | level))
      return bad(slot, "node at {:#x}: its head is {:#x}", at, words[0]);
    const Span own{head_base(words[0]), node_order(level)};
    if (base_of(own.base, own.order) != own.base || !slot.holds(own) || words.size() < 2 + ones(words[1]) ||
        static_cast<unsigned>(std::bit_width(words[1])) > fan_out(level))
      return bad(slot, "node at {:#x} does not fit there", at);
    std::size_t n = 2;
    for (unsigned digit = 0; digit < fan_out(level); ++digit)
      if ((words[1] >> digit & 1U) != 0) LUO_TRY(entry(words[n++], child_span(own.base, level, digit)));
    return {};
  }

  Result<> sparse(std::uint64_t at, Span slot) {
    const std::vector<std::uint64_t> words = LUO_TRY(block(at, 3, slot));
    const SparseView leaf{words.data()};
    const Span own{head_base(words[0]), kLeafBits};
    if ((words[0] & kLowBits & ~std::uint64_t{0xff}) != kLeafMark || !slot.holds(own) ||
        1 + ones(leaf.groups()) > words.size() || leaf.bytes() > words.size() * 8)
      return bad(slot, "leaf at {:#x} does not fit there", at);
    leaf.for_each([&](unsigned number, std::uint64_t word) { add_word(own.base + number * 64, word); });
    return {};
  }

  Result<> dense(std::uint64_t at, Span slot) {
    if (slot.order != kLeafBits) return bad(slot, "leaf at {:#x} does not say where it belongs", at);
    const std::vector<std::uint64_t> words = LUO_TRY(block(at, kLeafWords, slot));
    for (std::size_t n = 0; n < kLeafWords; ++n) add_word(slot.base + n * 64, words[n]);
    return {};
  }

  void add_word(std::uint64_t base, std::uint64_t word) {
    while (word != 0) {
      const auto first = static_cast<unsigned>(std::countr_zero(word));
      const auto count = static_cast<unsigned>(std::countr_one(word >> first));
      add(base + first, count);
      word &= count == 64 ? 0 : ~(((std::uint64_t{1} << count) - 1) << first);
    }
  }
  void add(std::uint64_t first, std::uint64_t count) {
    pages_ += count;
    if (number_ != 0 && end_ == first) {
      if (number_ == ranges_.size()) ranges_.back().second += count;
    } else {
      ++number_;
      if (all_ || ranges_.size() < kMostRanges) ranges_.emplace_back(first, count);
    }
    end_ = first + count;
  }

  const kho::Snapshot& arena_;
  bool all_;
  std::uint64_t pages_ = 0, blocks_ = 0, bytes_ = 0, number_ = 0, end_ = 0;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges_;
};

}  // namespace

Json pages_of(const kho::Snapshot& arena, kho::Ref<kho::PagesRecord> root, bool all, std::vector<Error>& faults) {
  const auto record = arena.get(root);
  if (!record) {
    faults.push_back(Error{record.error()}.during("preserved pages"));
    return Json::object();
  }
  Walk walk{arena, all};
  if (auto walked = walk.entry(record->root, kEverything); !walked) faults.push_back(std::move(walked).error());
  else if (walk.pages() != record->count)
    faults.push_back({EBADMSG, fmt::format("preserved pages: {} of them, the record at {:#x} counts {}", walk.pages(),
                                           root.at, record->count)});
  return walk.finish(record->count);
}

}  // namespace luo::inspect
