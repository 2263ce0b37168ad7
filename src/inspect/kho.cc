#include "inspect/kho.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>

#include "base/text.h"
#include "inspect/parts.h"
#include "kho/kernel_tree.h"
#include "sys/memfd.h"

namespace luo::inspect {
namespace {

namespace fs = std::filesystem;

constexpr Bytes kMostOfABlob = 16_MiB;
constexpr std::size_t kMostBlobs = 4096;  // the kernel's tree, of one page, has room for some tens
constexpr std::string_view kLuoFormat = "luo-v5", kLuoFormats = "luo-v";

struct LuoBlob {  // struct luo_ser
  char format[8];
  std::uint64_t number, sessions, flbs;
};

constexpr std::size_t kReleaseAt = 4, kCountAt = 69, kKexecBytes = 73;  // struct kho_kexec_metadata, packed
constexpr std::uint32_t kKexecVersion = 1;

template <class T>
T number_at(std::string_view blob, std::size_t at) {
  T value;
  std::memcpy(&value, blob.data() + at, sizeof value);
  return value;
}

std::string_view until_zero(std::string_view text) { return text.substr(0, text.find('\0')); }

Result<std::string> content(const fs::path& path, Bytes most = kMostOfABlob) {
  const Fd file = Fd::adopt(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return sys_fail("open {}", path.string());
  return LUO_TRY_DURING("read " + path.string(), read_all(file, most));
}

class Side {
 public:
  Side(fs::path folder, bool incoming, std::vector<Error>& faults)
      : folder_{std::move(folder)}, incoming_{incoming}, faults_{faults} {}

  Json report(const Result<const PhysicalMemory*>& memory, bool after_kexec) {
    Json out = tree(after_kexec);
    Json subtrees = Json::array();
    std::map<std::string, std::string> blobs = read_blobs();
    if (root_)
      for (const kho::kernel_tree::Subtree& of : root_->subtrees) {
        Json one = {{"name", printable_name(of.name)}, {"at", of.data}, {"bytes", of.size}};
        if (const auto blob = blobs.extract(of.name); !blob.empty()) describe(one, of.name, blob.mapped());
        subtrees.push_back(std::move(one));
      }
    for (const auto& [name, blob] : blobs) {
      if (root_) fault(EBADMSG, "sub_fdts/{}: it is not in the device tree", printable_name(name));
      Json one = {{"name", printable_name(name)}, {"bytes", blob.size()}};
      describe(one, name, blob);
      subtrees.push_back(std::move(one));
    }
    out["subtrees"] = std::move(subtrees);
    out["preserved"] = preserved(memory);
    if (!incoming_) add_scratch(out);
    return out;
  }

 private:
  template <class... Args>
  void fault(int code, fmt::format_string<Args...> text, Args&&... args) {
    fault(Error{code, fmt::format(text, std::forward<Args>(args)...)});
  }
  void fault(Error error) { faults_.push_back(std::move(error).during(folder_.filename().string())); }

  Json tree(bool after_kexec) {
    const auto not_shown = [this](std::string why) {
      why_no_tree_ = std::move(why);
      return Json{{"tree", {{"shown", false}, {"why", why_no_tree_}}}};
    };
    auto shown = content(folder_ / "fdt", Bytes{kho::kernel_tree::kMaxBytes});
    if (!shown && shown.error().code == ENOENT)
      return not_shown(after_kexec
                           ? "this kernel does not show the device tree of its own state, as it came from a kexec"
                           : "there is no file fdt");
    if (!shown) {
      fault(shown.error());
      return not_shown(to_string(shown.error()));
    }
    auto root = kho::kernel_tree::read(std::as_bytes(std::span{*shown}));
    if (!root) {
      fault(root.error());
      return not_shown(to_string(root.error()));
    }
    root_ = *std::move(root);
    return {{"tree",
             {{"shown", true},
              {"format", root_->compatible},
              {"bytes", root_->bytes},
              {"shown_bytes", shown->size()},
              {"map_at", root_->map}}}};
  }

  std::map<std::string, std::string> read_blobs() {
    std::map<std::string, std::string> blobs;
    std::error_code error;
    fs::directory_iterator at{folder_ / "sub_fdts", error}, end;
    for (; !error && at != end; at.increment(error)) {
      if (blobs.size() == kMostBlobs) {
        fault(EBADMSG, "sub_fdts: more than {} files", kMostBlobs);
        break;
      }
      if (auto blob = content(at->path())) blobs.emplace(at->path().filename().string(), *std::move(blob));
      else fault(std::move(blob).error());
    }
    if (error && error != std::errc::no_such_file_or_directory) fault(error.value(), "sub_fdts");
    return blobs;
  }

  void describe(Json& one, std::string_view name, std::string_view blob) {
    if (blob.size() != one.at("bytes").get<std::uint64_t>())
      fault(EBADMSG, "{}: {} bytes are shown, it has {}", printable_name(name), blob.size(), one.at("bytes").dump());
    if (name == "LUO") describe_luo(one, blob);
    if (name == "kexec-metadata") describe_kexec(one, blob);
  }

  void describe_luo(Json& one, std::string_view blob) {
    const std::string_view format = until_zero(blob.substr(0, sizeof LuoBlob::format));
    const bool some_format = format.starts_with(kLuoFormats);
    if (incoming_ && !some_format) {  // freed by the kernel once read, and its page is whoever's now
      one["given_back"] = true;
      return;
    }
    if (format != kLuoFormat)
      return fault(some_format ? EPROTO : EBADMSG, "LUO: its format is '{}', known here is {}", printable_name(format),
                   kLuoFormat);
    if (blob.size() < sizeof(LuoBlob)) return fault(EBADMSG, "LUO: it has {} bytes", blob.size());
    const auto luo = number_at<LuoBlob>(blob, 0);
    one["luo"] = {{"format", format}, {"number", luo.number}, {"sessions_at", luo.sessions}, {"flbs_at", luo.flbs}};
  }

  void describe_kexec(Json& one, std::string_view blob) {
    if (blob.size() < sizeof kKexecVersion) return fault(EBADMSG, "kexec-metadata: it has {} bytes", blob.size());
    const auto version = number_at<std::uint32_t>(blob, 0);
    if (version != kKexecVersion || blob.size() != kKexecBytes)
      return fault(EPROTO, "kexec-metadata: version {} of {} bytes, known here is {} of {}", version, blob.size(),
                   kKexecVersion, kKexecBytes);
    one["kexec"] = {{"release", printable_name(until_zero(blob.substr(kReleaseAt, kCountAt - kReleaseAt)))},
                    {"count", number_at<std::uint32_t>(blob, kCountAt)}};
  }

  Json preserved(const Result<const PhysicalMemory*>& memory) {
    const auto unknown = [](std::string why) { return Json{{"known", false}, {"why", std::move(why)}}; };
    if (incoming_) return unknown("the kernel gives the map of it up when it has read it");
    if (!root_) return unknown(why_no_tree_);
    if (!memory) return unknown(to_string(memory.error()));
    if (*memory == nullptr) return unknown("the map of it lies in the memory of the machine that this is a copy from");
    const auto counted = count_preserved(**memory, root_->map);
    if (!counted) {
      fault(counted.error());
      return unknown(to_string(counted.error()));
    }
    return {{"known", true}, {"bytes", counted->bytes}, {"blocks", counted->blocks}, {"map_bytes", counted->map_bytes}};
  }

  /// A number for each area, in hexadecimal, one a line.
  std::optional<std::vector<std::uint64_t>> numbers(const char* name) {
    const auto text = content(folder_ / name, 64_KiB);
    if (!text) {
      if (text.error().code != ENOENT) fault(text.error());
      return std::nullopt;
    }
    std::vector<std::uint64_t> out;
    for (std::string_view left = *text; !left.empty();) {
      const std::string_view line = left.substr(0, left.find('\n'));
      left.remove_prefix(std::min(line.size() + 1, left.size()));
      std::uint64_t value = 0;
      const char* const end = line.data() + line.size();
      if (!line.starts_with("0x") || std::from_chars(line.data() + 2, end, value, 16).ptr != end || line.size() < 3) {
        fault(EBADMSG, "{}: '{}' is no number", name, printable_name(line.substr(0, 40)));
        return std::nullopt;
      }
      out.push_back(value);
    }
    return out;
  }

  void add_scratch(Json& out) {
    const auto at = numbers("scratch_phys"), bytes = numbers("scratch_len");
    if (!at || !bytes) return;
    if (at->size() != bytes->size())
      return fault(EBADMSG, "scratch_phys has {} numbers, scratch_len {}", at->size(), bytes->size());
    Json areas = Json::array();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < at->size(); ++i) {
      if ((*bytes)[i] == 0) continue;
      if (__builtin_add_overflow(sum, (*bytes)[i], &sum)) return fault(EBADMSG, "scratch_len: more than there can be");
      areas.push_back({{"at", (*at)[i]}, {"bytes", (*bytes)[i]}});
    }
    out["scratch"] = std::move(areas);
    out["scratch_bytes"] = sum;
  }

  fs::path folder_;
  bool incoming_;
  std::vector<Error>& faults_;
  std::optional<kho::kernel_tree::Root> root_;
  std::string why_no_tree_;
};

Result<bool> is_folder(const std::string& path) {
  struct stat of;
  if (::stat(path.c_str(), &of) == 0) return S_ISDIR(of.st_mode);
  if (errno == ENOENT || errno == ENOTDIR) return false;
  return sys_fail("look for {}", path);
}

}  // namespace

Result<Report> kho_report(const std::string& folder, const Result<const PhysicalMemory*>& memory) {
  const bool in = LUO_TRY(is_folder(folder + "/in")), out = LUO_TRY(is_folder(folder + "/out"));
  if (!in && !out) return fail(ENOENT, "neither in nor out is in {}", folder);
  Report made;
  made.json = {{"kind", "kho"}, {"in", nullptr}, {"out", nullptr}};
  if (in) made.json["in"] = Side{folder + "/in", true, made.faults}.report(memory, true);
  if (out) made.json["out"] = Side{folder + "/out", false, made.faults}.report(memory, in);
  made.json["sound"] = made.faults.empty();
  Json& texts = made.json["faults"] = Json::array();
  for (const Error& error : made.faults) texts.push_back(to_string(error));
  return made;
}

}  // namespace luo::inspect
