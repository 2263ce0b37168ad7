// The report of luoctl inspect as text.
#include "cli/render_inspect.h"

#include "cli/table.h"

namespace luo::cli {
namespace {

using inspect::Json;

std::string text_of(const Json& object, const char* key) { return printable(object.at(key).get<std::string>()); }
std::uint64_t number_of(const Json& object, const char* key) { return object.at(key).get<std::uint64_t>(); }
std::string digits_of(const Json& object, const char* key) { return std::to_string(number_of(object, key)); }
std::string bytes_of(const Json& object, const char* key) { return render_bytes(number_of(object, key)); }
std::string at_of(const Json& object, const char* key = "at") { return fmt::format("{:#x}", number_of(object, key)); }

std::string count(std::uint64_t n, std::string_view one) { return fmt::format("{} {}{}", n, one, n == 1 ? "" : "s"); }

std::string joined(const Json& list) {
  std::string out;
  for (const Json& item : list) {
    if (!out.empty()) out += ", ";
    out += item.is_string() ? printable(item.get<std::string>()) : item.dump();
  }
  return out.empty() ? "none" : out;
}

/// Text that is indented by how deep it stands.
class Tree {
 public:
  explicit Tree(Style style) : style_{style} {}
  void line(unsigned depth, std::string_view text, Colour colour = Colour::Plain) {
    out_ += fmt::format("{:{}}{}\n", "", depth * 2, coloured(text, colour, style_));
  }
  void field(std::string_view label, std::string_view value) { out_ += fmt::format("  {:<13}{}\n", label, value); }
  void part(std::string_view title) { out_ += '\n' + coloured(title, Colour::Bold, style_) + '\n'; }
  void table(const Table& table) { out_ += table.text(style_); }
  std::string take() { return std::move(out_); }

