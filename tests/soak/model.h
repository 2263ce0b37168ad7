// What one client of the soak knows of its sessions. It lies in memory that outlives the client: an operation is
// written down before it is asked for, and what it did after the answer, so that the one who takes a killed client's
// place knows everything but whether the last operation happened.
#pragma once
#include <cstdint>

namespace luo::soak {

inline constexpr unsigned kSessions = 4;
inline constexpr unsigned kFiles = 24;
inline constexpr unsigned kBatch = 8;

struct File {
  std::uint64_t token;
  std::uint64_t inode;
  std::uint64_t serial;  ///< its content says it
  std::uint64_t after;   ///< a token that it depends on, plus 1; 0: none
};

enum class Where : std::uint32_t { None, Outgoing, Incoming, Retrieved };
enum class Event : std::uint32_t { None, Prepared, Frozen };

struct Session {
  Where where;
  Event event;
  std::uint32_t held;
  std::uint32_t mine;  ///< this client has its descriptor
  std::uint32_t files;
  File file[kFiles];
};

enum class Op : std::uint32_t { None, Create, Preserve, Unpreserve, Hold, Unhold, Drop, Other };

/// What was asked and not yet answered.
struct Pending {
  Op op;
  std::uint32_t session;
  std::uint32_t files;
  File file[kBatch];  ///< Preserve: all or none of them; Unpreserve: the first
};

struct Client {
  Session session[kSessions];
  Pending pending;
  std::uint64_t serial;      ///< of files, never used twice
  std::uint64_t operations;  ///< answered
  std::uint64_t lives;
  std::uint32_t paused;  ///< it has seen World::pause and does nothing
  std::uint32_t failed;  ///< `text` says what was wrong
  char text[500];
};

inline constexpr unsigned kClients = 4;
struct World {
  Client client[kClients];
  std::uint32_t pause, stop;
  std::uint64_t crossings;
};

/// The life of one client, in a process of its own: takes up what is in the model, then does random things until
/// World::stop. Never returns; exit status 0, or 1 with Client::failed.
[[noreturn]] void live(World& world, unsigned number, const char* socket, std::uint64_t seed);

}  // namespace luo::soak
