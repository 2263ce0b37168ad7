// luo-bench: what preserving and retrieving cost, beside what passing the same descriptors costs bare,
// and how the cost of one operation grows with what luod already holds. run.py starts the daemons.
#include <luo/luo.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <vector>

#include "client.h"

namespace bench {
namespace {

luo::Result<std::vector<luo::Fd>> make_memfds(std::size_t count) {
  std::vector<luo::Fd> memfds;
  for (std::size_t i = 0; i < count; ++i) {
    memfds.push_back(luo::Fd::adopt(memfd_create("bench", MFD_CLOEXEC)));
    if (!memfds.back().valid()) return luo::sys_fail("memfd_create");
    if (::write(memfds.back().raw(), "x", 1) != 1) return luo::sys_fail("write to a memfd");
  }
  return memfds;
}

luo::Result<> preserve(const Connection& to, const luo::Fd& session, std::span<const int> fds,
                       std::uint64_t first_token) {
  std::vector<std::uint64_t> tokens(fds.size());
  std::iota(tokens.begin(), tokens.end(), first_token);
  std::vector<int> errors(fds.size());
  const int done = luo_preserve_many(to.get(), session.raw(), fds.data(), tokens.data(), errors.data(), fds.size());
  if (done < 0) return luo_fail(done, "preserve");
  if (static_cast<std::size_t>(done) != fds.size()) return luo::fail(EIO, "preserve: only {} of {}", done, fds.size());
  return {};
}

/// Keeps `files` memfds in one session, all closed here.
luo::Result<luo::Fd> fill(const Connection& to, const std::string& name, std::size_t files) {
  luo::Fd session = LUO_TRY(create(to, name));
  for (std::size_t at = 0; at < files; at += kBatch) {
    const std::vector<luo::Fd> memfds = LUO_TRY(make_memfds(std::min(kBatch, files - at)));
    LUO_TRY(preserve(to, session, numbers_of(memfds), at + 1));
  }
  return session;
}

// --- bare passing ---------------------------------------------------------------------------------------

/// Sends `fds` with one byte, as one message.
bool send_fds(int socket, std::span<const int> fds) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kBatch * sizeof(int))> control{};
  char byte = 'f';
  iovec data{.iov_base = &byte, .iov_len = 1};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

/// Receives one message's descriptors into `out`; the number, or -1.
int receive_fds(int socket, std::span<int, kBatch> out) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kBatch * sizeof(int))> control{};
  char byte = 0;
  iovec data{.iov_base = &byte, .iov_len = 1};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr) return 0;
  const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
  std::memcpy(out.data(), CMSG_DATA(header), count * sizeof(int));
  return static_cast<int>(count);
}

/// The other side of bare passing: keeps what it gets and answers each message with one byte; on a
/// message without descriptors it gives the next batch back, in the order in which it got them.
[[noreturn]] void bare_peer(int socket) {
  std::array<int, kBatch> fds{};
  std::vector<int> kept;
  std::size_t next = 0;
  for (;;) {
    const int count = receive_fds(socket, fds);
    if (count < 0) _exit(0);
    if (count > 0) {
      kept.insert(kept.end(), fds.begin(), fds.begin() + count);
      if (::send(socket, "k", 1, MSG_NOSIGNAL) != 1) _exit(0);
      continue;
    }
    const auto back = std::span{kept}.subspan(next, std::min(kBatch, kept.size() - next));
    if (back.empty() || !send_fds(socket, back)) _exit(0);
    next += back.size();
  }
}

struct Bare {
  luo::Fd socket;
  pid_t child = -1;
  static luo::Result<Bare> start() {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return luo::sys_fail("socketpair");
    Bare bare{.socket = luo::Fd::adopt(pair[0])};
    luo::Fd other = luo::Fd::adopt(pair[1]);
    bare.child = ::fork();
    if (bare.child < 0) return luo::sys_fail("fork");
    if (bare.child == 0) {
      bare.socket.close();
      bare_peer(other.raw());
    }
    return bare;
  }
  void stop() {
    socket.close();
    ::waitpid(child, nullptr, 0);
  }
};

