// Commands on values.
#include <charconv>
#include <limits>

#include "cache/commands.h"
#include "cache/request.h"

namespace luo::cache {
namespace {

constexpr std::size_t kLargestValue = 512U << 20;

struct SetOptions {
  bool nx = false, xx = false, get = false, keep_ttl = false;
  std::int64_t unit_ms = 0;  // 0: no expire time given
  bool absolute = false;
  std::string_view expire;
};

bool parse_set_options(Call& call, SetOptions& options) {
  for (std::size_t i = 3; i < call.size(); ++i) {
    const std::string_view word = call[i];
    const bool has_time = options.unit_ms != 0 || options.keep_ttl;
    if (is_word(word, "nx") && !options.xx) {
      options.nx = true;
    } else if (is_word(word, "xx") && !options.nx) {
      options.xx = true;
    } else if (is_word(word, "get")) {
      options.get = true;
    } else if (is_word(word, "keepttl") && options.unit_ms == 0) {
      options.keep_ttl = true;
    } else if (!has_time && i + 1 < call.size() &&
               (is_word(word, "ex") || is_word(word, "px") || is_word(word, "exat") || is_word(word, "pxat"))) {
      options.unit_ms = word[0] == 'e' || word[0] == 'E' ? 1000 : 1;
      options.absolute = word.size() == 4;
      options.expire = call[++i];
    } else {
      call.reply.error(kSyntaxError);
      return false;
    }
  }
  return true;
}

bool parse_expire(Call& call, std::string_view text, std::int64_t unit_ms, std::int64_t base_ms, std::int64_t& at) {
  std::int64_t value = 0;
  if (!parse_integer(text, value)) {
    call.reply.error(kNotAnInteger);
    return false;
  }
  if (value <= 0 || !to_expire_ms(value, unit_ms, base_ms, at)) {
    invalid_expire(call);
    return false;
  }
  return true;
}

void answer_value(Call& call, const Table::Place& place) {
  if (place.entry == nullptr) return call.reply.null();
  call.reply.bulk(place.entry->value());
}

}  // namespace

// Answers with the error and returns false if there is no memory.
bool Interpreter::put(Call& call, Table::Place place, std::string_view key, std::string_view value,
                      std::int64_t expire_ms) {
  if (table_.put(call.tx(), place, key, value, expire_ms)) return true;
  ++counters_.refused_writes;
  call.reply.error(kOutOfMemory);
  return false;
}

void Interpreter::get(Call& call) { answer_value(call, table_.find(call.tx(), call[1], call.now_ms)); }

void Interpreter::set(Call& call) {
  SetOptions options;
  if (!parse_set_options(call, options)) return;
  std::int64_t expire_ms = 0;
  if (options.unit_ms != 0 &&
      !parse_expire(call, options.expire, options.unit_ms, options.absolute ? 0 : call.now_ms, expire_ms))
    return;
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  const bool found = place.entry != nullptr;
  if (found && options.keep_ttl) expire_ms = place.entry->expire_ms;
  if ((options.nx && found) || (options.xx && !found)) {
    if (options.get) return answer_value(call, place);
    return call.reply.null();
  }
  if (!options.get) {
    if (put(call, place, call[1], call[2], expire_ms)) call.reply.ok();
    return;
  }
  const std::string old{found ? place.entry->value() : std::string_view{}};
  if (!put(call, place, call[1], call[2], expire_ms)) return;
  if (found) return call.reply.bulk(old);
  call.reply.null();
}

void Interpreter::setnx(Call& call) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  if (place.entry != nullptr) return call.reply.integer(0);
  if (put(call, place, call[1], call[2], 0)) call.reply.integer(1);
}

void Interpreter::setex(Call& call) { set_expiring(call, 1000); }
void Interpreter::psetex(Call& call) { set_expiring(call, 1); }

void Interpreter::set_expiring(Call& call, std::int64_t unit_ms) {
  std::int64_t expire_ms = 0;
  if (!parse_expire(call, call[2], unit_ms, call.now_ms, expire_ms)) return;
  if (put(call, table_.find(call.tx(), call[1], call.now_ms), call[1], call[3], expire_ms)) call.reply.ok();
}

void Interpreter::getset(Call& call) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  const bool found = place.entry != nullptr;
  const std::string old{found ? place.entry->value() : std::string_view{}};
  if (!put(call, place, call[1], call[2], 0)) return;
  if (found) return call.reply.bulk(old);
  call.reply.null();
}

void Interpreter::getdel(Call& call) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  answer_value(call, place);
  if (place.entry != nullptr) table_.erase(call.tx(), place);
}

void Interpreter::mget(Call& call) {
  call.reply.array(call.size() - 1);
  for (const std::string_view key : call.arguments.subspan(1)) {
    if (Entry* entry = table_.peek(key, call.now_ms)) {
      call.reply.bulk(entry->value());
    } else {
      call.reply.null();
    }
  }
}

void Interpreter::mset(Call& call) {
  if (call.size() % 2 == 0) return wrong_arity(call, call.name);
  std::int64_t none = 0;
  for (std::size_t i = call.batch.begin_at(none); i < call.size(); i += 2) {
    if (!call.batch.has_room()) call.batch.renew(i, 0);
    if (!put(call, table_.find(call.tx(), call[i], call.now_ms), call[i], call[i + 1], 0)) return;
  }
  call.reply.ok();
}

void Interpreter::append(Call& call) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  const std::size_t length = (place.entry != nullptr ? place.entry->value_bytes : 0) + call[2].size();
  if (length > kLargestValue) return call.reply.error("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
  if (place.entry == nullptr) {
    if (!put(call, place, call[1], call[2], 0)) return;
  } else if (!table_.append(call.tx(), place, call[2])) {
    ++counters_.refused_writes;
    return call.reply.error(kOutOfMemory);
  }
  call.reply.integer(static_cast<std::int64_t>(length));
}

void Interpreter::strlen(Call& call) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  call.reply.integer(place.entry != nullptr ? place.entry->value_bytes : 0);
}

void Interpreter::incr(Call& call) { add(call, 1); }
void Interpreter::decr(Call& call) { add(call, -1); }

void Interpreter::incrby(Call& call) {
  std::int64_t delta = 0;
  if (!parse_integer(call[2], delta)) return call.reply.error(kNotAnInteger);
  add(call, delta);
}

void Interpreter::decrby(Call& call) {
  std::int64_t delta = 0;
  if (!parse_integer(call[2], delta)) return call.reply.error(kNotAnInteger);
  if (delta == std::numeric_limits<std::int64_t>::min()) return call.reply.error("ERR decrement would overflow");
  add(call, -delta);
}

void Interpreter::add(Call& call, std::int64_t delta) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  std::int64_t value = 0;
  if (place.entry != nullptr && !parse_integer(place.entry->value(), value)) return call.reply.error(kNotAnInteger);
  if (__builtin_add_overflow(value, delta, &value))
    return call.reply.error("ERR increment or decrement would overflow");
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  const std::int64_t expire_ms = place.entry != nullptr ? place.entry->expire_ms : 0;
  if (put(call, place, call[1], {digits, static_cast<std::size_t>(end - digits)}, expire_ms)) call.reply.integer(value);
}

}  // namespace luo::cache
