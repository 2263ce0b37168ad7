// What was asked on luoctl's command line.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace luo::cli {

enum class Action {
  Status,
  List,
  Show,
  UpdateLuod,
  UpdateService,
  UpdateSimulated,
  UpdateKernel,
  Stop,
  Drop,
  Files,
  Run,
  Inspect,
};

/// luoctl's exit statuses; documented in its help and manual page.
enum ExitStatus : int { kDone = 0, kFailed = 1, kUsage = 2, kUnreachable = 3 };

/// Of UpdateKernel.
struct KernelOptions {
  std::string kernel;                       ///< path of the image
  std::string initrd;                       ///< path; empty: none
  std::optional<std::string> command_line;  ///< none: the running kernel's
  bool dry_run = false;
  bool drop_unclaimed = false;
};

struct Options {
  Action action = Action::Status;
  std::string socket;                      ///< empty: the rule of wire/paths.h
  std::string private_folder;              ///< of a luod of one's own, started if none runs there; empty: none
  std::string private_handlers = "memfd";  ///< of that luod: by default what the kernel's LUO preserves
  bool json = false;
  std::string session;  ///< Show, Drop, UpdateService
  std::string handler;  ///< Files; empty: all
  std::string image;    ///< UpdateLuod; empty: the luod beside luoctl
  KernelOptions kernel;
  std::uint32_t timeout_ms = 0;      ///< 0: luod's default
  std::string log;                   ///< UpdateService; empty: chosen by open_log()
  std::string file;                  ///< Inspect; empty: the running luod's state
  bool all = false;                  ///< Inspect: each chunk, segment and range too
  bool dts = false;                  ///< Inspect: as device-tree source
  bool kho = false;                  ///< Inspect: what the kernel hands over, instead of a file
  std::string kho_folder;            ///< Inspect with kho: a copy of its folder in debugfs; empty: that itself
  std::vector<std::string> command;  ///< UpdateService, Run: what follows "--"
};

struct Parsed {
  std::optional<Options> options;  ///< none: print `text` and leave with `status`
  ExitStatus status = kDone;       ///< kDone: help was asked for, goes to stdout
  std::string text;
};

/// Single-threaded; `argv` as main gets it.
Parsed parse_options(int argc, const char* const* argv);

}  // namespace luo::cli
