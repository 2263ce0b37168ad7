#include "inspect/report.h"

#include <algorithm>

#include "base/text.h"
#include "inspect/parts.h"
#include "kho/pages_format.h"
#include "kho/vmalloc_format.h"
#include "luo/engine.h"

namespace luo::inspect {
namespace {

using kho::Snapshot;

Json section(std::string_view name, std::uint64_t at, std::uint64_t bytes) {
  return {{"name", name}, {"at", at}, {"bytes", bytes}};
}

Json sections_of(const kho::Geometry& g) {
  return {section("header", 0, sizeof(kho::Header)),
          section("control page", kho::kControlAt, kho::Arena::kControlBytes),
          section("undo log", kho::kLogAt, kho::kLogBytes),
          section("chunks with memory", g.backed_at, g.backed_bytes),
          section("chunk table", g.table_at, g.table_bytes),
          section("bitmaps", g.bitmap_at, g.bitmap_bytes),
          section("heap", g.heap_at, g.heap_bytes)};
}

Json image_of(const kho::ImageHeader& h) {
  Json features = Json::array();
  if ((h.features & kho::kImageControl) != 0) features.push_back("control page");
  const std::uint64_t segments_end = h.segments_at + h.segments * kho::segment_bytes_in(h.format);
  Json sums = {{"header", hex(h.checksum)},
               {"chunk_table", hex(h.table_sum)},
               {"bitmaps", hex(h.bitmaps_sum)},
               {"segment_table", hex(h.segments_sum)}};
  if (h.format == 1) sums["data"] = hex(h.data_sum);
  return {{"format", h.format},
          {"features", std::move(features)},
          {"feature_bits", hex(h.features)},
          {"file_bytes", h.file_bytes},
          {"data_bytes", h.file_bytes - h.data_at},
          {"segments", h.segments},
          {"checksums", std::move(sums)},
          {"sections",
           {section("header", 0, h.header_bytes), section("chunk table", h.table_at, h.table_bytes),
            section("bitmaps", h.bitmaps_at, h.bitmaps_bytes),
            section("segment table", h.segments_at, segments_end - h.segments_at),
            section("data", h.data_at, h.file_bytes - h.data_at)}}};
}

constexpr std::string_view kPages[] = {"normal pages", "huge pages", "hugetlb pages"};

Json header_of(const kho::HeaderConstants& c) {
  return {{"format", c.format},
          {"byte_order", c.byte_order == kho::kByteOrder ? "this machine's" : "other"},
          {"page_bytes", c.page_bytes},
          {"backed_by", kPages[std::min<std::size_t>(static_cast<std::size_t>(c.pages), std::size(kPages) - 1)]},
          {"chunk_bytes", c.chunk_bytes},
          {"record_bytes", c.record_bytes},
          {"header_bytes", c.header_bytes},
          {"checksum", hex(c.checksum)}};
}

std::string tag_of(const kho::Layout& layout) {
  return printable_name({layout.tag, strnlen(layout.tag, sizeof layout.tag)});
}

bool is_luod(const kho::Layout& layout) { return layout == Engine::kLayout; }

/// What a root leads to, as far as that can be told from here.
std::string_view kind_of_root(const Snapshot& arena, unsigned slot, kho::Ref<std::uint64_t> root) {
  if (is_luod(arena.constants().layout) && slot == 0) return "the engine's records";
  if (is_luod(arena.constants().layout) && slot == 1) return "the daemon's records";
  if (is_luod(arena.constants().layout) && slot == 2) return "the kernel medium's records";
  const auto magic = arena.get(root);
  if (magic && *magic == kho::pages::kMagic) return "preserved pages";
  if (magic && *magic == kho::preserved::kRootMagic) return "preserved memory";
  return "the application's";
}

}  // namespace

std::string hex(std::uint64_t number) { return fmt::format("{:#x}", number); }

Result<Report> report(Fd file, bool all) {
  const Snapshot arena = LUO_TRY(Snapshot::read(std::move(file)));
  Report out;
  out.faults.assign(arena.faults().begin(), arena.faults().end());
  const kho::HeaderConstants& constants = arena.constants();
  const bool image = arena.kind() == Snapshot::Kind::Image;
  Json& json = out.json;
  json["kind"] = image ? "image" : "arena";
  json["sound"] = true;  // looked at again at the end; here, so that it stands in front
  json["faults"] = Json::array();
  json["layout"] = {{"tag", tag_of(constants.layout)}, {"version", constants.layout.version}};
  json["sealed"] = arena.sealed();
  json["memory_bytes"] = arena.memory().raw();
  json["header"] = header_of(constants);
  if (image) json["image"] = image_of(*arena.image());
  if (!image) {
    const auto open = arena.open_transaction();
    json["undo_log"] = {{"open_transaction", open.bytes != 0}, {"entries", open.entries}, {"bytes", open.bytes}};
  }
  json["geometry"] = {{"file_bytes", constants.geometry.file_bytes},
                      {"chunks", constants.geometry.chunks},
                      {"sections", sections_of(constants.geometry)}};
  if (image && all) {
    Json segments = Json::array();
    for (const kho::Segment& segment : arena.segments()) {
      segments.push_back({{"at", segment.at}, {"bytes", segment.bytes}});
      if (arena.image()->format != 1) segments.back()["checksum"] = hex(segment.sum);
    }
    json["segments"] = std::move(segments);
  }
  if (!arena.chunks().empty() || arena.faults().empty()) {
    json["heap"] = heap_of(arena, all);
    Json roots = Json::array(), pages = Json::array(), memory = Json::array();
    for (unsigned slot = 0; slot < kho::Arena::kRoots; ++slot) {
      const kho::Ref<std::uint64_t> root{arena.state().roots[slot]};
      if (!root) continue;
      const std::string_view kind = kind_of_root(arena, slot, root);
      roots.push_back(
          {{"slot", slot}, {"at", root.at}, {"block_bytes", arena.block_bytes(root.addr())}, {"what", kind}});
      if (kind == "preserved pages") {
        pages.push_back({{"root", slot}});
        pages.back().update(pages_of(arena, kho::Ref<kho::PagesRecord>{root.at}, all, out.faults));
      } else if (kind == "preserved memory") {
        memory.push_back({{"root", slot}});
        memory.back().update(memory_of(arena, kho::Ref<kho::PreservedRoot>{root.at}, out.faults));
      }
    }
    json["roots"] = std::move(roots);
    if (!pages.empty()) json["preserved_pages"] = std::move(pages);
    if (!memory.empty()) json["preserved_memory"] = std::move(memory);
    if (is_luod(constants.layout)) {
      json["engine"] = engine_of(arena, out.faults);
      json["daemon"] = daemon_of(arena, out.faults);
      if (const kho::Ref<medium::KernelRoot> kernel{arena.state().roots[2]})
        json["kernel"] = kernel_of(arena, kernel, out.faults);
    }
  }
  json["sound"] = out.faults.empty();
  for (const Error& fault : out.faults) json["faults"].push_back(printable_name(to_string(fault)));
  return out;
}

}  // namespace luo::inspect
