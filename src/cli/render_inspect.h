// The report of luoctl inspect as text for people. A pure function.
#pragma once
#include "cli/render.h"
#include "inspect/report.h"

namespace luo::cli {

/// `report`: what inspect::report() made.
std::string render_inspect(const inspect::Json& report, Style style);

/// `report`: what inspect::kho_report() made, with its source.
std::string render_kho(const inspect::Json& report, Style style);

}  // namespace luo::cli
