#include "cli/kernel_checks.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/strong.h"
#include "cli/running_kernel.h"
#include "cli/table.h"
#include "kexec/command_line.h"
#include "sys/memfd.h"

namespace luo::cli {
namespace {

using kexec::Verdict;
using nlohmann::json;

constexpr std::size_t kMostLines = 10;

const char* name_of(Level level) {
  switch (level) {
    case Level::Ok: return "ok";
    case Level::Warning: return "warning";
    case Level::Error: return "error";
  }
  return "error";
}

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::Yes: return "yes";
    case Verdict::No: return "no";
    case Verdict::NotKnown: return "not known";
  }
  return "not known";
}

/// Of x86's boot_params (Documentation/arch/x86/zero-page.rst): how large the initrd was.
bool booted_with_initrd() {
  constexpr off_t kRamdiskSize = 0x21c;
  const Fd file = Fd::adopt(open("/sys/kernel/boot_params/data", O_RDONLY | O_CLOEXEC));
  std::uint32_t size = 0;
  return file.valid() && pread(file.raw(), &size, sizeof size, kRamdiskSize) == sizeof size && size != 0;
}

/// What is available, but for what only movable pages may use: with KHO that is much.
std::uint64_t room_of_kernel() {
  const Fd file = Fd::adopt(open("/proc/meminfo", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return 0;
  const auto text = read_all(file, 64_KiB);
  const auto kib = [&text](std::string_view name) -> std::uint64_t {
    const auto at = text->find(name);
    return at == text->npos ? 0 : std::strtoull(text->c_str() + at + name.size(), nullptr, 10);
  };
  if (!text) return 0;
  const std::uint64_t available = kib("\nMemAvailable:"), movable = kib("\nCmaFree:");
  if (available == 0) return 0;
  return available > movable ? (available - movable) << 10 : 1;
}

Check image_check(const Chosen& chosen, const kexec::Target& target, const Host& host) {
  const std::string what = fmt::format("{}, {}", kexec::name_of(target.format), render_bytes(target.size));
  if (target.machine != host.machine)
    return {"image", Level::Error, fmt::format("{} for {}; this machine is {}", what, target.machine, host.machine),
            "name a kernel for this machine with --kernel"};
  if (!target.unloadable.empty())
    return {"image", Level::Error,
            fmt::format("kexec_file_load(2) does not take '{}': {}", chosen.kernel, target.unloadable),
            "name another kernel with --kernel"};
  return {"image", Level::Ok, what, {}};
}

Check version_check(const kexec::Target& target) {
  switch (target.has_luo_by_age) {
    case Verdict::Yes: return {"version", Level::Ok, "Linux " + target.release, {}};
    case Verdict::No:
      return {"version", Level::Error, fmt::format("Linux {} has no LUO: 6.19 is the first that has", target.release),
              "take a newer kernel"};
    case Verdict::NotKnown: break;
  }
  return {"version", Level::Warning, "the image does not tell its version; LUO takes 6.19 or newer", {}};
}

Check page_size_check(const kexec::Target& target, const Host& host) {
  if (target.page_size == host.page_size) return {"page-size", Level::Ok, fmt::format("{} bytes", host.page_size), {}};
  if (target.page_size == 0)
    return {
        "page-size", Level::Warning, fmt::format("the image does not tell; here it is {} bytes", host.page_size), {}};
  return {"page-size", Level::Error,
          fmt::format("{} bytes; here it is {}, and memory crosses page by page", target.page_size, host.page_size),
          "take a kernel with the same page size"};
}

Check configuration_check(const kexec::Target& target) {
  const auto& configuration = target.configuration;
  if (configuration.found.empty()) {
    const std::string why = target.unread.empty() ? "the image holds no configuration"
                                                  : "the image cannot be looked into: " + target.unread;
    return {"configuration", Level::Warning,
            fmt::format("not known whether it has KEXEC_HANDOVER and LIVEUPDATE: {}, and none lies beside it", why),
            fmt::format("put its .config beside it, as config-{} or KERNEL.config",
                        target.release.empty() ? "VERSION" : target.release)};
  }
  std::string off;
  const auto need = [&off](Verdict has, const char* option) {
    if (has == Verdict::No) off += fmt::format("{}CONFIG_{}", off.empty() ? "" : ", ", option);
  };
  need(configuration.handover, "KEXEC_HANDOVER");
  need(configuration.live_update, "LIVEUPDATE");
  if (configuration.live_update != Verdict::No) need(configuration.memfds, "LIVEUPDATE_MEMFD");
  const std::string where = fmt::format(" ({})", configuration.found);
  if (!off.empty())
    return {"configuration", Level::Error, fmt::format("without {}{}", off, where),
            "take a kernel that has it: nothing would be there after the reboot"};
  return {"configuration", Level::Ok, "has KEXEC_HANDOVER and LIVEUPDATE" + where, {}};
}

Check command_line_check(const Chosen& chosen, const kexec::Target& target) {
  const std::string_view line = chosen.command_line;
  const std::string whose = chosen.is_running_line ? "that of the running kernel (--cmdline sets another)" : "as given";
  if (target.longest_line != 0 && line.size() > target.longest_line)
    return {"command-line", Level::Error,
            fmt::format("{} bytes; this kernel takes {}", line.size(), target.longest_line),
            "give a shorter --cmdline"};
  const auto turned = kexec::turned_on(line, target.configuration, target.machine);
  std::string missing, off;
  if (turned.handover != Verdict::Yes) {
    missing = " kho=on";
    off = turned.handover == Verdict::No ? "KHO" : "KHO (unless it is on by default there, which is not known)";
  }
  if (turned.live_update != Verdict::Yes) {
    missing += " liveupdate=on";
    off += off.empty() ? "LUO" : " and LUO";
  }
  if (missing.empty()) return {"command-line", Level::Ok, fmt::format("{}: {}", whose, line), {}};
  return {"command-line", Level::Error, fmt::format("{}, does not turn on {}: {}", whose, off, line),
          chosen.is_running_line ? fmt::format("--cmdline \"$(cat /proc/cmdline){}\"", missing)
                                 : fmt::format("add to --cmdline:{}", missing)};
}

Check initrd_check(const Chosen& chosen, const Host& host) {
  if (chosen.has_initrd) return {"initrd", Level::Ok, render_bytes(chosen.initrd_size), {}};
  if (!host.has_initrd) return {"initrd", Level::Ok, "none", {}};
  return {"initrd", Level::Warning, "none, and the running kernel was started with one", "name one with --initrd"};
}

/// The kernel reads both files whole, and then copies them to pages that it keeps until the reboot. It does not ask
/// whether there are that many: it has processes killed for them, and not only this one.
Check memory_check(const Chosen& chosen, const kexec::Target& target, const Host& host) {
  const std::uint64_t needed = 2 * (target.size + chosen.initrd_size);
  if (host.room == 0)
    return {"memory", Level::Warning, fmt::format("not known whether {} are free", render_bytes(needed)), {}};
  const std::string text =
      fmt::format("loading takes {} of {} that can be had", render_bytes(needed), render_bytes(host.room));
  if (needed <= host.room) return {"memory", Level::Ok, text, {}};
  return {"memory", Level::Error, text, "take a smaller initrd, or free memory (kho_scratch= areas do not count)"};
}

std::string list_of(const auto& names) { return fmt::format("{}", fmt::join(names, ", ")); }

/// A kernel takes nothing of a state whose format it does not know, and may not even start.
Check formats_check(const kexec::Target& target, const Host& host) {
  if (target.formats.empty())
    return {"formats", Level::Warning, "not known which formats of state it reads: the image does not tell", {}};
  const std::string reads = "reads " + list_of(target.formats);
  if (!host.formats)
    return {"formats",
            Level::Ok,
            fmt::format("{}; not known what the running kernel writes: {}", reads, to_string(host.formats.error())),
            {}};
  if (const auto missing = kexec::not_read(*host.formats, target.formats); !missing.empty())
    return {"formats", Level::Error,
            fmt::format("{}; the running kernel writes {}, and nothing of that could be taken back after the reboot",
                        reads, list_of(missing)),
            "take a kernel that reads what this one writes, or update by one in between"};
  return {"formats", Level::Ok, reads + ", as the running kernel writes them", {}};
}

Level level_of(const std::string& name) {
  return name == "ok" ? Level::Ok : name == "warning" ? Level::Warning : Level::Error;  // what is unknown stops
}

}  // namespace

Host this_host() {
  utsname names{};
  uname(&names);
  return {names.machine,        static_cast<std::uint32_t>(sysconf(_SC_PAGESIZE)),
          booted_with_initrd(), false,
          room_of_kernel(),     running_formats()};
}

std::vector<Check> check_kernel(const Chosen& chosen, const kexec::Target& target, const Host& host) {
  std::vector<Check> checks{image_check(chosen, target, host), version_check(target),
                            configuration_check(target),       formats_check(target, host),
                            page_size_check(target, host),     command_line_check(chosen, target),
                            initrd_check(chosen, host),        memory_check(chosen, target, host)};
  if (host.loaded)
    checks.push_back({"loaded",
                      Level::Warning,
                      "a kernel is loaded for kexec already: it will be replaced, and none is if this fails",
                      {}});
  return checks;
}

Result<std::vector<Check>> checks_of(const json& preflight, bool drop_unclaimed) {
  try {
    std::vector<Check> checks;
    for (const json& one : preflight.at("checks")) {
      Check check{one.at("name").get<std::string>(), level_of(one.at("level").get<std::string>()),
                  one.at("text").get<std::string>(), one.value("fix", "")};
      if (drop_unclaimed && check.name == "unclaimed" && check.level == Level::Error)
        check.level = Level::Warning, check.fix = "they will be lost (--drop-unclaimed)";
      checks.push_back(std::move(check));
    }
    const bool told = std::ranges::any_of(checks, [](const Check& check) { return check.level == Level::Error; });
    const bool has_unclaimed =
        std::ranges::any_of(checks, [](const Check& check) { return check.name == "unclaimed"; });
    if (preflight.at("medium").get<std::string>() != "kernel" &&
        std::ranges::none_of(checks, [](const Check& check) { return check.name == "medium"; }))
      checks.push_back({"medium", Level::Error, "this luod keeps everything in its own process: a kexec would end it",
                        "start luod with --medium kernel, on a kernel with LUO (6.19 or newer, kho=on liveupdate=on)"});
    else if (!preflight.at("ok").get<bool>() && !told && !(drop_unclaimed && has_unclaimed))
      checks.push_back({"luod", Level::Error, "luod says that it is not ready", "see luod's log"});
    return checks;
  } catch (const json::exception& e) {
    return fail(EBADMSG, "luod's preflight is not what this luoctl understands ({}); use the luoctl of its version",
                e.what());
  }
}

std::string render_checks(const std::vector<Check>& checks, Style style) {
  std::size_t width = 0;
  for (const Check& check : checks) width = std::max(width, check.name.size());
  std::string out;
  for (const Check& check : checks) {
    const Colour colour = check.level == Level::Ok        ? Colour::Green
                          : check.level == Level::Warning ? Colour::Yellow
                                                          : Colour::Red;
    const std::string level = fmt::format("{:<7}", name_of(check.level));
    out += fmt::format("  {}  {:<{}}  {}\n", coloured(level, colour, style), printable(check.name), width,
                       printable(check.text));
    if (!check.fix.empty() && check.level != Level::Ok)
      out += fmt::format("  {:7}  {:<{}}  -> {}\n", "", "", width, printable(check.fix));
  }
  return out;
}

std::string render_left_behind(const json& preflight) {
  std::string out;
  const auto list = [&](const char* key, auto&& describe) {
    const auto found = preflight.find(key);
    if (found == preflight.end() || !found->is_array()) return;
    for (std::size_t i = 0; i < std::min(found->size(), kMostLines); ++i) out += describe(found->at(i));
    if (found->size() > kMostLines)
      out += fmt::format("  and {} more (luoctl --json update kernel ...)\n", found->size() - kMostLines);
  };
  try {
    list("will_not_cross", [](const json& file) {
      return fmt::format("  will not cross: token {} of session '{}' ({}): {}\n", file.at("token").get<std::uint64_t>(),
                         printable(file.at("session").get<std::string>()), printable(file.value("handler", "?")),
                         printable(file.value("why", "")));
    });
    list("unclaimed", [](const json& name) {
      return fmt::format("  nobody has claimed session '{}'\n", printable(name.get<std::string>()));
    });
  } catch (const json::exception&) {
    out += "  (and more that this luoctl does not understand: see --json)\n";
  }
  return out;
}

json to_json(const std::vector<Check>& checks) {
  json out = json::array();
  for (const Check& check : checks)
    out.push_back({{"name", check.name}, {"level", name_of(check.level)}, {"text", check.text}, {"fix", check.fix}});
  return out;
}

json to_json(const kexec::Target& target) {
  const auto& configuration = target.configuration;
  return {{"format", kexec::name_of(target.format)},
          {"machine", target.machine},
          {"release", target.release},
          {"bytes", target.size},
          {"page_size", target.page_size},
          {"formats", target.formats},
          {"configuration",
           {{"found", configuration.found},
            {"KEXEC_HANDOVER", name_of(configuration.handover)},
            {"KEXEC_HANDOVER_ENABLE_DEFAULT", name_of(configuration.handover_by_default)},
            {"LIVEUPDATE", name_of(configuration.live_update)},
            {"LIVEUPDATE_MEMFD", name_of(configuration.memfds)}}}};
}

std::size_t errors_in(const std::vector<Check>& checks) {
  return static_cast<std::size_t>(
      std::ranges::count_if(checks, [](const Check& check) { return check.level == Level::Error; }));
}

}  // namespace luo::cli
