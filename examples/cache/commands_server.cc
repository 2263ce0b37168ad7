// Commands about the connection and the server.
#include <fmt/format.h>
#include <fnmatch.h>
#include <unistd.h>

#include <cstring>
#include <utility>
#include <vector>

#include "cache/commands.h"
#include "cache/request.h"

namespace luo::cache {
namespace {

// What client libraries look at to know which commands they may use.
constexpr std::string_view kCompatibleVersion = "7.0.15";

void unknown_subcommand(Call& call) {
  std::string upper{call.name};
  for (char& c : upper) c = static_cast<char>(c - ('a' - 'A'));
  call.reply.error(fmt::format("ERR unknown subcommand '{}'. Try {} HELP.", call[1].substr(0, 128), upper));
}

bool has_arguments(Call& call, std::size_t at_least, std::size_t at_most) {
  if (call.size() >= at_least && call.size() <= at_most) return true;
  wrong_arity(call, fmt::format("{}|{}", call.name, lower_case(call[1])));
  return false;
}

std::string human_bytes(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "K", "M", "G", "T"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{}B", bytes) : fmt::format("{:.2f}{}", value, kUnits[unit]);
}

}  // namespace

void Interpreter::ping(Call& call) {
  if (call.size() > 2) return wrong_arity(call, call.name);
  if (call.size() == 2) return call.reply.bulk(call[1]);
  call.reply.status("PONG");
}

void Interpreter::echo(Call& call) { call.reply.bulk(call[1]); }

void Interpreter::quit(Call& call) {
  call.tx().set(call.connection.closing, 1);
  call.reply.ok();
}

void Interpreter::select(Call& call) {
  std::int64_t index = 0;
  if (!parse_integer(call[1], index)) return call.reply.error(kNotAnInteger);
  if (index != 0) return call.reply.error("ERR DB index is out of range");
  call.reply.ok();
}

void Interpreter::auth(Call& call) {
  if (call.size() > 3) return call.reply.error(kSyntaxError);
  if (call.size() == 3) return call.reply.error("WRONGPASS invalid username-password pair or user is disabled.");
  call.reply.error(
      "ERR AUTH <password> called without any password configured for the default user. "
      "Are you sure your configuration is correct?");
}

// RESP3 is refused in the way that makes client libraries go on with RESP2.
void Interpreter::hello(Call& call) {
  if (call.size() >= 2) {
    std::int64_t version = 0;
    if (!parse_integer(call[1], version))
      return call.reply.error("ERR Protocol version is not an integer or out of range");
    if (version != 2) return call.reply.error("NOPROTO unsupported protocol version");
  }
  std::string_view name;
  for (std::size_t i = 2; i < call.size(); ++i) {
    if (is_word(call[i], "setname") && i + 1 < call.size()) {
      name = call[++i];
    } else if (is_word(call[i], "auth") && i + 2 < call.size()) {
      return call.reply.error("WRONGPASS invalid username-password pair or user is disabled.");
    } else {
      return call.reply.error(fmt::format("ERR Syntax error in HELLO option '{}'", call[i]));
    }
  }
  if (name.size() > sizeof call.connection.name) return call.reply.error("ERR Client names are limited to 64 bytes");
  if (!name.empty()) {
    call.tx().save(&call.connection, sizeof call.connection);
    call.connection.name_bytes = static_cast<std::uint32_t>(name.size());
    std::memcpy(call.connection.name, name.data(), name.size());
  }
  call.reply.array(14);
  for (const auto& [key, value] : {std::pair{"server", std::string_view{"redis"}}, {"version", kCompatibleVersion}}) {
    call.reply.bulk(key);
    call.reply.bulk(value);
  }
  call.reply.bulk("proto");
  call.reply.integer(2);
  call.reply.bulk("id");
  call.reply.integer(static_cast<std::int64_t>(call.connection.token));
  call.reply.bulk("mode");
  call.reply.bulk("standalone");
  call.reply.bulk("role");
  call.reply.bulk("master");
  call.reply.bulk("modules");
  call.reply.array(0);
}

void Interpreter::client(Call& call) {
  const std::string_view word = call[1];
  ConnectionRecord& record = call.connection;
  if (is_word(word, "setname")) {
    if (!has_arguments(call, 3, 3)) return;
    if (call[2].size() > sizeof record.name) return call.reply.error("ERR Client names are limited to 64 bytes");
    for (const char c : call[2])
      if (c < '!' || c > '~')
        return call.reply.error("ERR Client names cannot contain spaces, newlines or special characters.");
    call.tx().save(&record, sizeof record);
    record.name_bytes = static_cast<std::uint32_t>(call[2].size());
    std::memcpy(record.name, call[2].data(), call[2].size());
    return call.reply.ok();
  }
  if (is_word(word, "getname")) {
    if (!has_arguments(call, 2, 2)) return;
    if (record.name_bytes == 0) return call.reply.null();
    return call.reply.bulk({record.name, record.name_bytes});
  }
  if (is_word(word, "id")) {
    if (has_arguments(call, 2, 2)) call.reply.integer(static_cast<std::int64_t>(record.token));
    return;
  }
  if (is_word(word, "setinfo")) {
    if (has_arguments(call, 4, 4)) call.reply.ok();
    return;
  }
  if (is_word(word, "no-evict") || is_word(word, "no-touch")) {
    if (has_arguments(call, 3, 3)) call.reply.ok();
    return;
  }
  unknown_subcommand(call);
}

void Interpreter::config(Call& call) {
  if (is_word(call[1], "resetstat")) {
    if (!has_arguments(call, 2, 2)) return;
    counters_.commands = counters_.connections = counters_.expired = counters_.refused_writes = 0;
    return call.reply.ok();
  }
  if (is_word(call[1], "set")) {
    if (has_arguments(call, 4, SIZE_MAX))
      call.reply.error("ERR luo-cache is configured on its command line; see luo-cache --help");
    return;
  }
  if (!is_word(call[1], "get")) return unknown_subcommand(call);
  if (!has_arguments(call, 3, SIZE_MAX)) return;
  const std::pair<const char*, std::string> settings[] = {
      {"appendonly", "no"},
      {"bind", facts_.bind},
      {"databases", "1"},
      {"maxmemory", std::to_string(facts_.maxmemory)},
      {"maxmemory-policy", "noeviction"},
      {"port", std::to_string(facts_.port)},
      {"proto-max-bulk-len", "536870912"},
      {"save", ""},
      {"timeout", "0"},
      {"unixsocket", facts_.unix_socket},
  };
  std::vector<const std::pair<const char*, std::string>*> wanted;
  for (const auto& setting : settings) {
    for (const std::string_view pattern : call.arguments.subspan(2)) {
      if (::fnmatch(lower_case(pattern).c_str(), setting.first, 0) != 0) continue;
      wanted.push_back(&setting);
      break;
    }
  }
  call.reply.array(2 * wanted.size());
  for (const auto* setting : wanted) {
    call.reply.bulk(setting->first);
    call.reply.bulk(setting->second);
  }
}

void Interpreter::command(Call& call) {
  const auto describe = [&](const Command& command) {
    call.reply.array(10);
    call.reply.bulk(command.name);
    call.reply.integer(command.arity);
    const std::pair<unsigned, const char*> kFlags[] = {
        {Command::Write, "write"}, {Command::Grows, "denyoom"}, {Command::Fast, "fast"}, {Command::Admin, "admin"}};
    std::size_t flags = (command.flags & Command::Write) == 0 ? 1 : 0;
    for (const auto& [bit, name] : kFlags) flags += (command.flags & bit) != 0 ? 1 : 0;
    call.reply.array(flags);
    if ((command.flags & Command::Write) == 0) call.reply.status("readonly");
    for (const auto& [bit, name] : kFlags)
      if ((command.flags & bit) != 0) call.reply.status(name);
    call.reply.integer(command.first_key);
    call.reply.integer(command.last_key);
    call.reply.integer(command.step);
    for (int i = 0; i < 4; ++i) call.reply.array(0);  // ACL categories, tips, key specifications, subcommands
  };
  const auto all = commands();
  if (call.size() == 1) {
    call.reply.array(all.size());
    for (const Command& command : all) describe(command);
  } else if (is_word(call[1], "count")) {
    if (has_arguments(call, 2, 2)) call.reply.integer(static_cast<std::int64_t>(all.size()));
  } else if (is_word(call[1], "docs")) {
    call.reply.array(0);
  } else if (is_word(call[1], "info")) {
    call.reply.array(call.size() - 2);
    for (const std::string_view name : call.arguments.subspan(2)) {
      const Command* command = find(name);
      if (command != nullptr) describe(*command);
      else call.reply.null_array();
    }
  } else {
    unknown_subcommand(call);
  }
}

void Interpreter::info(Call& call) {
  const auto wants = [&](std::string_view section) {
    if (call.size() == 1) return true;
    for (const std::string_view word : call.arguments.subspan(1))
      if (is_word(word, section) || is_word(word, "all") || is_word(word, "everything") || is_word(word, "default"))
        return true;
    return false;
  };
  const kho::ArenaStats memory = arena_.stats();
  std::string text;
  const auto section = [&](std::string_view title, std::string_view lines) {
    if (!wants(lower_case(title))) return;
    if (!text.empty()) text += "\r\n";
    text += fmt::format("# {}\r\n{}", title, lines);
  };
  const std::int64_t uptime_s = (call.now_ms - facts_.started_ms) / 1000;
  section("Server", fmt::format("redis_version:{}\r\nluo_cache_version:{}\r\nredis_mode:standalone\r\nprocess_id:{}\r\n"
                                "tcp_port:{}\r\nuptime_in_seconds:{}\r\n",
                                kCompatibleVersion, facts_.version, ::getpid(), facts_.port, uptime_s));
  section("Clients", fmt::format("connected_clients:{}\r\n", facts_.clients));
  section("Memory", fmt::format("used_memory:{}\r\nused_memory_human:{}\r\nused_memory_blocks:{}\r\narena_bytes:{}\r\n"
                                "maxmemory:{}\r\nmaxmemory_human:{}\r\nmaxmemory_policy:noeviction\r\n",
                                memory.used_bytes, human_bytes(memory.used_bytes), memory.blocks,
                                memory.committed_bytes, facts_.maxmemory, human_bytes(facts_.maxmemory)));
  section("Persistence", "loading:0\r\n");
  section("Stats", fmt::format("total_connections_received:{}\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\n"
                               "refused_writes:{}\r\n",
                               counters_.connections, counters_.commands, counters_.expired, counters_.refused_writes));
  section("Replication", "role:master\r\nconnected_slaves:0\r\n");
  section("Luo", fmt::format("generation:{}\r\nrecoveries:{}\r\nsession:{}\r\nluod_connected:{}\r\nlast_pause_us:{}\r\n"
                             "data_age_seconds:{}\r\n",
                             counters_.generation, counters_.recoveries, facts_.session, facts_.luod_connected ? 1 : 0,
                             counters_.last_pause_us,
                             call.now_ms / 1000 - static_cast<std::int64_t>(counters_.created_unix_s)));
  section("Keyspace", table_.size() == 0
                          ? std::string{}
                          : fmt::format("db0:keys={},expires={},avg_ttl=0\r\n", table_.size(), table_.expiring()));
  call.reply.bulk(text);
}

}  // namespace luo::cache