// --- the measurements ------------------------------------------------------------------------------------

struct Options {
  std::string socket, small, large;
  std::string prefix = "held-";
  std::size_t first = 0;  // of the sessions with that prefix
  std::size_t rounds = 15, files = 10 * kBatch;
  std::size_t small_count = 1500, large_count = 15000;
};

/// Preserve `files` memfds in a new session beside passing them to another process, alternating.
luo::Result<nlohmann::json> measure_preserve(const Options& options) {
  const Connection connection = LUO_TRY(Connection::open(options.socket));
  const std::vector<luo::Fd> memfds = LUO_TRY(make_memfds(options.files));
  const std::vector<int> numbers = numbers_of(memfds);
  std::vector<double> luo_us, bare_us, stream_us;
  for (std::size_t round = 0; round < options.rounds; ++round) {
    Bare bare = LUO_TRY(Bare::start());
    // A sample is a batch: short enough that most are not interrupted by anything else on the machine.
    for (std::size_t at = 0; at < numbers.size(); at += kBatch) {
      char answer = 0;
      const auto batch = std::span{numbers}.subspan(at, std::min(kBatch, numbers.size() - at));
      const std::uint64_t began = now_ns();
      if (!send_fds(bare.socket.raw(), batch) || ::recv(bare.socket.raw(), &answer, 1, 0) != 1)
        return luo::sys_fail("bare passing");
      bare_us.push_back(us_each(began, batch.size()));
    }
    // The same without waiting for each answer: what the kernel alone takes.
    const std::uint64_t began = now_ns();
    for (std::size_t at = 0; at < numbers.size(); at += kBatch)
      if (!send_fds(bare.socket.raw(), std::span{numbers}.subspan(at, std::min(kBatch, numbers.size() - at))))
        return luo::sys_fail("bare passing");
    for (std::size_t at = 0; at < numbers.size(); at += kBatch) {
      char answer = 0;
      if (::recv(bare.socket.raw(), &answer, 1, 0) != 1) return luo::sys_fail("bare passing");
    }
    stream_us.push_back(us_each(began, numbers.size()));
    bare.stop();

    const luo::Fd session = LUO_TRY(create(connection, fmt::format("bench-{}", round)));
    for (std::size_t at = 0; at < numbers.size(); at += kBatch) {
      const auto batch = std::span{numbers}.subspan(at, std::min(kBatch, numbers.size() - at));
      const std::uint64_t started = now_ns();
      LUO_TRY(preserve(connection, session, batch, at + 1));
      luo_us.push_back(us_each(started, batch.size()));
    }
    for (std::size_t i = 0; i < numbers.size(); ++i)  // a memfd is preserved once: give it back for the next round
      if (const int result = luo_unpreserve_fd(connection.get(), session.raw(), i + 1); result < 0)
        return luo_fail(result, "unpreserve");
  }
  return nlohmann::json{{"files", options.files},
                        {"preserve_us", median(luo_us)},
                        {"bare_us", median(bare_us)},
                        {"bare_unacknowledged_us", median(stream_us)}};
}

