// What luod can say before an update of the kernel: what would stop it, and what would be lost.
#include <fcntl.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "daemon/server.h"
#include "daemon/systemd.h"

namespace luo::daemon {
namespace {

bool can_cross_late(const FileView& file) {
  struct stat st {};
  return file.fd >= 0 && fstat(file.fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0;
}

std::string first_of(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < 5; ++i) text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > 5 ? text + fmt::format(" and {} more", names.size() - 5) : text;
}

}  // namespace

std::uint64_t Server::available_memory() {
  std::ifstream meminfo{"/proc/meminfo"};
  for (std::string word; meminfo >> word;) {
    if (word != "MemAvailable:") continue;
    std::uint64_t kib = 0;
    meminfo >> kib;
    return kib * 1024;
  }
  return 0;
}

std::uint64_t Server::holes_to_fill(const FileView& file) {
  struct stat st {};
  if (!can_cross_late(file) || fstat(file.fd, &st) != 0) return 0;
  const auto size = static_cast<std::uint64_t>(st.st_size);
  const auto has = static_cast<std::uint64_t>(st.st_blocks) * 512;
  return size > has ? size - has : 0;
}

bool Server::crosses_kernels(const SessionView& session) const {
  if (session.state < SessionState::Incoming) return true;
  return session.hold != Hold::Off && session.state != SessionState::Finished;  // stays incoming until it is claimed
}

std::vector<Server::Check> Server::preflight_checks(std::uint32_t flags) const {
  std::vector<Check> checks;
  const auto add = [&](std::string name, std::string level, std::string text, std::string fix = "") {
    checks.push_back({std::move(name), std::move(level), std::move(text), std::move(fix)});
  };
  if (!kernel_) {
    add("medium", "error", "this luod carries nothing over a kexec: it runs with the medium exec",
        "start luod with --medium kernel, on Linux 6.19 or later with kho=on liveupdate=on");
    return checks;
  }
  const medium::Kernel::Counts counts = kernel_->counts();
  add("medium", "ok",
      fmt::format("the kernel's LUO has {} files in {} sessions of luod's", counts.files, counts.sessions));

  bool running = false;
  state_->for_each_update([&](const UpdateRec& update) {
    if (update.over()) return;
    running = true;
    add("other-update", "error",
        fmt::format("update {} of '{}' is under way", update.id, printable_name(wire::text_in(update.name))),
        "wait for it, or call it off");
  });
  if (!running) add("other-update", "ok", "no other update is under way");

  std::vector<std::string> unclaimed, busy, staying;
  std::uint64_t holes = 0, late = 0;
  engine_->for_each_session([&](const SessionView& session) {
    if (!crosses_kernels(session)) {
      if (session.state == SessionState::Incoming) unclaimed.push_back(printable_name(session.name));
      else if (session.state == SessionState::Retrieved) busy.push_back(printable_name(session.name));
      return;
    }
    std::uint64_t transient = 0;
    engine_->for_each_file(session.id, [&](const FileView& file) {
      if (handlers::CarriedHandler::place_of(file.data).part != 0) return;
      if (!can_cross_late(file)) {
        ++transient;
        return;
      }
      ++late;
      holes += holes_to_fill(file);
    });
    if (transient != 0) staying.push_back(fmt::format("{} ({} files)", printable_name(session.name), transient));
  });
  const bool drop = (flags & wire::kUpdateDropUnclaimed) != 0;
  if (unclaimed.empty()) add("unclaimed", "ok", "no session that came in is left unclaimed");
  else
    add("unclaimed", drop ? "warning" : "error",
        fmt::format("{} sessions came in, and nobody has claimed them; the next kernel will not have them: {}",
                    unclaimed.size(), first_of(unclaimed)),
        drop ? "" : "let their owners retrieve and finish them, give them up (luoctl drop), or say --drop-unclaimed");
  if (!busy.empty())
    add("unfinished", "warning",
        fmt::format(
            "{} sessions were retrieved and not yet finished or renewed; the next kernel will not have them: {}",
            busy.size(), first_of(busy)),
        "let their owners finish and preserve anew, or renew them");
  if (staying.empty()) add("will-not-cross", "ok", "every file can be carried");
  else
    add("will-not-cross", "warning",
        fmt::format("files that only an exec can carry are lost, as their sessions allow: {}", first_of(staying)));
  const std::uint64_t memory = available_memory();
  if (holes == 0) add("holes", "ok", "nothing that is still to be given to the kernel has holes to be filled");
  else if (memory != 0 && holes > memory)
    // Not an error yet: their owners may make them smaller, or have images take their place (ADR 0019), when told.
    add("holes", "warning",
        fmt::format(
            "{} files are still to be given to the kernel, which would fill {} MiB of holes; {} MiB are available",
            late, holes >> 20, memory >> 20),
        "nothing, if their owners make them smaller when the update comes, as luo-cache does; else it is called off "
        "then");
  else
    add("holes", "ok", fmt::format("{} MiB of holes will be filled, {} MiB are available", holes >> 20, memory >> 20));
  if (sd_booted() > 0) {
    if (const std::string unit = unit_that_shutdown_stops(); unit.empty())
      add("shutdown", "ok", "luod outlives the shutdown that systemd makes of a kexec");
    else
      add("shutdown", "error",
          fmt::format("systemd would stop {}, in which luod runs, before the kexec, and all would be lost", unit),
          "run luod as a service with the drop-in dist/luod-kernel.conf");
  }
  if (counts.lacking != 0)
    add("incomplete", "warning",
        fmt::format("{} files could not be put back into the kernel; it is tried again", counts.lacking));
  return checks;
}

std::string Server::preflight_json() const {
  using nlohmann::json;
  json checks = json::array();
  bool ok = true;
  for (Check& check : preflight_checks(0)) {
    ok = ok && check.level != "error";
    checks.push_back({{"name", check.name}, {"level", check.level}, {"text", check.text}, {"fix", check.fix}});
  }
  json staying = json::array(), unclaimed = json::array();
  std::uint64_t sessions = 0, files = 0;
  engine_->for_each_session([&](const SessionView& session) {
    if (!crosses_kernels(session)) {
      if (session.state == SessionState::Incoming) unclaimed.push_back(printable_name(session.name));
      return;
    }
    ++sessions;
    engine_->for_each_file(session.id, [&](const FileView& file) {
      if (!kernel_ || (handlers::CarriedHandler::place_of(file.data).part == 0 && !can_cross_late(file)))
        staying.push_back({{"session", printable_name(session.name)},
                           {"token", file.token.raw()},
                           {"handler", file.handler},
                           {"why", file.fd < 0 ? "it was lost on its way from the kernel before"
                                   : kernel_   ? "the kernel has no handler for files of this kind"
                                               : "this luod runs with the medium exec"}});
      else ++files;
    });
  });
  return json{{"ok", ok},
              {"medium", kernel_ ? "kernel" : "exec"},
              {"checks", std::move(checks)},
              {"sessions", sessions},
              {"files", files},
              {"will_not_cross", std::move(staying)},
              {"unclaimed", std::move(unclaimed)}}
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace luo::daemon
