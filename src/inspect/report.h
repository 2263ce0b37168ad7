// What is in an arena's file, or in an image of one, as one JSON object; and that as device-tree source. Understands
// luod's records; what other programs keep is opaque, of them it shows the memory.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace luo::inspect {

using Json = nlohmann::ordered_json;

struct Report {
  Json json;                  ///< with "sound", and the faults as text
  std::vector<Error> faults;  ///< what is damaged, each with its place; the rest is shown all the same
};

/// `all`: also each chunk and segment, and ranges of pages without a limit. Errors: not even the header can be
/// believed: EBADMSG, EPROTO, EINVAL (not a file), ENOMEM. Any thread.
Result<Report> report(Fd file, bool all);

/// Device-tree source, version 1, that dtc(1) accepts without a warning: objects are nodes, lists of objects nodes
/// with numbered children, numbers are 64 bits wide, what is true is a property without a value, what is false is left
/// out. "name" is "label" there, because a property "name" has to be the node's own.
std::string to_dts(const Json& report);

}  // namespace luo::inspect
