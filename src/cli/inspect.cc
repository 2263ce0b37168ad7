// luoctl inspect: looks into a file, or asks luod for an image of its arena and looks into that.
#include <fcntl.h>

#include "cli/commands.h"
#include "cli/render_inspect.h"
#include "inspect/kho.h"

namespace luo::cli {
namespace {

struct Source {
  Fd file;
  std::string name;
};

/// What someone who sees a fault should do.
std::string_view advice(const Options& options, const inspect::Json& report) {
  if (options.file.empty()) return "luod made this image just now: report it, with luoctl status and luod's log";
  if (report.at("kind") == "image")
    return "an image is never repaired: make it again from its arena, or take another copy";
  return "if its program is running, it was in the middle of a change: stop it, or look again; else see\n"
         "  \"When it is damaged\" in docs/image-format.md";
}

Outcome show(const Options& options, Source source, Style style) {
  auto made = inspect::report(std::move(source.file), options.all);
  if (!made) {
    const std::string_view hint =
        "it takes the file of an arena (a memfd, or a copy of one) or an image, of this version's formats";
    Outcome out = failure(options, kFailed, std::move(made).error().during("inspect " + source.name));
    if (!options.json) out.err += fmt::format("  {}\n", hint);
    return out;
  }
  Outcome out;
  inspect::Json& json = made->json;
  json["source"] = printable(options.file.empty() ? "the running luod" : options.file);
  if (!made->faults.empty()) {
    const Error first = Error{made->faults.front()}.during("inspect " + source.name);
    out = failure(options, kFailed, first);
    json["ok"] = false;
    json["error"] = printable(to_string(first));
    if (made->faults.size() > 1)
      out.err += fmt::format("  and {} more, shown as \"damaged\"\n", made->faults.size() - 1);
    out.err += fmt::format("  {}\n", advice(options, json));
  }
  if (options.json) {
    out.err.clear();  // it is all in the report
    out.out = json.dump(2, ' ', false, inspect::Json::error_handler_t::replace) + "\n";
  } else {
    out.out = options.dts ? inspect::to_dts(json) : render_inspect(json, style);
  }
  return out;
}

Outcome show_kho(const Options& options, Style style) {
  const bool copy = !options.kho_folder.empty();
  const std::string folder = copy ? options.kho_folder : inspect::kKhoFolder;
  std::optional<inspect::CoreMemory> core;
  const auto memory = [&]() -> Result<const inspect::PhysicalMemory*> {
    if (copy) return nullptr;
    core.emplace(LUO_TRY(inspect::CoreMemory::open()));
    return &*core;
  };
  auto made = inspect::kho_report(folder, memory());
  if (!made) {
    Outcome out = failure(options, kFailed, std::move(made).error().during("inspect --kho"));
    if (!options.json && !copy)
      out.err +=
          "  it takes root, a kernel started with kho=on, and debugfs: mount -t debugfs debugfs /sys/kernel/debug\n";
    return out;
  }
  Outcome out;
  made->json["source"] = printable(folder);
  if (!made->faults.empty()) {
    const Error first = Error{made->faults.front()}.during("inspect --kho");
    out = failure(options, kFailed, first);
    made->json["ok"] = false;
    made->json["error"] = printable(to_string(first));
  }
  if (options.json) {
    out.err.clear();  // it is all in the report
    out.out = made->json.dump(2, ' ', false, inspect::Json::error_handler_t::replace) + "\n";
  } else {
    out.out = render_kho(made->json, style);
  }
  return out;
}

}  // namespace

Outcome inspect(const Options& options, Style style) {
  if (options.kho) return show_kho(options, style);
  if (!options.file.empty()) {
    Fd file = Fd::adopt(open(options.file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.valid()) return failure(options, kFailed, sys_fail("inspect: open '{}'", options.file).error());
    return show(options, {std::move(file), "'" + options.file + "'"}, style);
  }
  auto reached = reach(options);
  if (!reached) return failure(options, kUnreachable, reached.error());
  wire::Builder request;
  request.start(wire::Command::Inspect, 0, 0).arg(wire::PlainArg{});
  Progress progress{"ask luod"};
  auto answer = ask(reached->connection, request, progress);
  if (!answer) return failure(options, answer.error());
  auto good = client::verdict(*std::move(answer));
  if (!good) return failure(options, kFailed, good.error());
  if (good->fds.size() != 1) return failure(options, kFailed, Error{EBADMSG, "luod's answer brought no image"});
  return show(options, {std::move(good->fds[0]), "the running luod"}, style);
}

}  // namespace luo::cli
