// For tests: servers in processes of their own, and a client that keeps answers as they came.
#pragma once
#include <sys/types.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"

namespace luo::cache::test {

/// One connection. Blocks, 30 s at most; then and after any other failure answers are "(closed)".
class RespClient {
 public:
  static RespClient tcp(int port);
  static RespClient unix_socket(const std::string& path);

  bool send(std::string_view bytes);
  /// The next answer, whole, with its line ends.
  std::string answer();
  std::string command(std::initializer_list<std::string_view> words);
  /// The value behind "name:" in INFO.
  std::string info(const std::string& name);
  bool at_end();  ///< waits for the peer's end of the connection; false: something else came
  FdRef socket() const noexcept { return socket_; }

 private:
  explicit RespClient(Fd socket);
  bool fill();
  Fd socket_;
  std::string buffer_;
};

/// The array form of a request.
std::string request(const std::vector<std::string>& words);

/// A server that was started by the test and ends with it.
class ServerProcess {
 public:
  /// luo-cache with --port 0 and --ready-fd, waits until it serves. `error_output` goes to a file.
  static ServerProcess luo_cache(const std::vector<std::string>& arguments,
                                 const std::string& error_output = "/dev/null");
  /// redis-server on a free port, in memory only.
  static ServerProcess redis();
  ServerProcess(ServerProcess&& from) noexcept;
  ~ServerProcess();

  int port() const noexcept { return port_; }  ///< 0: it did not get that far
  pid_t pid() const noexcept { return pid_; }
  /// Waits for its end: the exit status, 128 + signal.
  int wait();
  int terminate();  ///< SIGTERM, then wait()

 private:
  ServerProcess() = default;
  pid_t pid_ = -1;
  int port_ = 0;
};

/// Runs a program of the system (looked up in PATH) to its end.
struct Ran {
  int status;
  std::string output;  ///< both streams
};
Ran run(const std::vector<std::string>& argv);

}  // namespace luo::cache::test
