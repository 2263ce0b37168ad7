// A service for the virtual machine's tests: keeps memfds of known content in a session, stays until it is killed, and
// on the other side of a kexec looks whether all of it came back.
//
//   luo-vm-service keep NAME COUNT BYTES [OPTION]...    in the background, once everything is preserved
//   luo-vm-service take NAME COUNT BYTES [OPTION]...    retrieves, compares each byte, and finishes
//
// keep: --option KEY=VALUE (luo_session_set_option), --hold, --special (seals of all kinds, modes, positions),
//       --socket (one that cannot cross, as token COUNT), --unpreserve (one file more, given up again),
//       --refuse (answers no to an update), --grow-after (its files grow until an update is announced),
//       --on-prepare COMMAND (what it does when an update is announced), --price (of giving one file up: prints it),
//       --hold-executable, --hold-unit (as --hold), --memfd NAME (of its files)
// take: --special, --renew (and then as keep, in the background), --keep-open (does not finish), --absent (there is
// none)
// both: --as UID (as whom)
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "luo/luo.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace {

constexpr unsigned kSealExec = 0x20;

struct Asked {
  std::string name;
  std::uint64_t count = 0, bytes = 0;
  std::vector<std::string> options;
  bool hold = false, special = false, socket = false, unpreserve = false, refuse = false, renew = false, open = false,
       absent = false, grow = false, price = false;
  luo_hold hold_for = LUO_HOLD_USER;
  uid_t uid = 0;
  std::string on_prepare, memfd = "service";
};

std::int64_t now_us() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000 + t.tv_nsec / 1000;
}

[[noreturn]] void die(const std::string& what, int code = 0) {
  std::fprintf(stderr, "luo-vm-service: %s: %s\n", what.c_str(), code != 0 ? std::strerror(code) : luo_last_error());
  std::printf("failed: %s: %s\n", what.c_str(), code != 0 ? std::strerror(code) : luo_last_error());
  std::exit(1);
}
int need(int result, const std::string& what) {
  if (result < 0) die(what);
  return result;
}

/// The content of a file: nothing that a wrong file, or a page of zeros, could have by accident.
std::vector<unsigned char> content(const Asked& asked, std::uint64_t token) {
  std::uint64_t state = 0x9e3779b97f4a7c15ULL ^ (token * 0xbf58476d1ce4e5b9ULL);
  for (const char c : asked.name) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  std::vector<unsigned char> bytes(asked.bytes);
  for (auto& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<unsigned char>(state);
  }
  return bytes;
}

/// What each file is besides its content, by token, with --special.
struct Kind {
  unsigned flags = 0;       ///< of memfd_create
  unsigned seals = 0;       ///< before it is preserved
  unsigned late_seals = 0;  ///< after it
  mode_t mode = 0777;
  off_t position = 0;
  int open = O_RDWR;
  mode_t late_mode = mode;  ///< after it is preserved
  off_t room = 0;           ///< kept with fallocate(KEEP_SIZE), also beyond its end
};
Kind kind_of(const Asked& asked, std::uint64_t token) {
  if (!asked.special) return {};
  switch (token % 9) {
    case 1: return {.flags = MFD_NOEXEC_SEAL, .mode = 0666};
    case 2: return {.flags = MFD_ALLOW_SEALING, .late_seals = F_SEAL_GROW};
    case 3: return {.flags = MFD_ALLOW_SEALING, .seals = F_SEAL_WRITE | F_SEAL_SHRINK, .mode = 0640};
    case 4: return {.position = 5};
    case 5: return {.flags = MFD_NOEXEC_SEAL | MFD_ALLOW_SEALING, .seals = F_SEAL_SHRINK, .mode = 0600};
    case 6: return {.mode = 0600, .position = 7, .open = O_RDONLY};
    case 7: return {.open = O_RDWR | O_APPEND, .late_mode = 0440};
    case 8: return {.room = 1 << 20};
    default: return {};
  }
}
unsigned seals_of(const Kind& kind) {
  unsigned seals = kind.seals | kind.late_seals;
  if ((kind.flags & MFD_NOEXEC_SEAL) != 0) seals |= kSealExec;
  else if ((kind.flags & MFD_ALLOW_SEALING) == 0) seals |= F_SEAL_SEAL;
  return seals;
}

