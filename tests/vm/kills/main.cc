// For the tests in the virtual machine that kill luod's processes (kills.sh):
//
//   luo-vm-kills during NAME MOST MICROSECONDS SEED COMMAND...   kills processes of that name while the command runs
//   luo-vm-kills churn ROUNDS SEED FILE    preserves, gives up, closes, at random, and looks at each step whether what
//                                          was given up is free and what is kept is kept; then stays in the background
//                                          and says in FILE what it keeps
//   luo-vm-kills check FILE                that all of it came over a kexec
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "luo/luo.h"

namespace {

[[noreturn]] void die(const std::string& what, int code = 0) {
  std::printf("failed: %s: %s\n", what.c_str(), code != 0 ? std::strerror(code) : luo_last_error());
  std::exit(1);
}
int need(int result, const std::string& what) {
  if (result < 0) die(what);
  return result;
}

// --- during

/// The youngest process of that name that is not `before`; -1: none.
pid_t find_process(const std::string& name, pid_t before) {
  pid_t found = -1;
  DIR* folder = opendir("/proc");
  if (folder == nullptr) die("/proc", errno);
  while (const dirent* entry = readdir(folder)) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= before || pid <= found) continue;
    std::ifstream stat{"/proc/" + std::string{entry->d_name} + "/stat"};
    std::string number, comm, state;
    stat >> number >> comm >> state;
    if (comm == "(" + name + ")" && state != "Z" && state != "X") found = pid;
  }
  closedir(folder);
  return found;
}

