// A luod of the test's own: in a temporary directory, started before and ended after the test.
//
//   Luod luod;                               // ASSERT_TRUE(luod.running()) says why not
//   const Client client{luod};               // a libluo connection
//   luod.kill_worker();                      // SIGKILL; returns when it is dead
//   EXPECT_EQ(luod.state(), before);         // what is preserved, and how many descriptors luod has
#pragma once
#include <sys/types.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "luo/luo.h"
#include "wire/protocol.h"

namespace luo::test {

struct LuodOptions {
  std::vector<std::string> arguments{};                            ///< beside --state-dir
  std::vector<std::pair<std::string, std::string>> environment{};  ///< beside ours; the value "" unsets
  unsigned long nofile = 0;                                        ///< hard RLIMIT_NOFILE; 0: as it is
  unsigned long soft_nofile = 0;                                   ///< soft; 0: as it is
  std::string program{};                                           ///< another luod
  bool own_directory = true;                                       ///< false: arguments say where
};

/// A directory that goes with everything in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const noexcept { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Polls readable when the process has ended; waits for that. False: it has not after 30 s.
bool wait_for_death(pid_t pid);
/// SIGKILL, returns when it is dead.
void kill_and_wait(pid_t pid);
/// Waits until a process has died (true), or sleeps in epoll_wait because it has nothing to do (false).
bool died_rather_than_idled(pid_t pid);
/// Descriptors open in a process, timers left out; -1 if it is gone.
int open_descriptors(pid_t pid);
/// Polls until `fd` is readable (or hung up); false after 30 s.
bool readable(int fd);
bool hung_up(int fd);  ///< waits until POLLHUP; false after 30 s

/// Where the build puts programs, with a slash at the end.
std::string program(const std::string& name);

/// Runs a program to its end; stdin is empty.
struct Ran {
  int status = -1;  ///< exit status; 128 + signal
  std::string out, err;
};
Ran run_program(const std::vector<std::string>& argv,
                const std::vector<std::pair<std::string, std::string>>& environment = {});

class Luod {
 public:
  explicit Luod(LuodOptions options = {});
  ~Luod();
  Luod(const Luod&) = delete;
  Luod& operator=(const Luod&) = delete;

  bool running() const noexcept { return running_; }
  const TempDir& dir() const noexcept { return dir_; }
  const std::string& socket() const noexcept { return socket_; }
  std::string log() const;  ///< all that it has said so far

  /// Asked from luod. An empty object if it does not answer.
  nlohmann::json status();
  nlohmann::json list();
  nlohmann::json show(const std::string& name);
  pid_t keeper();
  pid_t worker();
  /// Everything that a client could notice, as text: sessions and their files, without what differs from
  /// run to run (pids, inodes, numbers, times); how many connections, updates and descriptors there are.
  std::string state();
  int descriptors();

  void kill_worker() { kill_and_wait(worker()); }
  void kill_keeper() { kill_and_wait(keeper()); }
  /// Ends it and waits until both processes are gone. What it exited with, if it is our child
  /// still; 0 else; -1: it does not end.
  int stop();
  /// The exit status of a luod that was to fail.
  int wait_for_exit();

 private:
  Result<std::string> ask(wire::QueryKind kind, const std::string& name);
  TempDir dir_;
  std::unique_ptr<class RawClient> control_;  ///< over which it is asked; the same for its whole life
  std::string socket_, log_path_;
  pid_t child_ = -1;
  bool running_ = false;
};

/// A libluo connection that closes with its scope.
class Client {
 public:
  explicit Client(const Luod& luod) : Client{luod.socket()} {}
  explicit Client(const std::string& socket) { error_ = luo_open(socket.c_str(), &connection_); }
  ~Client() { luo_close(connection_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  operator luo_connection*() const noexcept { return connection_; }
  int error() const noexcept { return error_; }
  Fd create(const std::string& name) const { return Fd::adopt(luo_session_create(connection_, name.c_str())); }
  Fd retrieve(const std::string& name) const { return Fd::adopt(luo_session_retrieve(connection_, name.c_str())); }

 private:
  luo_connection* connection_ = nullptr;
  int error_ = 0;
};

Fd memfd_with(const std::string& content);
std::string content_of(FdRef file);
/// Whether two descriptors are one open file (kcmp).
bool same_open_file(int a, int b);

}  // namespace luo::test