void write_all(int fd, const std::vector<unsigned char>& bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    const ssize_t n = pwrite(fd, bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (n <= 0) die("write", errno);
    at += static_cast<std::size_t>(n);
  }
}

int make_file(const Asked& asked, std::uint64_t token) {
  const Kind kind = kind_of(asked, token);
  int fd = memfd_create(asked.memfd.c_str(), MFD_CLOEXEC | kind.flags);
  if (fd < 0) die("memfd_create", errno);
  write_all(fd, content(asked, token));
  if (asked.special && fchmod(fd, kind.mode) != 0) die("fchmod", errno);
  if (kind.room != 0 && fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, kind.room) != 0) die("fallocate", errno);
  if (kind.open != O_RDWR) {
    const int other = open(("/proc/self/fd/" + std::to_string(fd)).c_str(), kind.open | O_CLOEXEC);
    if (other < 0) die("open again", errno);
    close(fd);
    fd = other;
  }
  if (lseek(fd, kind.position, SEEK_SET) != kind.position) die("lseek", errno);
  if (kind.seals != 0 && fcntl(fd, F_ADD_SEALS, kind.seals) != 0) die("F_ADD_SEALS", errno);
  return fd;
}

void check_file(const Asked& asked, std::uint64_t token, int fd) {
  const auto named = [&](const char* what) { return asked.name + " token " + std::to_string(token) + ": " + what; };
  struct stat st {};
  if (fstat(fd, &st) != 0) die(named("fstat"), errno);
  if (static_cast<std::uint64_t>(st.st_size) != asked.bytes) die(named("size"), EBADMSG);
  const auto expected = content(asked, token);
  std::vector<unsigned char> got(expected.size());
  for (std::size_t at = 0; at < got.size();) {
    const ssize_t n = pread(fd, got.data() + at, got.size() - at, static_cast<off_t>(at));
    if (n <= 0) die(named("read"), errno);
    at += static_cast<std::size_t>(n);
  }
  if (got != expected) die(named("content"), EBADMSG);
  if (!asked.special) return;
  const Kind kind = kind_of(asked, token);
  if (fcntl(fd, F_GET_SEALS) != static_cast<int>(seals_of(kind))) {
    std::printf("seals %#x, expected %#x\n", static_cast<unsigned>(fcntl(fd, F_GET_SEALS)), seals_of(kind));
    die(named("seals"), EBADMSG);
  }
  if ((st.st_mode & 07777) != kind.late_mode) die(named("mode"), EBADMSG);
  if (lseek(fd, 0, SEEK_CUR) != kind.position) die(named("position"), EBADMSG);
  if ((fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND)) != kind.open) die(named("access"), EBADMSG);
  if (kind.room != 0 && st.st_blocks * 512 >= kind.room)
    die(named("room beyond the end has come: differences.md"), EEXIST);
  if ((kind.open & O_APPEND) != 0) return;
  const bool writable =
      (seals_of(kind) & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0 && (kind.open & O_ACCMODE) == O_RDWR;
  if ((pwrite(fd, expected.data(), 1, 0) == 1) != writable) die(named("whether it can be written"), errno);
}

int ready_fd = -1;  ///< a byte into it lets the process that was started end

struct Serving {
  luo_connection* luo;
  const Asked* asked;
  std::vector<int> growing;
};

void prepare(void* context, const luo_update* update) {
  Serving& serving = *static_cast<Serving*>(context);
  std::printf("%s: prepare %d\n", serving.asked->name.c_str(), static_cast<int>(update->kind));
  std::fflush(stdout);
  if (const auto& command = serving.asked->on_prepare; !command.empty() && std::system(command.c_str()) != 0)
    std::printf("%s: '%s' failed\n", serving.asked->name.c_str(), command.c_str());
  if (serving.asked->refuse) luo_update_refuse(serving.luo, update->id, "the test says no");
  else luo_update_ready(serving.luo, update->id);
}
void resumed(void* context, std::uint64_t, const char* why) {
  Serving& serving = *static_cast<Serving*>(context);
  // What is to grow can grow again.
  for (const int fd : serving.growing) {
    struct stat st {};
    const bool grown = fstat(fd, &st) == 0 && ftruncate(fd, st.st_size + 4096) == 0 && ftruncate(fd, st.st_size) == 0;
    if (!grown)
      std::printf("%s: cannot grow after the update: %s\n", serving.asked->name.c_str(), std::strerror(errno));
  }
  std::printf("%s: resumed: %s\n", serving.asked->name.c_str(), why);
  std::fflush(stdout);
}

