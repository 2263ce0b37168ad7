// A kernel's LUO for tests of the medium's bookkeeping: sessions with tokens, files by inode, limits as Linux 6.19 has
// them, errors at will. Its sessions end when their last descriptor closes, as real ones do. What really crosses a
// kexec is tested with a real kernel, in tests/vm.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <set>

#include "medium/device.h"
#include "sys/pipe.h"

namespace luo::medium {

class FakeKernel final : public Device {
 public:
  std::size_t most_sessions = 1000, most_files = 1000;
  std::function<int(const char* call)> fails = [](const char*) { return 0; };  ///< an errno
  std::uint64_t calls = 0;
  bool duplicate_create = false;  ///< EEXIST for a name: what Linux 7.3 may not survive (D1)

  Result<Fd> create_session(const std::string& name) override {
    LUO_TRY(enter("create"));
    if (sessions_.contains(name)) {
      duplicate_create = true;
      return fail(EEXIST, "create {}", name);
    }
    if (sessions_.size() >= most_sessions) return fail(ENOMEM, "create {}", name);
    Pipe pipe = LUO_TRY(make_pipe());
    sessions_.emplace(name, Session{std::move(pipe.write), {}});
    return std::move(pipe.read);
  }
  Result<Fd> retrieve_session(const std::string& name) override { return fail(ENOENT, "retrieve {}", name); }
  Result<> preserve(FdRef fd, int file, std::uint64_t token) override {
    LUO_TRY(enter("preserve"));
    Session* session = of(fd);
    if (session == nullptr) return fail(EBADF, "no session");
    if (session->files.contains(token)) return fail(EEXIST, "token {}", token);
    if (session->files.size() >= most_files) return fail(ENOSPC, "token {}", token);
    struct stat st {};
    if (fstat(file, &st) != 0) return fail(EBADF, "fd {}", file);
    if (!S_ISREG(st.st_mode)) return fail(ENOENT, "no handler");
    if (!inodes_.insert(st.st_ino).second) return fail(EBUSY, "inode {}", st.st_ino);
    session->files.emplace(token, st.st_ino);
    return {};
  }
  Result<Fd> retrieve(FdRef, std::uint64_t) override { return fail(ENOENT, "nothing came in"); }
  Result<> finish(FdRef) override { return fail(EINVAL, "outgoing"); }
  bool is_session(FdRef fd, const std::string& name) override {
    const Session* session = of(fd);
    return session != nullptr && sessions_.contains(name) && &sessions_.at(name) == session;
  }

  std::size_t session_count() { return sweep(), sessions_.size(); }
  std::size_t file_count() { return sweep(), inodes_.size(); }
  bool has(int file) {
    sweep();
    struct stat st {};
    return fstat(file, &st) == 0 && inodes_.contains(st.st_ino);
  }

 private:
  struct Session {
    Fd watch;
    std::map<std::uint64_t, std::uint64_t> files;  ///< token → inode
  };
  Result<> enter(const char* call) {
    ++calls;
    sweep();
    if (const int code = fails(call); code != 0) return fail(code, "{}, by the test", call);
    return {};
  }
  void sweep() {
    std::erase_if(sessions_, [&](const auto& entry) {
      pollfd one{entry.second.watch.raw(), 0, 0};
      if (poll(&one, 1, 0) <= 0 || (one.revents & POLLERR) == 0) return false;
      for (const auto& [token, inode] : entry.second.files) inodes_.erase(inode);
      return true;
    });
  }
  Session* of(FdRef fd) {
    struct stat wanted {
    }, st{};
    // Both ends have the same inode.
    if (fstat(fd.raw, &wanted) != 0 || (fcntl(fd.raw, F_GETFL) & O_ACCMODE) != O_RDONLY) return nullptr;
    for (auto& [name, session] : sessions_)
      if (fstat(session.watch.raw(), &st) == 0 && st.st_ino == wanted.st_ino) return &session;
    return nullptr;
  }

  std::map<std::string, Session> sessions_;
  std::set<std::uint64_t> inodes_;
};

}  // namespace luo::medium
