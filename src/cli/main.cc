// luoctl: asks luod, and orders updates.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "cli/commands.h"

namespace {

bool wants_colours() {
  const char* no_color = getenv("NO_COLOR");
  const char* term = getenv("TERM");
  return isatty(STDOUT_FILENO) == 1 && (no_color == nullptr || *no_color == '\0') &&
         (term == nullptr || std::string_view{term} != "dumb");
}

}  // namespace

int main(int argc, char** argv) {
  using namespace luo::cli;
  const Parsed parsed = parse_options(argc, argv);
  Outcome outcome;
  if (parsed.options) outcome = run(*parsed.options, Style{wants_colours()});
  else (parsed.status == kDone ? outcome.out : outcome.err) = parsed.text, outcome.status = parsed.status;
  std::fputs(outcome.err.c_str(), stderr);
  std::fputs(outcome.out.c_str(), stdout);
  if (std::fflush(stdout) != 0) {
    std::perror("luoctl: write to stdout");
    return outcome.status == kDone ? kFailed : outcome.status;
  }
  return outcome.status;
}