/// Retrieves the incoming sessions PREFIX0, PREFIX1, … with `files` files each, for the first time, beside
/// getting as many, of which each comes once, too, from another process.
luo::Result<nlohmann::json> measure_retrieve(const Options& options) {
  const Connection connection = LUO_TRY(Connection::open(options.socket));
  std::vector<std::uint64_t> tokens(options.files);
  std::iota(tokens.begin(), tokens.end(), 1U);
  Bare bare = LUO_TRY(Bare::start());
  for (std::size_t at = 0; at < options.rounds * options.files; at += kBatch) {
    char answer = 0;
    const std::vector<luo::Fd> memfds = LUO_TRY(make_memfds(kBatch));
    if (!send_fds(bare.socket.raw(), numbers_of(memfds)) || ::recv(bare.socket.raw(), &answer, 1, 0) != 1)
      return luo::sys_fail("bare passing");
  }
  std::vector<double> luo_us, bare_us;
  for (std::size_t round = 0; round < options.rounds; ++round) {
    std::vector<luo::Fd> received;
    std::vector<std::array<int, kBatch>> batches(options.files / kBatch);
    for (auto& batch : batches) {
      const std::uint64_t began = now_ns();
      if (::send(bare.socket.raw(), "r", 1, MSG_NOSIGNAL) != 1 ||
          receive_fds(bare.socket.raw(), batch) != static_cast<int>(kBatch))
        return luo::sys_fail("bare passing");
      bare_us.push_back(us_each(began, kBatch));
    }
    for (const auto& batch : batches)
      for (const int fd : batch) received.push_back(luo::Fd::adopt(fd));
    received.clear();

    const std::string name = fmt::format("{}{}", options.prefix, options.first + round);
    const luo::Fd session = LUO_TRY(retrieve(connection, name));
    std::vector<int> fds(tokens.size(), -1);
    for (std::size_t at = 0; at < tokens.size(); at += kBatch) {
      const std::size_t count = std::min(kBatch, tokens.size() - at);
      const std::uint64_t began = now_ns();
      const int came = luo_retrieve_many(connection.get(), session.raw(), &tokens[at], &fds[at], count);
      luo_us.push_back(us_each(began, count));
      if (came < 0) return luo_fail(came, "retrieve files of " + name);
    }
    for (const int fd : fds)
      if (fd >= 0) received.push_back(luo::Fd::adopt(fd));
    if (received.size() != tokens.size())
      return luo::fail(EIO, "{}: only {} of {} files came", name, received.size(), tokens.size());
    received.clear();
    if (const int result = luo_session_finish(connection.get(), session.raw()); result < 0)
      return luo_fail(result, "finish " + name);
  }
  bare.stop();
  return nlohmann::json{{"files", options.files}, {"retrieve_us", median(luo_us)}, {"bare_us", median(bare_us)}};
}

/// Samples of one operation on each side, taken in turns.
struct Pair {
  std::vector<double> small, large;
  nlohmann::json json() const {
    return {{"small_us", median(small)}, {"large_us", median(large)}, {"ratio", median(large) / median(small)}};
  }
};

/// One side of a comparison: a luod that holds much or little.
struct Side {
  Connection connection;
  luo::Fd session;
  std::size_t held;
};

/// Operations on a session with many files, on one with few.
luo::Result<nlohmann::json> measure_files(const Options& options) {
  Connection small = LUO_TRY(Connection::open(options.small));
  luo::Fd small_session = LUO_TRY(fill(small, "files", options.small_count));
  Connection large = LUO_TRY(Connection::open(options.large));
  luo::Fd large_session = LUO_TRY(fill(large, "files", options.large_count));
  std::array<Side, 2> sides{Side{std::move(small), std::move(small_session), options.small_count},
                            Side{std::move(large), std::move(large_session), options.large_count}};
  const std::vector<luo::Fd> memfds = LUO_TRY(make_memfds(kBatch));
  const std::vector<int> numbers = numbers_of(memfds);
  Pair batch, single, unpreserve;
  for (std::size_t round = 0; round < options.rounds; ++round) {
    for (std::size_t turn = 0; turn < 2; ++turn) {
      const std::size_t which = (round + turn) % 2;
      const Side& side = sides.at(which);
      const std::uint64_t token = side.held + 1;
      const auto take = [&](Pair& pair, double us) { (which == 0 ? pair.small : pair.large).push_back(us); };
      const auto unpreserve_all = [&]() -> luo::Result<> {
        const std::uint64_t began = now_ns();
        for (std::size_t i = 0; i < kBatch; ++i)
          if (const int result = luo_unpreserve_fd(side.connection.get(), side.session.raw(), token + i); result < 0)
            return luo_fail(result, "unpreserve");
        take(unpreserve, us_each(began, kBatch));
        return {};
      };
      std::uint64_t began = now_ns();
      LUO_TRY(preserve(side.connection, side.session, numbers, token));
      take(batch, us_each(began, kBatch));
      LUO_TRY(unpreserve_all());
      began = now_ns();
      for (std::size_t i = 0; i < kBatch; ++i)
        if (const int result = luo_preserve_fd(side.connection.get(), side.session.raw(), numbers[i], token + i);
            result < 0)
          return luo_fail(result, "preserve");
      take(single, us_each(began, kBatch));
      LUO_TRY(unpreserve_all());
    }
  }
  return nlohmann::json{{"small", options.small_count},
                        {"large", options.large_count},
                        {"preserve_many", batch.json()},
                        {"preserve", single.json()},
                        {"unpreserve", unpreserve.json()}};
}

