// Commands on keys and their time to live.
#include <fmt/format.h>

#include "cache/commands.h"
#include "cache/request.h"

namespace luo::cache {
namespace {

struct ExpireOptions {
  bool nx = false, xx = false, gt = false, lt = false;
};

bool parse_expire_options(Call& call, ExpireOptions& options) {
  for (std::size_t i = 3; i < call.size(); ++i) {
    if (is_word(call[i], "nx")) {
      options.nx = true;
    } else if (is_word(call[i], "xx")) {
      options.xx = true;
    } else if (is_word(call[i], "gt")) {
      options.gt = true;
    } else if (is_word(call[i], "lt")) {
      options.lt = true;
    } else {
      call.reply.error(fmt::format("ERR Unsupported option {}", call[i]));
      return false;
    }
  }
  if (options.nx && (options.xx || options.gt || options.lt)) {
    call.reply.error("ERR NX and XX, GT or LT options at the same time are not compatible");
    return false;
  }
  if (options.gt && options.lt) {
    call.reply.error("ERR GT and LT options at the same time are not compatible");
    return false;
  }
  return true;
}

}  // namespace

void Interpreter::del(Call& call) {
  std::int64_t removed = 0;
  for (std::size_t i = call.batch.begin_at(removed); i < call.size(); ++i) {
    if (!call.batch.has_room()) call.batch.renew(i, removed);
    const Table::Place place = table_.find(call.tx(), call[i], call.now_ms);
    if (place.entry == nullptr) continue;
    table_.erase(call.tx(), place);
    ++removed;
  }
  call.reply.integer(removed);
}

void Interpreter::exists(Call& call) {
  std::int64_t found = 0;
  for (const std::string_view key : call.arguments.subspan(1))
    if (table_.peek(key, call.now_ms) != nullptr) ++found;
  call.reply.integer(found);
}

void Interpreter::type(Call& call) {
  call.reply.status(table_.peek(call[1], call.now_ms) != nullptr ? "string" : "none");
}

void Interpreter::expire(Call& call) { expire_at(call, call.now_ms, 1000); }
void Interpreter::pexpire(Call& call) { expire_at(call, call.now_ms, 1); }
void Interpreter::expireat(Call& call) { expire_at(call, 0, 1000); }
void Interpreter::pexpireat(Call& call) { expire_at(call, 0, 1); }

void Interpreter::expire_at(Call& call, std::int64_t base_ms, std::int64_t unit_ms) {
  ExpireOptions options;
  if (!parse_expire_options(call, options)) return;
  std::int64_t value = 0;
  std::int64_t when = 0;
  if (!parse_integer(call[2], value)) return call.reply.error(kNotAnInteger);
  if (!to_expire_ms(value, unit_ms, base_ms, when)) return invalid_expire(call);
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  if (place.entry == nullptr) return call.reply.integer(0);
  const std::int64_t now = place.entry->expire_ms;
  const bool refused = (options.nx && now != 0) || (options.xx && now == 0) ||
                       (options.gt && (now == 0 || when <= now)) || (options.lt && now != 0 && when >= now);
  if (refused) return call.reply.integer(0);
  if (when <= call.now_ms) {
    table_.erase(call.tx(), place);
  } else {
    table_.set_expire(call.tx(), *place.entry, when);
  }
  call.reply.integer(1);
}

void Interpreter::ttl(Call& call) { time_left(call, 1000); }
void Interpreter::pttl(Call& call) { time_left(call, 1); }

void Interpreter::time_left(Call& call, std::int64_t unit_ms) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  if (place.entry == nullptr) return call.reply.integer(-2);
  if (place.entry->expire_ms == 0) return call.reply.integer(-1);
  call.reply.integer((place.entry->expire_ms - call.now_ms + unit_ms / 2) / unit_ms);
}

void Interpreter::persist(Call& call) {
  const Table::Place place = table_.find(call.tx(), call[1], call.now_ms);
  if (place.entry == nullptr || place.entry->expire_ms == 0) return call.reply.integer(0);
  table_.set_expire(call.tx(), *place.entry, 0);
  call.reply.integer(1);
}

void Interpreter::dbsize(Call& call) { call.reply.integer(static_cast<std::int64_t>(table_.size())); }

void Interpreter::flush(Call& call) {
  if (call.size() > 2 || (call.size() == 2 && !is_word(call[1], "sync") && !is_word(call[1], "async")))
    return call.reply.error(kSyntaxError);
  if (!table_.flush(call.tx())) return call.reply.error(kOutOfMemory);
  call.reply.ok();
}

}  // namespace luo::cache
