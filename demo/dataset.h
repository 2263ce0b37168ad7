// The data that the demonstration keeps in a cache: what every key's value must be follows from the
// key's number and from how often its owner has set it, so that no copy is needed to check it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace demo {

struct DataSet {
  std::uint32_t keys;
  std::size_t value_bytes;  ///< of every value

  /// "demo:00000042". redis-benchmark's keys ("key:…", "counter:…") never collide with these.
  static void key_name(std::uint32_t key, std::string& out);
  /// The value of `key` after `version` overwrites; arbitrary bytes, CR and LF among them.
  void value(std::uint32_t key, std::uint32_t version, std::string& out) const;
};

}  // namespace demo
