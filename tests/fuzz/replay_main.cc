// The main of a fuzz target that is built without libFuzzer: replays a corpus, then tries a fixed number of
// inputs made from it by a seeded generator. So every build runs each target a little, always the same way.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;

constexpr std::size_t kLongest = 4096;

Input read_file(const std::filesystem::path& path) {
  std::ifstream file{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{file}, {}};
}

class Mutator {
 public:
  Mutator(std::vector<Input> seeds, std::uint64_t seed) : seeds_{std::move(seeds)}, random_{seed} {
    if (seeds_.empty()) seeds_.push_back({});
  }

  Input next() {
    Input input = seeds_[below(seeds_.size())];
    for (std::uint64_t edits = 1 + below(8); edits > 0; --edits) edit(input);
    if (input.size() > kLongest) input.resize(kLongest);
    // Half of what comes out goes back in, so that edits add up.
    if (seeds_.size() < 512 && below(2) == 0) seeds_.push_back(input);
    return input;
  }

 private:
  std::size_t below(std::size_t n) { return random_() % n; }
  std::uint8_t byte() {
    constexpr std::uint8_t kTelling[] = {0,   1,   2,    3,    4,   8,   16,  32,   64,   127,
                                         128, 255, '\r', '\n', '$', '*', '"', '\'', '\\', ' '};
    return below(2) == 0 ? kTelling[below(std::size(kTelling))] : static_cast<std::uint8_t>(random_());
  }
  void edit(Input& input) {
    const auto at = [&] { return input.begin() + static_cast<std::ptrdiff_t>(below(input.size() + 1)); };
    switch (below(5)) {
      case 0:
        if (!input.empty()) input[below(input.size())] ^= static_cast<std::uint8_t>(1U << below(8));
        break;
      case 1:
        if (!input.empty()) input[below(input.size())] = byte();
        break;
      case 2: {
        Input fresh(1 + below(16));
        std::ranges::generate(fresh, [this] { return byte(); });
        input.insert(at(), fresh.begin(), fresh.end());
        break;
      }
      case 3: {
        auto first = at(), last = at();
        if (first > last) std::swap(first, last);
        input.erase(first, last);
        break;
      }
      default: {
        const Input other = seeds_[below(seeds_.size())];
        const std::size_t from = below(other.size() + 1), size = below(other.size() - from + 1);
        input.insert(at(), other.begin() + static_cast<std::ptrdiff_t>(from),
                     other.begin() + static_cast<std::ptrdiff_t>(from + size));
      }
    }
  }

  std::vector<Input> seeds_;
  std::mt19937_64 random_;
};

int run(const Input& input) {
  // Memory of exactly that size, so that a sanitizer sees the first byte too many.
  std::uint8_t* const copy = new std::uint8_t[input.size()];
  std::ranges::copy(input, copy);
  const int result = LLVMFuzzerTestOneInput(copy, input.size());
  delete[] copy;
  return result;
}

}  // namespace

/// NAME RUNS SEED [FILE | DIRECTORY]...
int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s RUNS SEED [FILE | DIRECTORY]...\n", argv[0]);
    return 2;
  }
  const unsigned long runs = std::strtoul(argv[1], nullptr, 10);
  const unsigned long seed = std::strtoul(argv[2], nullptr, 10);
  std::vector<std::filesystem::path> files;
  for (int i = 3; i < argc; ++i) {
    std::error_code none;
    if (!std::filesystem::is_directory(argv[i], none)) {
      if (std::filesystem::exists(argv[i], none)) files.emplace_back(argv[i]);
      continue;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator{argv[i]})
      if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::ranges::sort(files);  // the order in a directory is nobody's choice
  std::vector<Input> seeds;
  for (const auto& file : files) {
    seeds.push_back(read_file(file));
    run(seeds.back());
  }
  const std::size_t replayed = seeds.size();
  Mutator mutator{std::move(seeds), seed};
  // On a crash the last input lies in this file, to be run again with `NAME 0 1 FILE`.
  const char* keep = std::getenv("LUO_FUZZ_KEEP");
  const int kept = keep != nullptr ? open(keep, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
  for (unsigned long i = 0; i < runs; ++i) {
    const Input input = mutator.next();
    if (kept >= 0 && (ftruncate(kept, 0) != 0 || pwrite(kept, input.data(), input.size(), 0) < 0)) return 2;
    run(input);
  }
  std::printf("%zu inputs replayed, %lu made with seed %lu\n", replayed, runs, seed);
  return 0;
}
