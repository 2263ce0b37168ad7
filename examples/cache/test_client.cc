#include "cache/test_client.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <fstream>
#include <utility>

#include "cache/listen.h"

namespace luo::cache::test {
namespace {

constexpr std::string_view kClosed = "(closed)";

pid_t spawn(const std::vector<std::string>& argv, int output, int keep) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(::open("/dev/null", O_RDONLY), 0);
  ::dup2(output, 1);
  ::dup2(output, 2);
  if (keep >= 0) ::fcntl(keep, F_SETFD, 0);
  std::vector<char*> raw;
  for (const auto& word : argv) raw.push_back(const_cast<char*>(word.c_str()));
  raw.push_back(nullptr);
  ::execvp(raw[0], raw.data());
  ::dprintf(2, "%s: %s\n", raw[0], std::strerror(errno));
  ::_exit(127);
}

int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int free_port() {
  auto listener = listen_tcp("127.0.0.1", 0);
  return listener ? *port_of(*listener) : 0;
}

}  // namespace

RespClient::RespClient(Fd socket) : socket_{std::move(socket)} {
  const timeval patience{.tv_sec = 30, .tv_usec = 0};
  ::setsockopt(socket_.raw(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  ::setsockopt(socket_.raw(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

RespClient RespClient::tcp(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  Fd socket = Fd::adopt(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(socket.raw(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) socket.close();
  return RespClient{std::move(socket)};
}

RespClient RespClient::unix_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  Fd socket = Fd::adopt(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(socket.raw(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) socket.close();
  return RespClient{std::move(socket)};
}

bool RespClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket_.raw(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

bool RespClient::fill() {
  char bytes[1 << 16];
  const ssize_t n = ::recv(socket_.raw(), bytes, sizeof bytes, 0);
  if (n > 0) buffer_.append(bytes, static_cast<std::size_t>(n));
  return n > 0;
}

std::string RespClient::answer() {
  std::size_t at = 0;
  for (long left = 1; left > 0; --left) {
    std::size_t end = 0;
    while ((end = buffer_.find("\r\n", at)) == std::string::npos)
      if (!fill()) return std::string{kClosed};
    long size = 0;
    std::from_chars(buffer_.data() + at + 1, buffer_.data() + end, size);
    const char kind = buffer_[at];
    at = end + 2;
    if (kind == '*' && size > 0) left += size;
    if (kind != '$' || size < 0) continue;
    at += static_cast<std::size_t>(size) + 2;
    while (buffer_.size() < at)
      if (!fill()) return std::string{kClosed};
  }
  std::string whole = buffer_.substr(0, at);
  buffer_.erase(0, at);
  return whole;
}

std::string RespClient::command(std::initializer_list<std::string_view> words) {
  std::vector<std::string> copies{words.begin(), words.end()};
  return send(request(copies)) ? answer() : std::string{kClosed};
}

std::string RespClient::info(const std::string& name) {
  const std::string all = command({"INFO"});
  const std::size_t at = all.find("\r\n" + name + ":");
  if (at == std::string::npos) return {};
  const std::size_t start = at + name.size() + 3;
  return all.substr(start, all.find('\r', start) - start);
}

bool RespClient::at_end() {
  char byte = 0;
  return buffer_.empty() && ::recv(socket_.raw(), &byte, 1, 0) == 0;
}

std::string request(const std::vector<std::string>& words) {
  std::string text = fmt::format("*{}\r\n", words.size());
  for (const auto& word : words) text += fmt::format("${}\r\n{}\r\n", word.size(), word);
  return text;
}

ServerProcess ServerProcess::luo_cache(const std::vector<std::string>& arguments, const std::string& error_output) {
  int ends[2] = {-1, -1};
  LUO_CHECK(::pipe2(ends, O_CLOEXEC) == 0);
  const Fd ready = Fd::adopt(ends[0]);
  Fd child_end = Fd::adopt(ends[1]);
  const Fd output = Fd::adopt(::open(error_output.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  std::vector<std::string> argv{LUO_CACHE_PROGRAM, "--port", "0", "--ready-fd", std::to_string(child_end.raw())};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  ServerProcess server;
  server.pid_ = spawn(argv, output.raw(), child_end.raw());
  child_end.close();
  char line[16] = {};
  const ssize_t n = ::read(ready.raw(), line, sizeof line);  // 0: it has ended
  if (n > 0) std::from_chars(line, line + n, server.port_);
  return server;
}

ServerProcess ServerProcess::redis() {
  const Fd null = Fd::adopt(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  ServerProcess server;
  const int port = free_port();
  server.pid_ = spawn({"redis-server", "--port", std::to_string(port), "--save", "", "--appendonly", "no",
                       "--databases", "1", "--daemonize", "no"},
                      null.raw(), -1);
  // It says nothing when it is ready: asked until it answers or has ended.
  for (int status = 0; ::waitpid(server.pid_, &status, WNOHANG) == 0; ::usleep(10'000)) {
    if (RespClient::tcp(port).command({"PING"}) != "+PONG\r\n") continue;
    server.port_ = port;
    break;
  }
  return server;
}

ServerProcess::ServerProcess(ServerProcess&& from) noexcept : pid_{std::exchange(from.pid_, -1)}, port_{from.port_} {}

ServerProcess::~ServerProcess() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGSTOP);  // a supervisor starts no next one
  std::ifstream children{fmt::format("/proc/{0}/task/{0}/children", pid_)};
  for (pid_t child = 0; children >> child;) ::kill(child, SIGKILL);
  ::kill(pid_, SIGKILL);
  wait_for(pid_);
}

int ServerProcess::wait() { return wait_for(std::exchange(pid_, -1)); }

int ServerProcess::terminate() {
  ::kill(pid_, SIGTERM);
  return wait();
}

Ran run(const std::vector<std::string>& argv) {
  const Fd output = Fd::adopt(::memfd_create("output", MFD_CLOEXEC));
  const int status = wait_for(spawn(argv, output.raw(), -1));
  std::string text(static_cast<std::size_t>(::lseek(output.raw(), 0, SEEK_END)), '\0');
  const ssize_t n = ::pread(output.raw(), text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return {status, text};
}

}  // namespace luo::cache::test
