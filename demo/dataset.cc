#include "dataset.h"

#include <fmt/format.h>

#include <cstring>
#include <iterator>

namespace demo {
namespace {

std::uint64_t split_mix(std::uint64_t& state) noexcept {
  state += 0x9E3779B97F4A7C15U;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

}  // namespace

void DataSet::key_name(std::uint32_t key, std::string& out) {
  out.clear();
  fmt::format_to(std::back_inserter(out), "demo:{:08}", key);
}

void DataSet::value(std::uint32_t key, std::uint32_t version, std::string& out) const {
  out.resize(value_bytes);
  std::uint64_t state = (std::uint64_t{key} << 32) | version;
  for (std::size_t at = 0; at < value_bytes; at += sizeof state) {
    const std::uint64_t word = split_mix(state);
    std::memcpy(out.data() + at, &word, std::min(sizeof word, value_bytes - at));
  }
}

}  // namespace demo