int during(const std::string& name, int most, unsigned microseconds, unsigned seed, char** command) {
  std::mt19937 random{seed};
  const pid_t child = fork();
  if (child < 0) die("fork", errno);
  if (child == 0) {
    execvp(command[0], command);
    die(command[0], errno);
  }
  int status = 0, kills = 0;
  bool ended = false;
  for (pid_t last = -1; kills < most && !(ended = waitpid(child, &status, WNOHANG) == child);) {
    const pid_t victim = find_process(name, last);
    if (victim < 0) {
      usleep(500);
      continue;
    }
    // Often soon after its start, where the intervals between the kernel's calls are.
    const unsigned longest = random() % 3 == 0 ? microseconds / 8 : microseconds;
    usleep(static_cast<useconds_t>(random() % (longest + 1)));
    if (kill(victim, SIGKILL) == 0) ++kills;
    last = victim;
  }
  if (!ended)
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  std::printf("%d kills of %s\n", kills, name.c_str());
  if (kills == 0) return 99;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

// --- churn

constexpr int kSlots = 3, kFiles = 24;

std::string content(int file) {
  std::mt19937 random{static_cast<unsigned>(file) + 1};
  std::string text(static_cast<std::size_t>(3000 + 500 * file), '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

struct Slot {
  int session = -1;
  std::map<std::uint64_t, int> files;  ///< token → file
};

class Churn {
 public:
  Churn(luo_connection* luo, unsigned seed) : luo_{luo}, random_{seed} {
    for (int file = 0; file < kFiles; ++file) {
      const int fd = memfd_create("churn", MFD_CLOEXEC);
      const std::string text = content(file);
      if (fd < 0 || write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) die("memfd", errno);
      fds_.push_back(fd);
      in_.push_back(-1);
    }
  }
  void round() {
    const int at = any(kSlots);
    Slot& slot = slots_[at];
    if (slot.session < 0) return create(at);
    switch (any(8)) {
      case 0: return close_and_move(at);
      case 1:
      case 2:
      case 3: return give_up_one(slot);
      default: return keep_one(at);
    }
  }
  void report(const char* path) {
    std::ofstream out{path};
    for (int at = 0; at < kSlots; ++at) {
      if (slots_[at].session < 0) create(at);
      for (const auto& [token, file] : slots_[at].files) out << "churn-" << at << ' ' << token << ' ' << file << '\n';
    }
  }

 private:
  int any(int below) { return static_cast<int>(random_() % static_cast<unsigned>(below)); }
  bool can_grow(int file) {
    const auto size = static_cast<off_t>(content(file).size());
    return ftruncate(fds_[file], size + 8192) == 0 && ftruncate(fds_[file], size) == 0;
  }
  void create(int at) {
    slots_[at].session = need(luo_session_create(luo_, ("churn-" + std::to_string(at)).c_str()), "create");
  }
  void put(int at, int file, const char* why) {
    need(luo_preserve_fd(luo_, slots_[at].session, fds_[file], next_), std::string{why} + ": preserve");
    slots_[at].files[next_++] = file;
    in_[file] = at;
    if (can_grow(file)) die("the kernel does not have what was preserved", EBADMSG);
  }
  void keep_one(int at) {
    const int file = any(kFiles);
    if (in_[file] < 0) put(at, file, "keep");
  }
  void give_up_one(Slot& slot) {
    if (slot.files.empty()) return;
    auto found = slot.files.begin();
    std::advance(found, any(static_cast<int>(slot.files.size())));
    const auto [token, file] = *found;
    need(luo_unpreserve_fd(luo_, slot.session, token), "give up");
    slot.files.erase(found);
    in_[file] = -1;
    if (!can_grow(file)) die("what was given up is not free", errno);
    for (const auto& [other, kept] : slot.files)
      if (can_grow(kept)) die("what stays is not the kernel's any more", EBADMSG);
  }
  /// Another session takes one of its files at once, before luod has looked at what was closed.
  void close_and_move(int at) {
    Slot& slot = slots_[at];
    close(slot.session);
    slot.session = -1;
    const std::map<std::uint64_t, int> files = std::move(slot.files);
    slot.files.clear();
    for (const auto& [token, file] : files) in_[file] = -1;
    const int to = (at + 1) % kSlots;
    if (!files.empty() && slots_[to].session >= 0) put(to, files.rbegin()->second, "move");
    else create(at);  // the name is free
    for (const auto& [token, file] : files) {
      if (in_[file] >= 0) continue;
      int tries = 0;
      while (!can_grow(file) && ++tries < 10'000) usleep(1000);  // a close has no answer
      if (tries == 10'000) die("what was closed is not free", EBUSY);
    }
  }

  luo_connection* luo_;
  std::mt19937 random_;
  std::vector<int> fds_, in_;  ///< by file; the slot that has it, -1: none
  Slot slots_[kSlots];
  std::uint64_t next_ = 1;
};

int churn(int rounds, unsigned seed, const char* path) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) die("pipe2", errno);
  const pid_t child = fork();
  if (child > 0) {
    close(ends[1]);
    char byte = 0;
    if (read(ends[0], &byte, 1) == 1) return 0;
    return 1;
  }
  luo_connection* luo = nullptr;
  need(luo_open(nullptr, &luo), "connect");
  Churn churn{luo, seed};
  for (int i = 0; i < rounds; ++i) churn.round();
  churn.report(path);
  std::fflush(stdout);
  (void)!write(ends[1], "r", 1);
  for (;;) pause();
}

int check(const char* path) {
  luo_connection* luo = nullptr;
  need(luo_open(nullptr, &luo), "connect");
  std::map<std::string, std::map<std::uint64_t, int>> expected;
  for (int at = 0; at < kSlots; ++at) expected["churn-" + std::to_string(at)];
  std::ifstream in{path};
  std::string name;
  std::uint64_t token = 0;
  for (int file = 0; in >> name >> token >> file;) expected[name][token] = file;
  std::size_t all = 0;
  for (const auto& [session_name, files] : expected) {
    const int session = need(luo_session_retrieve(luo, session_name.c_str()), "retrieve " + session_name);
    std::uint64_t tokens[kFiles + 1];
    const int there = need(luo_session_tokens(luo, session, tokens, kFiles + 1), "tokens");
    if (static_cast<std::size_t>(there) != files.size()) die(session_name + ": number of files", EBADMSG);
    for (const auto& [wanted, file] : files) {
      const int fd = need(luo_retrieve_fd(luo, session, wanted), session_name + " token " + std::to_string(wanted));
      const std::string text = content(file);
      std::string got(text.size() + 1, '\0');
      if (pread(fd, got.data(), got.size(), 0) != static_cast<ssize_t>(text.size()) ||
          got.compare(0, text.size(), text) != 0)
        die(session_name + " token " + std::to_string(wanted) + ": content", EBADMSG);
      close(fd);
    }
    need(luo_session_finish(luo, session), "finish");
    close(session);
    all += files.size();
  }
  std::printf("%zu files as they were\n", all);
  return all > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "during" && argc > 6)
    return during(argv[2], std::atoi(argv[3]), static_cast<unsigned>(std::atoi(argv[4])),
                  static_cast<unsigned>(std::atoi(argv[5])), argv + 6);
  if (verb == "churn" && argc == 5)
    return churn(std::atoi(argv[2]), static_cast<unsigned>(std::atoi(argv[3])), argv[4]);
  if (verb == "check" && argc == 3) return check(argv[2]);
  std::fprintf(stderr, "usage: see the source\n");
  return 2;
}