/// Retrieves batches of the files of the incoming session NAME at either side, again and again.
luo::Result<nlohmann::json> measure_retrieve_scale(const Options& options) {
  const std::string name = options.prefix + "0";
  Connection small = LUO_TRY(Connection::open(options.small));
  luo::Fd small_session = LUO_TRY(retrieve(small, name));
  Connection large = LUO_TRY(Connection::open(options.large));
  luo::Fd large_session = LUO_TRY(retrieve(large, name));
  const std::array<Side, 2> sides{Side{std::move(small), std::move(small_session), options.small_count},
                                  Side{std::move(large), std::move(large_session), options.large_count}};
  Pair batch, single;
  std::array<std::size_t, 2> at{0, 0};
  for (std::size_t round = 0; round < options.rounds; ++round) {
    for (std::size_t turn = 0; turn < 2; ++turn) {
      const std::size_t which = (round + turn) % 2;
      const Side& side = sides.at(which);
      std::array<std::uint64_t, kBatch> tokens{};
      for (std::uint64_t& token : tokens) token = (at.at(which) += 37) % side.held + 1;  // over all of them
      std::array<int, kBatch> fds{};
      std::uint64_t began = now_ns();
      const int came = luo_retrieve_many(side.connection.get(), side.session.raw(), tokens.data(), fds.data(), kBatch);
      (which == 0 ? batch.small : batch.large).push_back(us_each(began, kBatch));
      for (const int fd : fds)
        if (fd >= 0) ::close(fd);
      if (came != static_cast<int>(kBatch))
        return luo::fail(EIO, "retrieve: {} of {} came: {}", came, kBatch, luo_last_error());
      began = now_ns();
      for (int& fd : fds)
        fd = luo_retrieve_fd(side.connection.get(), side.session.raw(),
                             tokens[static_cast<std::size_t>(&fd - fds.data())]);
      (which == 0 ? single.small : single.large).push_back(us_each(began, kBatch));
      for (const int fd : fds) {
        if (fd < 0) return luo_fail(fd, "retrieve");
        ::close(fd);
      }
    }
  }
  return nlohmann::json{{"small", options.small_count},
                        {"large", options.large_count},
                        {"retrieve_many", batch.json()},
                        {"retrieve", single.json()}};
}

