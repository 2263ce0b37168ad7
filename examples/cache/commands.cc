#include "cache/commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace luo::cache {
namespace {

constexpr char lower(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

// The first 128 bytes of the arguments, as Redis shows them in its error.
std::string preview(std::span<const std::string_view> arguments) {
  constexpr std::size_t kShown = 128;
  std::string text;
  for (std::size_t i = 1; i < arguments.size() && text.size() < kShown; ++i)
    text += fmt::format("'{}' ", arguments[i].substr(0, kShown - text.size()));
  return text;
}

}  // namespace

bool is_word(std::string_view text, std::string_view word) noexcept {
  return std::ranges::equal(text, word, [](char a, char b) { return lower(a) == b; });
}

std::string lower_case(std::string_view text) {
  std::string result{text};
  std::ranges::transform(result, result.begin(), lower);
  return result;
}

void wrong_arity(Call& call, std::string_view name) {
  call.reply.error(fmt::format("ERR wrong number of arguments for '{}' command", name));
}

void invalid_expire(Call& call) { call.reply.error(fmt::format("ERR invalid expire time in '{}' command", call.name)); }

bool to_expire_ms(std::int64_t value, std::int64_t unit_ms, std::int64_t base_ms, std::int64_t& at) noexcept {
  return !__builtin_mul_overflow(value, unit_ms, &at) && !__builtin_add_overflow(at, base_ms, &at);
}

std::span<const Interpreter::Command> Interpreter::commands() noexcept {
  using I = Interpreter;
  using enum Command::Flag;
  static constexpr Command kCommands[] = {
      {"get", 2, Fast, 1, 1, 1, &I::get},
      {"set", -3, Write | Grows, 1, 1, 1, &I::set},
      {"setnx", 3, Write | Grows | Fast, 1, 1, 1, &I::setnx},
      {"setex", 4, Write | Grows, 1, 1, 1, &I::setex},
      {"psetex", 4, Write | Grows, 1, 1, 1, &I::psetex},
      {"getset", 3, Write | Grows | Fast, 1, 1, 1, &I::getset},
      {"getdel", 2, Write | Fast, 1, 1, 1, &I::getdel},
      {"mget", -2, Fast, 1, -1, 1, &I::mget},
      {"mset", -3, Write | Grows, 1, -1, 2, &I::mset},
      {"append", 3, Write | Grows | Fast, 1, 1, 1, &I::append},
      {"strlen", 2, Fast, 1, 1, 1, &I::strlen},
      {"incr", 2, Write | Grows | Fast, 1, 1, 1, &I::incr},
      {"decr", 2, Write | Grows | Fast, 1, 1, 1, &I::decr},
      {"incrby", 3, Write | Grows | Fast, 1, 1, 1, &I::incrby},
      {"decrby", 3, Write | Grows | Fast, 1, 1, 1, &I::decrby},
      {"del", -2, Write, 1, -1, 1, &I::del},
      {"unlink", -2, Write | Fast, 1, -1, 1, &I::del},
      {"exists", -2, Fast, 1, -1, 1, &I::exists},
      {"type", 2, Fast, 1, 1, 1, &I::type},
      {"expire", -3, Write | Fast, 1, 1, 1, &I::expire},
      {"pexpire", -3, Write | Fast, 1, 1, 1, &I::pexpire},
      {"expireat", -3, Write | Fast, 1, 1, 1, &I::expireat},
      {"pexpireat", -3, Write | Fast, 1, 1, 1, &I::pexpireat},
      {"ttl", 2, Fast, 1, 1, 1, &I::ttl},
      {"pttl", 2, Fast, 1, 1, 1, &I::pttl},
      {"persist", 2, Write | Fast, 1, 1, 1, &I::persist},
      {"dbsize", 1, Fast, 0, 0, 0, &I::dbsize},
      {"flushall", -1, Write, 0, 0, 0, &I::flush},
      {"flushdb", -1, Write, 0, 0, 0, &I::flush},
      {"ping", -1, Fast, 0, 0, 0, &I::ping},
      {"echo", 2, Fast, 0, 0, 0, &I::echo},
      {"quit", -1, Fast, 0, 0, 0, &I::quit},
      {"select", 2, Fast, 0, 0, 0, &I::select},
      {"auth", -2, Fast, 0, 0, 0, &I::auth},
      {"hello", -1, Fast, 0, 0, 0, &I::hello},
      {"client", -2, Admin, 0, 0, 0, &I::client},
      {"config", -2, Admin, 0, 0, 0, &I::config},
      {"command", -1, Read, 0, 0, 0, &I::command},
      {"info", -1, Read, 0, 0, 0, &I::info},
  };
  return kCommands;
}

const Interpreter::Command* Interpreter::find(std::string_view name) noexcept {
  constexpr std::size_t kSlots = 128;
  constexpr auto slot_of = [](std::string_view word) {
    return (word.size() * 29 + static_cast<unsigned char>(lower(word.front())) * 5 +
            static_cast<unsigned char>(lower(word.back())) * 11) %
           kSlots;
  };
  static const auto kIndex = [&] {
    std::array<const Command*, kSlots> index{};
    for (const Command& command : commands()) {
      std::size_t slot = slot_of(command.name);
      while (index[slot] != nullptr) slot = (slot + 1) % kSlots;
      index[slot] = &command;
    }
    return index;
  }();
  if (name.empty()) return nullptr;
  for (std::size_t slot = slot_of(name); kIndex[slot] != nullptr; slot = (slot + 1) % kSlots)
    if (is_word(name, kIndex[slot]->name)) return kIndex[slot];
  return nullptr;
}

void Interpreter::run(std::span<const std::string_view> arguments, Batch& batch, Reply& reply,
                      ConnectionRecord& connection, std::int64_t now_ms) {
  ++counters_.commands;
  const Command* command = find(arguments[0]);
  if (command == nullptr) {
    reply.error(fmt::format("ERR unknown command '{}', with args beginning with: {}", arguments[0].substr(0, 128),
                            preview(arguments)));
    return;
  }
  Call call{arguments, batch, reply, connection, now_ms, command->name};
  execute(call, *command);
  batch.request_done();
}

void Interpreter::execute(Call& call, const Command& command) {
  const auto count = static_cast<int>(call.size());
  if (command.arity > 0 ? count != command.arity : count < -command.arity) return wrong_arity(call, command.name);
  if ((command.flags & Command::Grows) != 0 && facts_.maxmemory != 0 && over_memory(call)) {
    ++counters_.refused_writes;
    return call.reply.error(kOutOfMemory);
  }
  (this->*command.action)(call);
}

// Flushed tables still count until they are released: do that now if it helps.
bool Interpreter::over_memory(Call& call) {
  while (arena_.stats().used_bytes > facts_.maxmemory) {
    if (!table_.has_dead()) return true;
    table_.bury(call.tx(), 10'000);
    call.batch.renew();
  }
  return false;
}

}  // namespace luo::cache