/// Holds the session until it is killed, and answers updates.
[[noreturn]] void serve(luo_connection* luo, const Asked& asked, std::vector<int> growing) {
  Serving serving{luo, &asked, std::move(growing)};
  const luo_update_callbacks callbacks{prepare, resumed, nullptr};
  need(luo_on_update(luo, &callbacks, &serving), "subscribe");
  // What it says from here on is nobody's output any more.
  if (std::freopen(("/tmp/service-" + asked.name + ".log").c_str(), "a", stdout) == nullptr) die("log", errno);
  (void)!write(ready_fd, "r", 1);
  for (;;) {
    pollfd one{luo_fd(luo), POLLIN, 0};
    poll(&one, 1, -1);
    if (luo_dispatch(luo) < 0) {
      if (luo_on_update(luo, &callbacks, &serving) < 0) pause();
    }
  }
}

void keep(luo_connection* luo, const Asked& asked) {
  const int session = need(luo_session_create(luo, asked.name.c_str()), "create " + asked.name);
  for (const std::string& option : asked.options) {
    const std::size_t equals = option.find('=');
    need(luo_session_set_option(luo, session, option.substr(0, equals).c_str(), option.substr(equals + 1).c_str()),
         option);
  }
  if (asked.hold) need(luo_session_hold(luo, session, asked.hold_for), "hold");
  std::vector<int> fds, growing;
  std::vector<std::uint64_t> tokens;
  for (std::uint64_t token = 0; token < asked.count; ++token) {
    fds.push_back(make_file(asked, token));
    tokens.push_back(token);
  }
  std::vector<int> errors(fds.size());
  if (!fds.empty()) {
    const int kept = luo_preserve_many(luo, session, fds.data(), tokens.data(), errors.data(), fds.size());
    if (kept != static_cast<int>(fds.size())) {
      for (const int error : errors)
        if (error != 0) die("preserve", error);
      die("preserve");
    }
  }
  for (std::uint64_t token = 0; token < asked.count; ++token) {
    const Kind kind = kind_of(asked, token);
    if (kind.late_mode != kind.mode && fchmod(fds[token], kind.late_mode) != 0) die("late mode", errno);
    if (kind.late_seals != 0 && fcntl(fds[token], F_ADD_SEALS, kind.late_seals) != 0) die("late seals", errno);
  }
  if (asked.unpreserve) {
    const int extra = make_file(asked, 1'000'000);
    need(luo_preserve_fd(luo, session, extra, 1'000'000), "preserve one more");
    need(luo_unpreserve_fd(luo, session, 1'000'000), "give it up");
    if (ftruncate(extra, 1 << 20) != 0) die("what was given up cannot grow", errno);
    need(luo_preserve_fd(luo, session, extra, 1'000'001), "preserve it again");
    need(luo_unpreserve_fd(luo, session, 1'000'001), "give it up again");
    close(extra);
  }
  if (asked.price) {
    constexpr int kRounds = 20;
    std::int64_t passed = 0;
    const int extra = make_file(asked, 1'000'000);
    for (int i = 0; i < kRounds; ++i) {
      need(luo_preserve_fd(luo, session, extra, 1'000'000), "preserve one more");
      const std::int64_t before = now_us();
      need(luo_unpreserve_fd(luo, session, 1'000'000), "give it up");
      passed += now_us() - before;
    }
    close(extra);
    std::printf("%s: giving up one of %zu files takes %lld us\n", asked.name.c_str(), fds.size() + 1,
                static_cast<long long>(passed / kRounds));
  }
  if (asked.socket) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) die("socketpair", errno);
    const int done = luo_preserve_fd(luo, session, ends[0], asked.count);
    if (done < 0) {
      std::printf("socket: %s: %s\n", std::strerror(-done), luo_last_error());
      std::exit(3);
    }
  }
  if (asked.grow) {
    for (const int fd : fds)
      if (ftruncate(fd, static_cast<off_t>(asked.bytes) + 8192) != 0 ||
          ftruncate(fd, static_cast<off_t>(asked.bytes)) != 0)
        die("grow", errno);
    growing = fds;
  } else {
    for (const int fd : fds) close(fd);
  }
  std::printf("%s: keeps %zu files\n", asked.name.c_str(), fds.size());
  std::fflush(stdout);
  serve(luo, asked, growing);
}