 private:
  Style style_;
  std::string out_;
};

void show_front(Tree& tree, const Json& report) {
  const bool image = report.at("kind") == "image";
  const bool sound = report.at("sound").get<bool>();
  std::string first = image ? fmt::format("image of an arena, format {}", number_of(report.at("image"), "format"))
                            : fmt::format("arena, format {}", number_of(report.at("header"), "format"));
  if (report.at("sealed").get<bool>()) first += ", sealed";
  tree.line(0, first + (sound ? ": sound" : ": damaged"), sound ? Colour::Bold : Colour::Red);
  const Json& layout = report.at("layout");
  tree.field("layout", fmt::format("{} version {}", text_of(layout, "tag"), number_of(layout, "version")));
  if (text_of(report.at("header"), "backed_by") != "normal pages")
    tree.field("memory", text_of(report.at("header"), "backed_by"));
  const Json& geometry = report.at("geometry");
  if (image) {
    const Json& of = report.at("image");
    tree.field("file", fmt::format("{}, of these {} data in {}", bytes_of(of, "file_bytes"), bytes_of(of, "data_bytes"),
                                   count(number_of(of, "segments"), "segment")));
    tree.field("features", fmt::format("{} ({})", joined(of.at("features")), text_of(of, "feature_bits")));
    tree.field("of an arena", bytes_of(geometry, "file_bytes") + " of addresses");
  } else {
    tree.field("file", fmt::format("{}, of these {} have memory", bytes_of(geometry, "file_bytes"),
                                   bytes_of(report, "memory_bytes")));
    const Json& log = report.at("undo_log");
    tree.field("transaction", log.at("open_transaction").get<bool>()
                                  ? fmt::format("one was open, of {} in {} of the log; shown is what was before it",
                                                count(number_of(log, "entries"), "change"), bytes_of(log, "bytes"))
                                  : std::string{"none open"});
  }
  for (const Json& fault : report.at("faults"))
    tree.line(1, "damaged: " + printable(fault.get<std::string>()), Colour::Red);
}

void show_sections(Tree& tree, std::string_view title, const Json& sections) {
  tree.part(title);
  Table table{{"SECTION", "AT", "SIZE"}, "lrr"};
  for (const Json& section : sections)
    table.add({{text_of(section, "name")}, {at_of(section)}, {bytes_of(section, "bytes")}});
  tree.table(table);
}

void show_heap(Tree& tree, const Json& heap) {
  tree.part("heap");
  tree.field("used", fmt::format("{} in {}", bytes_of(heap, "used_bytes"), count(number_of(heap, "blocks"), "block")));
  tree.field("free", fmt::format("{} of the {} that have memory", bytes_of(heap, "free_bytes"),
                                 bytes_of(heap, "memory_bytes")));
  tree.field("chunks",
             fmt::format("{} of {}, {} of them free; at most {}", number_of(heap, "chunks"),
                         bytes_of(heap, "chunk_bytes"), number_of(heap, "free_chunks"), bytes_of(heap, "max_bytes")));
  Table table{{"BLOCKS OF", "CHUNKS", "USED", "FREE", "USED BYTES", "FREE BYTES"}, "rrrrrr"};
  for (const Json& size : heap.at("small"))
    table.add({{digits_of(size, "block_bytes")},
               {digits_of(size, "chunks")},
               {digits_of(size, "used_blocks")},
               {digits_of(size, "free_blocks")},
               {bytes_of(size, "used_bytes")},
               {bytes_of(size, "free_bytes")}});
  for (const Json& size : heap.at("large")) {
    const std::uint64_t bytes = number_of(size, "block_bytes"), blocks = number_of(size, "blocks");
    table.add({{bytes_of(size, "block_bytes")},
               {std::to_string(bytes / number_of(heap, "chunk_bytes") * blocks)},
               {std::to_string(blocks)},
               {"-"},
               {render_bytes(bytes * blocks)},
               {"-"}});
  }
  for (const Json& size : heap.at("free")) {
    const std::uint64_t bytes = number_of(size, "block_bytes"), blocks = number_of(size, "blocks");
    table.add({{bytes_of(size, "block_bytes")},
               {std::to_string(bytes / number_of(heap, "chunk_bytes") * blocks)},
               {"-"},
               {std::to_string(blocks)},
               {"-"},
               {render_bytes(bytes * blocks)}});
  }
  tree.table(table);
}

void show_chunks(Tree& tree, const Json& chunks) {
  tree.part("chunks");
  Table table{{"AT", "SIZE", "STATE", "USED"}, "rrll"};
  for (const Json& chunk : chunks) {
    std::string used = "-";
    if (chunk.contains("used_blocks"))
      used = fmt::format("{} of {} blocks of {} bytes", number_of(chunk, "used_blocks"), number_of(chunk, "blocks"),
                         number_of(chunk, "block_bytes"));
    if (chunk.contains("used_bytes")) used = bytes_of(chunk, "used_bytes");
    table.add({{at_of(chunk)}, {bytes_of(chunk, "bytes")}, {text_of(chunk, "state")}, {used}});
  }
  tree.table(table);
}

void show_segments(Tree& tree, const Json& segments) {
  tree.part("segments");
  Table table{{"AT", "SIZE", "CHECKSUM"}, "rrl"};
  for (const Json& segment : segments)
    table.add({{at_of(segment)},
               {bytes_of(segment, "bytes")},
               {segment.contains("checksum") ? text_of(segment, "checksum") : "-"}});
  tree.table(table);
}

void show_roots(Tree& tree, const Json& roots) {
  tree.part("roots");
  Table table{{"SLOT", "AT", "BLOCK", "WHAT"}, "rrrl"};
  for (const Json& root : roots)
    table.add({{digits_of(root, "slot")}, {at_of(root)}, {digits_of(root, "block_bytes")}, {text_of(root, "what")}});
  tree.table(table);
}

void show_pages(Tree& tree, const Json& pages) {
  tree.part(fmt::format("preserved pages of root {}", number_of(pages, "root")));
  if (!pages.contains("pages")) return;  // the faults say why
  tree.field("pages", fmt::format("{} in {}", number_of(pages, "pages"), count(number_of(pages, "ranges"), "range")));
  tree.field("kept in",
             fmt::format("{}, {}", count(number_of(pages, "blocks"), "block"), bytes_of(pages, "block_bytes")));
  const Json& list = pages.at("range_list");
  for (const Json& range : list) {
    const std::uint64_t first = number_of(range, "first"), n = number_of(range, "pages");
    tree.line(2, n == 1 ? fmt::format("{:#x}", first) : fmt::format("{:#x} - {:#x} ({})", first, first + n - 1, n));
  }
  if (list.size() < number_of(pages, "ranges"))
    tree.line(2, fmt::format("... and {} more (--all)", number_of(pages, "ranges") - list.size()));
}

void show_memory(Tree& tree, const Json& memory) {
  tree.part(fmt::format("preserved memory of root {}", number_of(memory, "root")));
  if (!memory.contains("epoch")) return;  // the faults say why
  tree.field("epoch", digits_of(memory, "epoch"));
  for (const Json& subtree : memory.at("subtrees")) {
    const std::uint64_t claimer = number_of(subtree, "claimer");
    const std::string name = subtree.contains("name") ? fmt::format(" '{}' with a blob of {}", text_of(subtree, "name"),
                                                                    bytes_of(subtree, "blob_bytes"))
                                                      : std::string{};
    tree.line(1, fmt::format("subtree {}{}: {}{}, {}", at_of(subtree), name, text_of(subtree, "side"),
                             claimer == 0 ? std::string{} : fmt::format(", claimed by {}", claimer),
                             count(subtree.at("items").size(), "item")));
    for (const Json& item : subtree.at("items"))
      tree.line(2,
                item.at("scattered").get<bool>()
                    ? fmt::format("{}: {} of {} blocks of {}, epoch {}", at_of(item), number_of(item, "blocks_there"),
                                  number_of(item, "blocks"), bytes_of(item, "block_bytes"), number_of(item, "epoch"))
                    : fmt::format("{}: {} at {}, epoch {}", at_of(item), bytes_of(item, "bytes"), at_of(item, "block"),
                                  number_of(item, "epoch")));
  }
}

std::string describe_file(const Json& file) {
  std::string out = fmt::format("token {}: {}, {}, fd {}, inode {} of device {}", number_of(file, "token"),
                                text_of(file, "handler"), text_of(file, "status"), file.at("fd").get<std::int64_t>(),
                                number_of(file, "inode"), number_of(file, "device"));
  if (const std::uint64_t charge = number_of(file, "charge_bytes"); charge != 0) out += ", " + render_bytes(charge);
  if (file.contains("after")) out += ", after token " + joined(file.at("after"));
  if (file.contains("error")) out += fmt::format(": {}", errno_text(file.at("error").get<int>()));
  return out;
}

void show_sessions(Tree& tree, const Json& engine, const char* side) {
  const Json& sessions = engine.at(side);
  tree.line(1, fmt::format("{}: {}", side, count(sessions.size(), "session")));
  for (const Json& session : sessions) {
    tree.line(
        2,
        fmt::format("session '{}': id {}, {}, {}, epoch {}", text_of(session, "name"), number_of(session, "id"),
                    text_of(session, "state"), count(session.at("files").size(), "file"), number_of(session, "epoch")),
        Colour::Bold);
    for (const Json& holder : session.at("holders"))
      tree.line(3, fmt::format("{}: {} by pid {}, uid {}, connection {}, pipe {}", text_of(holder, "role"),
                               text_of(holder, "holds"), holder.at("pid").get<std::int64_t>(), number_of(holder, "uid"),
                               number_of(holder, "connection"), number_of(holder, "pipe_inode")));
    if (session.contains("hold_for"))
      tree.line(3,
                fmt::format("held for {} {}", text_of(session, "hold_for"),
                            session.contains("held_for") ? text_of(session, "held_for") : digits_of(session, "uid")));
    if (session.contains("prepared_by_owner"))
      tree.line(3, fmt::format("{} by its owner", text_of(session, "prepared_by_owner")));
    for (const char* option : {"transient", "grow"})
      if (session.value(option, "refuse") != "refuse")
        tree.line(3, fmt::format("{}: {}", option, text_of(session, option)));
    for (const Json& file : session.at("files")) tree.line(3, describe_file(file));
  }
}

void show_engine(Tree& tree, const Json& engine) {
  tree.part("engine");
  if (!engine.contains("version")) return;  // the faults say why
  tree.field("records", fmt::format("version {}", number_of(engine, "version")));
  tree.field("generation", digits_of(engine, "generation"));
  tree.field("handlers", joined(engine.at("handlers")));
  Table tables{{"TABLE", "ENTRIES", "CAPACITY"}, "lrr"};
  for (const auto& [name, table] : engine.at("tables").items()) {
    std::string words = name;
    std::ranges::replace(words, '_', ' ');
    tables.add({{words}, {digits_of(table, "entries")}, {digits_of(table, "capacity")}});
  }
  tree.table(tables);
  for (const Json& flb : engine.at("flbs")) {
    tree.line(1, fmt::format("FLB {}, held by files of {}", text_of(flb, "name"), joined(flb.at("handlers"))));
    for (const char* side : {"outgoing", "incoming", "dropped"})
      if (const Json& of = flb.at(side); text_of(of, "state") != "none")
        tree.line(2, fmt::format("{}: {}, {}", side, text_of(of, "state"), count(number_of(of, "files"), "file")));
  }
  for (const char* side : {"outgoing", "incoming", "dropped"}) show_sessions(tree, engine, side);
}

void show_daemon(Tree& tree, const Json& daemon) {
  tree.part("daemon");
  if (daemon.contains("control") && daemon.at("control").contains("instance")) {
    const Json& control = daemon.at("control");
    tree.field("instance", text_of(control, "instance"));
    tree.field("processes", fmt::format("keeper {}, worker {}", control.at("keeper_pid").get<std::int64_t>(),
                                        control.at("worker_pid").get<std::int64_t>()));
    tree.field("started", fmt::format("{}, {}, {}", count(number_of(control, "worker_starts"), "worker"),
                                      count(number_of(control, "keeper_starts"), "keeper"),
                                      count(number_of(control, "luod_updates"), "update")));
    tree.field("socket", text_of(control, "socket"));
    tree.field("state in", text_of(control, "state_dir"));
    if (control.at("damaged").get<bool>()) tree.field("stopped", "no worker is started: it found the arena damaged");
  }
  if (!daemon.contains("connections")) return;
  tree.line(1, count(daemon.at("connections").size(), "connection"));
  for (const Json& peer : daemon.at("connections"))
    tree.line(
        2, fmt::format("connection {}: {}, pid {}, uid {}, fd {}", number_of(peer, "id"), text_of(peer, "program"),
                       peer.at("pid").get<std::int64_t>(), number_of(peer, "uid"), peer.at("fd").get<std::int64_t>()));
  if (!daemon.contains("grants")) return;
  tree.line(1, count(daemon.at("grants").size(), "grant"));
  for (const Json& grant : daemon.at("grants"))
    tree.line(2, fmt::format("connection {} may use session {} as {}", number_of(grant, "connection"),
                             number_of(grant, "session"), text_of(grant, "role")));
  tree.line(1, count(daemon.at("updates").size(), "update"));
  for (const Json& update : daemon.at("updates"))
    tree.line(2, fmt::format("update {}: of {}, {}, {}, {}", number_of(update, "id"), text_of(update, "kind"),
                             text_of(update, "phase"), count(number_of(update, "sessions"), "session"),
                             count(number_of(update, "files"), "file")));
}

void show_kernel(Tree& tree, const Json& kernel) {
  tree.part("kernel medium");
  if (!kernel.contains("parts")) return;
  tree.line(1,
            fmt::format("{}, {}, of which the kernel has {}{}", count(number_of(kernel, "sessions"), "kernel session"),
                        count(number_of(kernel, "files"), "file"), number_of(kernel, "in_kernel"),
                        kernel.at("arriving").get<bool>() ? "; arriving" : ""));
  for (const Json& part : kernel.at("parts")) {
    const Json& session = part.at("session");
    tree.line(2, fmt::format("part {}: session {}, fd {}, {}, in the kernel {}{}{}{}", number_of(part, "part"),
                             session.is_string() ? session.get<std::string>() : digits_of(part, "session"),
                             part.at("fd").get<std::int64_t>(), count(number_of(part, "files"), "file"),
                             number_of(part, "in_kernel"), part.at("full").get<bool>() ? ", full" : "",
                             part.at("late").get<bool>() ? ", for the update under way" : "",
                             part.at("in_work").get<bool>() ? ", in work" : ""));
  }
}

}  // namespace

std::string render_inspect(const Json& report, Style style) {
  Tree tree{style};
  show_front(tree, report);
  if (report.contains("image")) show_sections(tree, "in the image", report.at("image").at("sections"));
  show_sections(tree, "in the arena", report.at("geometry").at("sections"));
  if (report.contains("heap")) show_heap(tree, report.at("heap"));
  if (report.contains("roots")) show_roots(tree, report.at("roots"));
  if (report.contains("preserved_pages"))
    for (const Json& pages : report.at("preserved_pages")) show_pages(tree, pages);
  if (report.contains("preserved_memory"))
    for (const Json& memory : report.at("preserved_memory")) show_memory(tree, memory);
  if (report.contains("engine")) show_engine(tree, report.at("engine"));
  if (report.contains("daemon")) show_daemon(tree, report.at("daemon"));
  if (report.contains("kernel")) show_kernel(tree, report.at("kernel"));
  if (report.contains("heap") && report.at("heap").contains("chunk_list"))
    show_chunks(tree, report.at("heap").at("chunk_list"));
  if (report.contains("segments")) show_segments(tree, report.at("segments"));
  return tree.take();
}

}  // namespace luo::cli
