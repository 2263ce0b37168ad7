// The last failure of a thread as a sentence, and what to do about it. Any thread.
#pragma once
#include <string>
#include <string_view>

#include "base/error.h"

namespace luo::client {

enum class Operation {
  Open,
  Create,
  Retrieve,
  Name,
  Finish,
  Renew,
  Hold,
  Option,
  Drop,
  Event,
  State,
  Preserve,
  Unpreserve,
  RetrieveFd,
  Tokens,
  Update,
  TakeOver,
  Tcp
};

/// What someone who meets `code` in `operation` should know or try; empty if the errno's text says it all.
std::string_view hint(Operation operation, int code) noexcept;

/// Makes "goal: cause: errno's text [NAME]; hint" (the hint where luod has not said it) this thread's sentence and
/// returns -error.code.
int report(Operation operation, std::string_view goal, const Error& error) noexcept;

/// This thread's sentence; never null.
const char* last_failure() noexcept;

}  // namespace luo::client