void take(luo_connection* luo, const Asked& asked) {
  const int session = luo_session_retrieve(luo, asked.name.c_str());
  if (asked.absent) {
    if (session != -ENOENT) die(asked.name + " is there", EEXIST);
    std::printf("%s: is gone\n", asked.name.c_str());
    return;
  }
  need(session, "retrieve " + asked.name);
  std::vector<std::uint64_t> tokens(asked.count + 8);
  const int there = need(luo_session_tokens(luo, session, tokens.data(), tokens.size()), "tokens");
  if (there != static_cast<int>(asked.count)) die(asked.name + ": number of files", EBADMSG);
  tokens.resize(asked.count);
  std::vector<int> fds(tokens.size());
  if (!fds.empty() && need(luo_retrieve_many(luo, session, tokens.data(), fds.data(), fds.size()), "retrieve") != there)
    die("retrieve many", EBADMSG);
  for (std::size_t i = 0; i < fds.size(); ++i) {
    check_file(asked, tokens[i], fds[i]);
    close(fds[i]);
  }
  std::printf("%s: %d files as they were\n", asked.name.c_str(), there);
  std::fflush(stdout);
  if (asked.renew) {
    need(luo_session_renew(luo, session), "renew");
    serve(luo, asked, {});
  }
  if (asked.open) serve(luo, asked, {});
  need(luo_session_finish(luo, session), "finish");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: luo-vm-service keep|take NAME COUNT BYTES [OPTION]... (see the source)\n");
    return 2;
  }
  Asked asked;
  asked.name = argv[2];
  asked.count = std::strtoull(argv[3], nullptr, 10);
  asked.bytes = std::strtoull(argv[4], nullptr, 10);
  for (int i = 5; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--option" && i + 1 < argc) asked.options.emplace_back(argv[++i]);
    else if (word == "--hold") asked.hold = true;
    else if (word == "--hold-executable") asked.hold = true, asked.hold_for = LUO_HOLD_EXECUTABLE;
    else if (word == "--hold-unit") asked.hold = true, asked.hold_for = LUO_HOLD_UNIT;
    else if (word == "--memfd" && i + 1 < argc) asked.memfd = argv[++i];
    else if (word == "--as" && i + 1 < argc) asked.uid = static_cast<uid_t>(std::strtoul(argv[++i], nullptr, 10));
    else if (word == "--special") asked.special = true;
    else if (word == "--socket") asked.socket = true;
    else if (word == "--unpreserve") asked.unpreserve = true;
    else if (word == "--refuse") asked.refuse = true;
    else if (word == "--renew") asked.renew = true;
    else if (word == "--keep-open") asked.open = true;
    else if (word == "--absent") asked.absent = true;
    else if (word == "--grow-after") asked.grow = true;
    else if (word == "--price") asked.price = true;
    else if (word == "--on-prepare" && i + 1 < argc) asked.on_prepare = argv[++i];
    else die("unknown option " + std::string{word}, EINVAL);
  }
  const std::string_view verb = argv[1];
  if (verb != "keep" && verb != "take") die("unknown verb", EINVAL);

  // A connection belongs to one process: the one that stays has it from the start.
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) die("pipe2", errno);
  const pid_t child = fork();
  if (child < 0) die("fork", errno);
  if (child > 0) {
    close(ends[1]);
    char byte = 0;
    if (read(ends[0], &byte, 1) == 1) return 0;
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  }
  close(ends[0]);
  ready_fd = ends[1];
  if (asked.uid != 0 && (setgid(asked.uid) != 0 || setuid(asked.uid) != 0)) die("setuid", errno);
  luo_connection* luo = nullptr;
  need(luo_open(nullptr, &luo), "connect");
  if (verb == "keep") keep(luo, asked);
  else take(luo, asked);
  luo_close(luo);
  return 0;
}
