// A key-value store that outlives its process. Commands, one in each line of the input: set KEY VALUE, get KEY,
// del KEY, incr KEY, list; exec (replaces the program), crash (kills it inside a transaction).
//
// The input goes into the arena too. A command's effect and "this line is done" are one transaction: whatever kills
// us, each line that arrived there takes effect exactly once. README: src/kho/README.md
#include <kho/arena.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <csignal>
#include <optional>
#include <vector>

#include "lives.h"

using namespace luo;
using kho::Arena, kho::Ref, kho::Tx;

// What lies in the arena: fixed widths, no pointers. A change of it is a new version.
constexpr kho::Layout kLayout{"kho-kv", 1};
struct Node {  // key and value follow
  Ref<Node> next;
  std::uint32_t key_size, value_size;
  char* text() { return reinterpret_cast<char*>(this + 1); }
  std::string_view key() { return {text(), key_size}; }
  std::string_view value() { return {text() + key_size, value_size}; }
};
// Root 0.
struct Store {
  std::uint64_t done;  ///< bytes of the input that have taken effect
  std::uint64_t keys;
  Ref<Node> chains[1024];
};
// The control page: not in transactions, since what has been read cannot be unread.
struct Input {
  std::atomic<std::uint64_t> read;  ///< bytes of the input that have arrived, in a ring
  char ring[Arena::kControlBytes - 8];
};

class Kv {
 public:
  explicit Kv(Arena& a) : arena{a}, store{*a.get(Ref<Store>{a.root(0).raw()})} {}

  // The reference that leads to the key, or the empty one where it would be.
  Ref<Node>& find(std::string_view key) {
    std::uint64_t hash = 14695981039346656037u;  // not std::hash: the next program's might differ
    for (const char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    Ref<Node>* link = &store.chains[hash % 1024];
    while (*link && arena.get(*link)->key() != key) link = &arena.get(*link)->next;
    return *link;
  }
  Result<std::string> set(Tx& tx, std::string_view key, std::string_view value) {
    const Ref<Node> fresh{LUO_TRY(tx.allocate(sizeof(Node) + key.size() + value.size())).raw()};
    Ref<Node>& link = find(key);
    Node& node = *arena.get(fresh);  // fresh memory is written directly
    node = {link ? arena.get(link)->next : Ref<Node>{}, static_cast<std::uint32_t>(key.size()),
            static_cast<std::uint32_t>(value.size())};
    std::ranges::copy(value, std::ranges::copy(key, node.text()).out);
    if (link) tx.release(link);
    else tx.set(store.keys, store.keys + 1);
    tx.set(link, fresh);  // what others can see, only through the transaction
    return fmt::format("{} = {}\n", key, value);
  }
  Result<std::string> apply(Tx& tx, std::string_view line) {
    const auto word = [&line] {
      const std::string_view first = line.substr(0, line.find(' '));
      line.remove_prefix(std::min(line.size(), first.size() + 1));
      return first;
    };
    const std::string_view command = word();
    if (command == "exec" || command == "crash") return "";
    if (command == "list") {
      std::vector<std::string> all;
      for (const Ref<Node>& chain : store.chains)
        for (Node* node = arena.get(chain); node != nullptr; node = arena.get(node->next))
          all.push_back(fmt::format("{} = {}\n", node->key(), node->value()));
      std::ranges::sort(all);
      return fmt::format("{}{} keys\n", fmt::join(all, ""), store.keys);
    }
    const std::string_view key = word();
    if (key.empty()) return fail(EINVAL, "set KEY VALUE, get KEY, del KEY, incr KEY, list, exec or crash");
    if (command == "set") return set(tx, key, line);
    Ref<Node>& link = find(key);
    if (command == "incr") {
      std::int64_t number = 0;
      const std::string_view old = link ? arena.get(link)->value() : "0";
      const auto [end, error] = std::from_chars(old.data(), old.data() + old.size(), number);
      if (error != std::errc{} || end != old.data() + old.size() || __builtin_add_overflow(number, 1, &number))
        return fail(ERANGE, "{} = {}", key, old);
      return set(tx, key, std::to_string(number));
    }
    if (!link) return fail(ENOENT, "{}", key);
    if (command == "get") return fmt::format("{} = {}\n", key, arena.get(link)->value());
    if (command != "del") return fail(EINVAL, "{}", command);
    tx.set(store.keys, store.keys - 1);
    tx.release(link);  // it stays as it is until the commit
    tx.set(link, arena.get(link)->next);
    return fmt::format("{} is gone\n", key);
  }
  // The next line of the input, or nothing at its end. Those that came in an earlier life come first.
  Result<std::optional<std::string>> next_line() {
    auto& input = *reinterpret_cast<Input*>(arena.control().data());
    for (std::string line;;) {
      for (std::uint64_t at = store.done + line.size(); at < input.read; ++at) {
        const char c = input.ring[at % sizeof input.ring];
        if (c == '\n') return line;
        line += c;
      }
      const std::uint64_t from = input.read % sizeof input.ring;
      const std::size_t room = std::min(sizeof input.ring - from, sizeof input.ring - line.size());
      if (room == 0) return fail(E2BIG, "a line has more than {} bytes", sizeof input.ring - 1);
      const ssize_t n = ::read(STDIN_FILENO, input.ring + from, room);
      if (n < 0) return sys_fail("read(stdin)");
      if (n == 0) return std::nullopt;
      input.read += static_cast<std::uint64_t>(n);
    }
  }

  Arena& arena;
  Store& store;
};

// One life: takes over what the one before left in the memfd, and goes on.
Result<> live(Fd memfd, char** argv) {
  Arena arena = LUO_TRY(Arena::open(std::move(memfd), kLayout));  // rolls back what was not committed
  LUO_TRY(arena.check());                                         // the whole heap: not needed, to show that it is so
  Kv kv{arena};
  while (const std::optional<std::string> line = LUO_TRY(kv.next_line())) {
    Tx tx{arena};
    const Tx::Mark start = tx.mark();
    Result<std::string> reply = kv.apply(tx, *line);
    if (!reply) {
      tx.back_to(start);  // nothing of what failed, but the line is done
      reply = fmt::format("error: {}\n", reply.error());
    }
    tx.set(kv.store.done, kv.store.done + line->size() + 1);
    tx.commit();
    if (::write(STDOUT_FILENO, reply->data(), reply->size()) < 0) return sys_fail("write(stdout)");
    const std::string command = line->substr(0, line->find(' '));
    if (command == "exec") return exec_with(arena, argv);
    if (command == "crash") {
      Tx lost{arena};
      lost.save(&kv.store, sizeof kv.store);
      kv.store = {};
      ::raise(SIGKILL);
    }
  }
  return {};
}

Result<> begin(char** argv) {
  Arena arena = LUO_TRY(Arena::create({.name = "kho-kv", .layout = kLayout, .max_size = 1_GiB}));
  {
    Tx tx{arena};
    const Ref<Store> store = LUO_TRY(tx.make<Store>());
    tx.set_root(0, store.addr());
    tx.commit();
  }
  return supervise(arena.release(), live, argv);
}

int main(int argc, char** argv) {
  const auto result = argc > 1 ? live(Fd::adopt(std::atoi(argv[1])), argv) : begin(argv);
  if (result) return 0;
  fmt::print(stderr, "{}\n", result.error());
  return 1;
}
