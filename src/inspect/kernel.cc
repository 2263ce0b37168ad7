// The kernel medium's records: which kernel sessions there are, and whether they have what they should.
#include "inspect/parts.h"
#include "medium/kernel_records.h"

namespace luo::inspect {

Json kernel_of(const kho::Snapshot& arena, kho::Ref<medium::KernelRoot> at, std::vector<Error>& faults) {
  Json out = Json::object();
  const auto root = arena.get(at);
  if (!root) {
    faults.push_back(Error{root.error()}.during("kernel medium"));
    return out;
  }
  std::uint64_t chunks = 0, sessions = 0, files = 0, in_kernel = 0;
  Json parts = Json::array();
  for (kho::Ref<medium::PartsChunk> ref = root->chunks; ref; ++chunks) {
    const auto chunk = arena.get(ref);
    if (!chunk || chunks > arena.state().blocks) {
      faults.push_back({EBADMSG, fmt::format("kernel sessions: no list of them at {:#x}", ref.at)});
      break;
    }
    for (std::uint64_t i = 0; i < medium::kPartsPerChunk; ++i) {
      const medium::PartRecord& part = chunk->part[i];
      if (part.group == 0) continue;
      ++sessions;
      files += part.files;
      in_kernel += part.in_kernel;
      parts.push_back({{"part", chunks * medium::kPartsPerChunk + i + 1},
                       {"serial", part.serial},
                       {"fd", part.fd},
                       {"files", part.files},
                       {"in_kernel", part.in_kernel},
                       {"in_work", part.marked != 0},
                       {"full", part.full != 0},
                       {"late", part.late != 0}});
      if (part.group == medium::kShared) parts.back()["session"] = "several";
      else parts.back()["session"] = part.group;
    }
    ref = chunk->next;
  }
  out["sessions"] = sessions;
  out["files"] = files;
  out["in_kernel"] = in_kernel;
  out["in_work"] = root->some_marked != 0;
  out["arriving"] = root->arriving != 0;
  out["parts"] = std::move(parts);
  return out;
}

}  // namespace luo::inspect