/// The life of a session beside many others, and beside few.
luo::Result<nlohmann::json> measure_sessions(const Options& options) {
  struct Crowd {
    Connection connection;
    std::vector<luo::Fd> sessions;
  };
  const auto gather = [](const std::string& socket, std::size_t count) -> luo::Result<Crowd> {
    Crowd crowd{.connection = LUO_TRY(Connection::open(socket)), .sessions = {}};
    for (std::size_t i = 0; i < count; ++i)
      crowd.sessions.push_back(LUO_TRY(fill(crowd.connection, fmt::format("session-{}", i), 1)));
    return crowd;
  };
  Crowd small = LUO_TRY(gather(options.small, options.small_count));
  Crowd large = LUO_TRY(gather(options.large, options.large_count));
  const std::vector<luo::Fd> memfds = LUO_TRY(make_memfds(1));
  constexpr std::size_t kEach = 50;
  Pair creates, preserves, names;
  for (std::size_t round = 0; round < options.rounds; ++round) {
    for (std::size_t turn = 0; turn < 2; ++turn) {
      const bool is_small = (round + turn) % 2 == 0;
      const Crowd& crowd = is_small ? small : large;
      const auto take = [&](Pair& pair, std::uint64_t began) {
        (is_small ? pair.small : pair.large).push_back(us_each(began, kEach));
      };
      std::vector<luo::Fd> fresh;
      std::uint64_t began = now_ns();
      for (std::size_t i = 0; i < kEach; ++i)
        fresh.push_back(LUO_TRY(create(crowd.connection, fmt::format("fresh-{}-{}", round, i))));
      take(creates, began);
      began = now_ns();
      for (const luo::Fd& session : fresh) {
        LUO_TRY(preserve(crowd.connection, session, numbers_of(memfds), 1));
        if (const int result = luo_unpreserve_fd(crowd.connection.get(), session.raw(), 1); result < 0)
          return luo_fail(result, "unpreserve");
      }
      take(preserves, began);
      began = now_ns();
      char name[LUO_NAME_LENGTH];
      for (std::size_t i = 0; i < kEach; ++i) {
        const luo::Fd& session = crowd.sessions[(i * 7919 + round) % crowd.sessions.size()];
        if (const int result = luo_session_get_name(crowd.connection.get(), session.raw(), name); result < 0)
          return luo_fail(result, "get_name");
      }
      take(names, began);
    }
  }
  return nlohmann::json{{"small", options.small_count},
                        {"large", options.large_count},
                        {"create", creates.json()},
                        {"preserve_and_unpreserve", preserves.json()},
                        {"get_name", names.json()}};
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  using namespace bench;
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);

  Options options;
  CLI::App app{"Measures luod through libluo; prints one JSON object.", "luo-bench"};
  app.require_subcommand(1);
  using Measurement = luo::Result<nlohmann::json> (*)(const Options&);
  Measurement chosen = nullptr;
  const auto add = [&](const char* name, const char* what, Measurement measurement) {
    auto* command = app.add_subcommand(name, what);
    command->add_option("--rounds", options.rounds)->capture_default_str();
    command->callback([&chosen, measurement] { chosen = measurement; });
    return command;
  };
  const auto add_one = [&](CLI::App* command) {
    command->add_option("--socket", options.socket, "of luod");
    command->add_option("--files", options.files)->capture_default_str();
    return command;
  };
  const auto add_two = [&](CLI::App* command) {
    command->add_option("--small", options.small, "socket of a luod for few")->required();
    command->add_option("--large", options.large, "socket of a luod for many")->required();
    command->add_option("--small-count", options.small_count)->capture_default_str();
    command->add_option("--large-count", options.large_count)->capture_default_str();
    return command;
  };
  add_one(add("preserve", "batches, beside bare passing", &measure_preserve));
  auto* retrieve = add_one(add("retrieve", "incoming sessions PREFIX0… , beside bare passing", &measure_retrieve));
  retrieve->add_option("--prefix", options.prefix);
  retrieve->add_option("--first", options.first, "number of the first session")->capture_default_str();
  add_two(add("files", "operations beside few and many files", &measure_files));
  add_two(add("retrieve-scale", "retrieving from few and many files", &measure_retrieve_scale))
      ->add_option("--prefix", options.prefix);
  add_two(add("sessions", "operations beside few and many sessions", &measure_sessions));
  CLI11_PARSE(app, argc, argv);
  const auto result = chosen(options);
  if (!result) {
    fmt::print(stderr, "luo-bench: {}\n", result.error());
    return 1;
  }
  fmt::print("{}\n", result->dump());
  return 0;
}
